"""The teacher's targets for the training data: computed for several batches at once, and cached."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from ..data.batching import Batches, batches_by_length
from ..data.encoding import examples_at, token_counts
from ..distributed import largest
from ..models.devices import forward_positions
from ..models.onednn import packed_linears
from ..models.sharding import is_sharded
from ..models.source import fingerprint
from .cache import ExampleTargets, TargetCache, TargetShape
from .teacher import Targets, Teacher, finite, join_targets, split_targets

logger = logging.getLogger(__name__)


class TargetLoader:
    """Gives the teacher's targets for each batch of a training run.

    They are computed for a group of consecutive batches at once, with examples sorted by length, so that
    the teacher runs on few, large inputs with little padding. Groups are counted from each epoch's first
    batch and always computed as a whole, so that a run that resumes within one gets the same bits.

    Args:
        teacher: The teacher, on its device.
        encoded: The tokenised training set.
        batches: The batches of each epoch.
        collate: Makes the teacher's inputs of examples.
        cache: Keeps targets on disk across epochs; None keeps none.
        group: Batches in a group.
    """

    def __init__(
        self,
        teacher: Teacher,
        encoded: Dataset,
        batches: Batches,
        collate: Callable[[Sequence[Any]], dict[str, Tensor]],
        cache: TargetCache | None = None,
        group: int = 4,
    ) -> None:
        self.teacher = teacher
        self.examples = encoded.select_columns(["input_ids"])
        self.batches = batches
        self.collate = collate
        self.device = teacher.recorder.model.device
        self.group = group
        self.positions = forward_positions(self.device.type)
        self.cache = cache
        self.sharded = is_sharded(teacher.recorder.model)
        self.packing = nullcontext() if self.sharded else packed_linears(self.device)
        self._rows = torch.full((), len(encoded), device=self.device)
        self._first_bad = self._rows.clone()
        self._plan: tuple[int, list[np.ndarray]] | None = None
        self._held: dict[int, ExampleTargets] = {}

    @property
    def first_bad(self) -> int | None:
        """The first example for which the teacher's output is not finite; None without one.

        Reading it waits for the device.
        """
        bad = int(self._first_bad)
        return None if bad == len(self.examples) else bad

    def of_batch(self, epoch: int, index: int, width: int = 0) -> Targets:
        """The targets of an epoch's batch, on the device.

        Args:
            index: Of the batch within the epoch, from 0.
            width: As in `join_targets`.
        """
        if self._plan is None or self._plan[0] != epoch:
            self._plan = epoch, self.batches.of_epoch(epoch)
        plan = self._plan[1]
        rows = plan[index].tolist()
        if self._missing(rows):
            first = index - index % self.group
            self._held = {}  # freed first, so that two groups are never held at once
            self._held = self._make(np.concatenate(plan[first : first + self.group]))
        if self.cache is not None and self.cache.has(rows):
            examples = self.cache.read(rows)
        else:
            examples = [self._held.pop(row) for row in rows]
        recorder = self.teacher.recorder
        return join_targets(
            examples,
            embedding=recorder.embedding,
            centred=recorder.centred,
            device=self.device,
            width=width,
        )

    def _missing(self, rows: Sequence[int]) -> bool:
        """Whether the teacher must run for these examples, or, if it is sharded, for those of any process."""
        cached = self.cache is not None and self.cache.has(rows)
        missing = not cached and any(row not in self._held for row in rows)
        # Without a cache all processes are at the same batch of a group, so that they agree anyway.
        if self.sharded and self.cache is not None:
            return bool(largest(missing, self.device))
        return missing

    def _make(self, rows: np.ndarray) -> dict[int, ExampleTargets]:
        """Run the teacher on these rows of the training set."""
        dtype = next(self.teacher.recorder.model.parameters()).dtype
        batches = [
            rows[places]
            for places in batches_by_length(self.batches.lengths[rows], tokens=self.positions)
        ]
        spare = largest(len(batches), self.device) - len(batches) if self.sharded else 0
        made: dict[int, ExampleTargets] = {}
        for examples in batches:
            chosen = examples.tolist()
            batch = self.collate(examples_at(self.examples, examples))
            inputs = {name: tensor.to(self.device) for name, tensor in batch.items()}
            with self.packing:
                targets = self.teacher.targets(**inputs)
            is_finite = finite(targets, inputs["attention_mask"])
            numbers = torch.as_tensor(chosen, device=self.device)
            bad = torch.where(is_finite, self._rows, numbers).min()
            self._first_bad = torch.minimum(self._first_bad, bad)
            split = split_targets(targets, self.batches.lengths[chosen].tolist(), dtype)
            made |= zip(chosen, split, strict=True)
            if self.cache is not None:
                self.cache.write(chosen, split)
        for _ in range(spare):  # another process has more batches, and each forward is collective
            shortest = self.collate(examples_at(self.examples, batches[0][:1]))
            self.teacher.targets(**{name: t.to(self.device) for name, t in shortest.items()})
        return made


def open_cache(
    mode: Literal["auto", "none", "logits", "all"],
    teacher: Teacher,
    directory: Path,
    encoded: Dataset,
    folder: Path,
    *,
    token_logits: bool,
    epochs: float,
) -> TargetCache | None:
    """A cache on disk for a teacher's targets; None for "none", or where "auto" decides against it.

    "auto" makes one if there is more than one epoch, and the targets fit into a quarter of the memory (so
    that they are read from there) and into half of the free disk.

    Args:
        directory: The teacher's files.
        encoded: The tokenised training set.
        folder: Where to put it.
        token_logits: Whether there are logits for each token.
        epochs: Number of passes over the training set.

    Raises:
        OutputError: The disk has no room for it.
    """
    if mode == "none":
        return None
    recorder, config = teacher.recorder, teacher.recorder.model.config
    shape = TargetShape(
        states=recorder.embedding + (len(recorder.layers) if recorder.hidden else 0),
        width=config.hidden_size,
        attention=len(recorder.layers) if recorder.attention else 0,
        heads=config.num_attention_heads,
        classes=0 if teacher.classes is None else len(teacher.classes),
        token_logits=token_logits,
        dtype=next(recorder.model.parameters()).dtype,
    )
    lengths = token_counts(encoded)
    size = shape.bytes(lengths)
    if mode == "auto":
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if epochs <= 1 or size > min(memory // 4, shutil.disk_usage(folder).free // 2):
            return None
    logger.info("the teacher's targets are kept on disk: %.2f GB", size / 1e9)
    key = {
        "teacher": fingerprint(directory),
        "data": _digest(encoded),
        "layers": list(recorder.layers),
        "hidden": recorder.hidden,
        "embedding": recorder.embedding,
        "attention": recorder.attention,
        "heads": recorder.heads,
        "classes": None if teacher.classes is None else teacher.classes.tolist(),
        "dtype": str(shape.dtype),
    }
    return TargetCache(folder / "targets", key, lengths, shape)


def _digest(encoded: Dataset) -> str:
    """A hash of the input ids of a training set, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for batch in encoded.select_columns(["input_ids"]).with_format("arrow").iter(10_000):
        ids = batch["input_ids"].combine_chunks()
        digest.update(ids.flatten().to_numpy().tobytes())
        digest.update(ids.value_lengths().to_numpy().tobytes())
    return digest.hexdigest()
