"""Which examples make up each batch of a training run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch.utils.data import Sampler


@dataclass(frozen=True)
class Padding:
    """Positions of an epoch's batches, and how many of them are padding."""

    positions: int
    padding: int

    @property
    def share(self) -> float:
        return self.padding / max(1, self.positions)


class Batches(Sampler[list[int]]):
    """The batches of each epoch, as rows of the training set; every example once an epoch.

    By length, examples are sorted (equal lengths in random order), cut into batches, and the batches
    shuffled; at random, the examples themselves are shuffled. The order depends on the seed and the
    epoch alone, the number of batches on neither. With several processes, a global batch is so many
    times larger, and each process takes every world-th example of it.

    Args:
        lengths: (n,) tokens of each example.
        size: Examples a process and batch, unless `tokens` is given.
        tokens: Positions a process and batch, padding included; a longer example is a batch alone.
        by_length: Whether examples of like length go together; `tokens` implies it.
        rank, world: This process's number and the number of processes.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        *,
        size: int,
        tokens: int | None = None,
        by_length: bool = True,
        seed: int = 42,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.lengths = np.asarray(lengths)
        self.by_length = by_length or tokens is not None
        self.seed = seed
        self.rank = rank
        self.world = world
        self.epoch = 0
        if tokens is None:
            cuts = list(range(0, len(self.lengths), size * world))
        else:
            cuts = cut_by_tokens(np.sort(self.lengths), tokens * world)
        if len(cuts) > 1 and len(self.lengths) - cuts[-1] < world:
            cuts.pop()  # else a process would have no example of the last batch
        self.cuts = [*cuts, len(self.lengths)]

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.cuts) - 1

    def __iter__(self) -> Iterator[list[int]]:
        return (rows.tolist() for rows in self.of_epoch(self.epoch))

    def of_epoch(self, epoch: int) -> list[np.ndarray]:
        """This process's batches of an epoch."""
        return [rows[self.rank :: self.world] for rows in self._global(epoch)]

    def _global(self, epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.lengths))
        if self.by_length:
            order = order[np.argsort(self.lengths[order], kind="stable")]
        batches = [order[begin:end] for begin, end in pairwise(self.cuts)]
        if self.by_length:
            batches = [batches[i] for i in rng.permutation(len(batches))]
        return batches

    def padding(self) -> Padding:
        """What padding costs in the first epoch, over all processes."""
        positions = sum(len(rows) * int(self.lengths[rows].max()) for rows in self._global(0))
        return Padding(positions, positions - int(self.lengths.sum()))


def cut_by_tokens(lengths: np.ndarray, tokens: int, size: int | None = None) -> list[int]:
    """Where batches begin, so that none has more positions than `tokens` once padded.

    Args:
        lengths: (n,) ascending.
        size: Examples in a batch at most.
    """
    most = len(lengths) if size is None else size
    cuts = [0] if len(lengths) else []
    for row, length in enumerate(lengths):
        count = row + 1 - cuts[-1]
        if count > 1 and (count > most or count * int(length) > tokens):
            cuts.append(row)
    return cuts


def steps_per_epoch(batches: Batches, accumulation: int) -> int:
    """Optimizer steps that an epoch takes."""
    return math.ceil(len(batches) / accumulation)
