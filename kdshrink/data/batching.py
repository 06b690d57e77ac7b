"""Groups examples into the batches of a training run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch.utils.data import Sampler


@dataclass(frozen=True)
class Padding:
    """The number of positions in an epoch's batches, and of those that are padding."""

    positions: int
    padding: int

    @property
    def share(self) -> float:
        return self.padding / max(1, self.positions)


class Batches(Sampler[list[int]]):
    """The batches of each epoch, as rows of the training set; every example occurs once per epoch.

    By length, examples are sorted (equal lengths in random order), cut into batches, and the batches
    shuffled; else the examples are shuffled. The order depends only on the seed and the epoch, the number
    of batches on neither. With `world` processes, a global batch is `world` times larger, and each process
    takes every world-th example of it.

    Args:
        lengths: (n,) the number of tokens of each example.
        size: The per-device batch size, unless `tokens` is given.
        tokens: The largest number of positions in a per-device batch, padding included; a longer example
            is a batch by itself.
        widths: (n,) the positions that each example is padded to at least, which grow with the lengths;
            None for its length. With `tokens`, batches of one width are of one size then.
        by_length: Whether a batch has examples of similar length; `tokens` implies it.
        rank, world: The rank of this process and the number of processes.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        *,
        size: int,
        tokens: int | None = None,
        widths: np.ndarray | None = None,
        by_length: bool = True,
        seed: int = 42,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.lengths = np.asarray(lengths)
        self.widths = self.lengths if widths is None else np.asarray(widths)
        self.by_length = by_length or tokens is not None
        self.seed = seed
        self.rank = rank
        self.world = world
        self.epoch = 0
        if tokens is None:
            cuts = list(range(0, len(self.lengths), size * world))
        else:
            cuts = cut_by_tokens(np.sort(self.widths), tokens * world)
        if len(cuts) > 1 and len(self.lengths) - cuts[-1] < world:
            cuts.pop()  # else some processes would get no example of the last batch
        self.cuts = [*cuts, len(self.lengths)]

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.cuts) - 1

    def __iter__(self) -> Iterator[list[int]]:
        return (rows.tolist() for rows in self.of_epoch(self.epoch))

    def of_epoch(self, epoch: int) -> list[np.ndarray]:
        """The batches of an epoch for this process."""
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
        """The padding of the first epoch, over all processes."""
        positions = sum(len(rows) * int(self.widths[rows].max()) for rows in self._global(0))
        return Padding(positions, positions - int(self.lengths.sum()))


def cut_by_tokens(lengths: np.ndarray, tokens: float, size: int | None = None) -> list[int]:
    """Where batches begin, if no padded batch may have more than `tokens` positions.

    Args:
        lengths: (n,) ascending or descending.
        size: The largest number of examples in a batch.
    """
    most = len(lengths) if size is None else size
    cuts = [0] if len(lengths) else []
    for row, length in enumerate(lengths):
        count = row + 1 - cuts[-1]
        longest = max(int(lengths[cuts[-1]]), int(length))
        if count > 1 and (count > most or count * longest > tokens):
            cuts.append(row)
    return cuts


def batches_by_length(
    lengths: np.ndarray | Sequence[int],
    *,
    tokens: int | None = None,
    size: int | None = None,
    longest_first: bool = False,
) -> list[np.ndarray]:
    """Rows in batches of similar length, the shortest first; equal lengths in their order.

    Args:
        lengths: (n,) the number of tokens of each row.
        tokens: The largest number of positions in a batch, padding included; a longer row is a batch by
            itself.
        size: The largest number of rows in a batch.
        longest_first: Fill batches from the longest row on, so that the incomplete batch has the shortest
            rows.
    """
    lengths = np.asarray(lengths)
    order = np.argsort(-lengths if longest_first else lengths, kind="stable")
    most = math.inf if tokens is None else tokens
    cuts = [*cut_by_tokens(lengths[order], most, size), len(order)]
    return [order[begin:end] for begin, end in pairwise(cuts)]


def steps_per_epoch(batches: Batches, accumulation: int) -> int:
    """The number of optimizer steps per epoch."""
    return math.ceil(len(batches) / accumulation)
