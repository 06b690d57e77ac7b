"""The teacher's targets for the training data, as the batches of a run ask for them."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from ..data.batching import Batches, batches_by_length
from ..data.encoding import EncodedArrays, token_counts
from ..distributed import is_on_several_machines, largest
from ..errors import UsageError
from ..files import existing
from ..models.devices import HostCopies, execution_on
from ..models.onednn import packed_linears
from ..models.sharding import is_sharded
from ..models.source import fingerprint
from .cache import ExampleTargets, TargetCache, TargetShape
from .teacher import Targets, Teacher, finite, join_targets, split_targets, tensors_of, with_tensors

logger = logging.getLogger(__name__)

_GROUP = 4
"""Batches in a group, at most."""
_GROUP_BYTES = 2 * 1024**3
"""Targets that a group of batches may take."""

CacheMode = Literal["auto", "none", "logits", "all"]


class TargetLoader(ABC):
    """Gives the teacher's targets for each batch of a training run.

    Args:
        teacher: The teacher, on its device.
        batches: The batches of each epoch.
        cache: Keeps targets on disk across epochs; None keeps none.
    """

    def __init__(
        self, teacher: Teacher, batches: Batches, cache: TargetCache | None = None
    ) -> None:
        self.teacher = teacher
        self.batches = batches
        self.cache = cache
        self.device = teacher.recorder.model.device
        self.sharded = is_sharded(teacher.recorder.model)
        self._plan: tuple[int, list[np.ndarray]] | None = None

    @property
    @abstractmethod
    def first_bad(self) -> int | None:
        """A first example for which the teacher's output is not finite; None without one.

        Reading it waits for the device.
        """

    @abstractmethod
    def of_batch(
        self,
        epoch: int,
        index: int,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        begin: int = 0,
    ) -> Targets:
        """The targets of an epoch's batch, or of a part of it, on the device.

        Args:
            index: Of the batch within the epoch, from 0.
            input_ids, attention_mask: The examples, (B, T), on the device.
            begin: The place of the first of them in the batch.
        """

    def planned(self, epoch: int) -> list[np.ndarray]:
        """The rows of an epoch's batches."""
        if self._plan is None or self._plan[0] != epoch:
            self._plan = epoch, self.batches.of_epoch(epoch)
        return self._plan[1]

    def cached(self, rows: Sequence[int], width: int) -> Targets:
        """The targets of these examples out of the cache, padded to `width`."""
        assert self.cache is not None
        return self.joined(self.cache.read(rows), width)

    def joined(self, examples: Sequence[ExampleTargets], width: int) -> Targets:
        recorder = self.teacher.recorder
        return join_targets(
            examples,
            embedding=recorder.embedding,
            centred=recorder.centred,
            device=self.device,
            width=width,
        )

    def is_cached(self, rows: Sequence[int]) -> bool:
        return self.cache is not None and self.cache.has(rows)

    def needed(self, missing: bool) -> bool:
        """Whether the teacher must run: for this process's examples, or, if it is sharded, for anyone's."""
        # Without a cache all processes are at the same batch, so that they agree anyway.
        if self.sharded and self.cache is not None:
            return bool(largest(missing, self.device))
        return missing


class BatchTargets(TargetLoader):
    """The teacher runs on the batch that is on the device for the student, which asks little of the host."""

    def __init__(
        self, teacher: Teacher, batches: Batches, cache: TargetCache | None = None
    ) -> None:
        super().__init__(teacher, batches, cache)
        self._examples = max(map(len, batches.of_epoch(0)))
        self._none = torch.full((), torch.iinfo(torch.int64).max, device=self.device)
        self._first_bad = self._none.clone()
        self._copied: tuple[list[int], Targets, HostCopies] | None = None

    @property
    def first_bad(self) -> int | None:
        found = int(self._first_bad)
        if found == int(self._none):
            return None
        number, place = divmod(found, self._examples)
        epoch, index = divmod(number, len(self.batches))
        return int(self.batches.of_epoch(epoch)[index][place])

    def of_batch(
        self,
        epoch: int,
        index: int,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        begin: int = 0,
    ) -> Targets:
        rows: list[int] = []
        if self.cache is not None:
            rows = self.planned(epoch)[index][begin : begin + len(input_ids)].tolist()
            self._write()
            if not self.needed(not self.is_cached(rows)):
                return self.cached(rows, input_ids.shape[1])
        targets = self.teacher.targets(input_ids, attention_mask)
        is_finite = finite(targets, attention_mask)
        places = (epoch * len(self.batches) + index) * self._examples + begin
        first = is_finite.byte().argmin() + places
        bad = torch.where(is_finite.all(), self._none, first)
        self._first_bad = torch.minimum(self._first_bad, bad)
        if self.cache is not None:
            self._copied = rows, targets, HostCopies(tensors_of(targets))
        return targets

    def _write(self) -> None:
        """Write the targets of the batch before to the cache, whose copies came during a step."""
        if self._copied is None or self.cache is None:
            return
        rows, targets, copies = self._copied
        self._copied = None
        lengths = self.batches.lengths[rows].tolist()
        on_host = with_tensors(targets, copies.read())
        self.cache.write(rows, split_targets(on_host, lengths, self.cache.shape.dtype))


class GroupedTargets(TargetLoader):
    """Targets are computed for a group of consecutive batches at once.

    Examples are sorted by length, so that the teacher runs on few, large inputs with little padding. Groups
    are counted from each epoch's first batch and always computed as a whole, so that a run that resumes
    within one gets the same bits.

    Args:
        examples: The tokenised training set.
        group: Batches in a group, at most.
        group_bytes: What the targets of a group take, at most; a batch is always one whole.
    """

    def __init__(
        self,
        teacher: Teacher,
        batches: Batches,
        examples: EncodedArrays,
        cache: TargetCache | None = None,
        group: int = _GROUP,
        group_bytes: int = _GROUP_BYTES,
    ) -> None:
        super().__init__(teacher, batches, cache)
        self.examples = examples
        self.group = group
        self.group_bytes = group_bytes
        self.positions = execution_on(self.device).positions
        self.packing = nullcontext() if self.sharded else packed_linears(self.device)
        self._rows = torch.full((), len(examples), device=self.device)
        self._first_bad = self._rows.clone()
        self._bytes = target_shape(teacher).bytes_of(batches.lengths)
        self._groups: tuple[int, np.ndarray] | None = None
        self._held: dict[int, ExampleTargets] = {}

    @property
    def first_bad(self) -> int | None:
        bad = int(self._first_bad)
        return None if bad == len(self.examples) else bad

    def of_batch(
        self,
        epoch: int,
        index: int,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        begin: int = 0,
    ) -> Targets:
        plan = self.planned(epoch)
        rows = plan[index][begin : begin + len(input_ids)].tolist()
        if self.needed(not self.is_cached(rows) and any(row not in self._held for row in rows)):
            self._held = {}  # freed first, so that two groups are never held at once
            begins = self._begins(epoch, plan)
            group = int(np.searchsorted(begins, index, side="right"))
            self._held = self._make(np.concatenate(plan[begins[group - 1] : begins[group]]))
        if self.is_cached(rows):
            return self.cached(rows, input_ids.shape[1])
        return self.joined([self._held.pop(row) for row in rows], input_ids.shape[1])

    def _begins(self, epoch: int, plan: Sequence[np.ndarray]) -> np.ndarray:
        """Where an epoch's groups begin among its batches, and the last one ends."""
        if self._groups is None or self._groups[0] != epoch:
            begins, size = [0], 0
            for number, rows in enumerate(plan):
                added = int(self._bytes[rows].sum())
                count = number - begins[-1]
                if count == self.group or (count and size + added > self.group_bytes):
                    begins.append(number)
                    size = 0
                size += added
            self._groups = epoch, np.array([*begins, len(plan)])
        return self._groups[1]

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
            batch = self.examples.inputs(examples)
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
            shortest = self.examples.inputs(batches[0][:1])
            self.teacher.targets(**{name: t.to(self.device) for name, t in shortest.items()})
        return made


def target_loader(
    teacher: Teacher, batches: Batches, examples: EncodedArrays, cache: TargetCache | None
) -> TargetLoader:
    """What gives the targets, as suits the teacher's device.

    Args:
        examples: The tokenised training set, with the ids that the models know.
    """
    if teacher.recorder.execution.groups_targets:
        own_lengths = examples.padded_to(())
        return GroupedTargets(teacher, batches, own_lengths, cache)
    return BatchTargets(teacher, batches, cache)


def held_bytes(teacher: Teacher, batches: Batches, group: int = _GROUP) -> int:
    """Bytes of the targets that a `target_loader` holds at once, at most."""
    sizes = target_shape(teacher).bytes_of(batches.lengths)
    largest_first = sorted((int(sizes[rows].sum()) for rows in batches.of_epoch(0)), reverse=True)
    if not teacher.recorder.execution.groups_targets:
        return largest_first[0]
    return max(largest_first[0], min(sum(largest_first[:group]), _GROUP_BYTES))


def target_shape(teacher: Teacher, *, token_logits: bool = False) -> TargetShape:
    """The sizes of an example's targets.

    Args:
        token_logits: Whether there are logits for each token.
    """
    recorder, config = teacher.recorder, teacher.recorder.model.config
    return TargetShape(
        states=recorder.embedding + (len(recorder.layers) if recorder.hidden else 0),
        width=config.hidden_size,
        attention=len(recorder.layers) if recorder.attention else 0,
        heads=config.num_attention_heads if recorder.heads is None else len(recorder.heads[0]),
        classes=0 if teacher.classes is None else len(teacher.classes),
        token_logits=token_logits,
        dtype=next(recorder.model.parameters()).dtype,
    )


def check_cache_mode(mode: CacheMode) -> None:
    """Refuse a cache whose file processes on several machines would write.

    Raises:
        UsageError: There are several machines.
    """
    if mode in ("logits", "all") and is_on_several_machines():
        raise UsageError(
            f"--cache-teacher {mode}: the processes are on several machines, and what one of them writes to "
            "a mapped file, another may not see.\nLeave it out, or give --cache-teacher none."
        )


def cache_bytes(
    mode: CacheMode,
    teacher: Teacher,
    encoded: Dataset,
    folder: Path,
    *,
    token_logits: bool,
    epochs: float,
) -> int | None:
    """Bytes of a cache on disk for a teacher's targets; None for "none", or where "auto" decides against it.

    "auto" makes one if there is more than one epoch, and the targets fit into a quarter of the memory (so
    that they are read from there) and into half of the free disk. It makes none on several machines, nor,
    on a GPU, of more than logits: the teacher's forward takes less than reading.

    Args:
        encoded: The tokenised training set.
        folder: Where to put it.
        token_logits: Whether there are logits for each token.
        epochs: Number of passes over the training set.
    """
    if mode == "none":
        return None
    shape = target_shape(teacher, token_logits=token_logits)
    size = shape.bytes(token_counts(encoded))
    if mode != "auto":
        return size
    if is_on_several_machines():
        return None
    if (shape.states or shape.attention) and not teacher.recorder.execution.keeps_activations:
        return None
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = shutil.disk_usage(existing(folder)).free
    return None if epochs <= 1 or size > min(memory // 4, free // 2) else size


def open_cache(
    mode: CacheMode,
    teacher: Teacher,
    directory: Path,
    encoded: Dataset,
    folder: Path,
    *,
    token_logits: bool,
    epochs: float,
) -> TargetCache | None:
    """A cache on disk for a teacher's targets, or None, as `cache_bytes` has it.

    Args:
        directory: The teacher's files.
        encoded, folder, token_logits, epochs: As of `cache_bytes`.

    Raises:
        OutputError: The disk has no room for it.
    """
    size = cache_bytes(mode, teacher, encoded, folder, token_logits=token_logits, epochs=epochs)
    if size is None:
        return None
    recorder, shape = teacher.recorder, target_shape(teacher, token_logits=token_logits)
    lengths = token_counts(encoded)
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
