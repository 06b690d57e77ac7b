"""A teacher's targets on disk, memory-mapped, one example at a time."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import OutputError
from ..files import disk_errors, existing, to_json, write_json

_KEY = "key.json"
_DONE = "done.bin"


@dataclass(frozen=True)
class ExampleTargets:
    """A teacher's targets for one example of L tokens; None where they are not recorded.

    Attributes:
        states: (S, L, H): the embedding output, if recorded, and the hidden states of the mapped layers.
        attention: (M, heads, L, L), of the mapped layers.
        logits: (C,), or (L, C) for token tasks.
    """

    states: Tensor | None
    attention: Tensor | None
    logits: Tensor | None


@dataclass(frozen=True)
class TargetShape:
    """Sizes of an example's targets; 0 states, layers of attention or classes where not recorded."""

    states: int
    width: int
    attention: int
    heads: int
    classes: int
    token_logits: bool
    dtype: torch.dtype

    def shapes(self, length: int) -> dict[str, tuple[int, ...]]:
        """The shape of each recorded target by name, for an example of `length` tokens."""
        logits = (length, self.classes) if self.token_logits else (self.classes,)
        shapes: dict[str, tuple[int, ...]] = {
            "states": (self.states, length, self.width),
            "attention": (self.attention, self.heads, length, length),
            "logits": logits,
        }
        return {name: shape for name, shape in shapes.items() if 0 not in shape}

    def _sizes(self, lengths: np.ndarray) -> dict[str, np.ndarray]:
        long = lengths.astype(np.int64)
        return {
            "states": self.states * self.width * long,
            "attention": self.attention * self.heads * long**2,
            "logits": self.classes * (long if self.token_logits else np.ones_like(long)),
        }

    def offsets(self, lengths: np.ndarray) -> dict[str, np.ndarray]:
        """Offsets of the examples in the flat array of each target, (n + 1,)."""
        return {
            name: np.concatenate([[0], np.cumsum(size)])
            for name, size in self._sizes(lengths).items()
            if size.sum()
        }

    def bytes_of(self, lengths: np.ndarray) -> np.ndarray:
        """(n,) bytes that the targets of each example take."""
        return np.sum(list(self._sizes(lengths).values()), axis=0) * self.dtype.itemsize

    def bytes(self, lengths: np.ndarray) -> int:
        """Bytes that the targets of all examples take."""
        return int(self.bytes_of(lengths).sum())


class TargetCache:
    """The targets of a training set's examples, written as they are computed.

    Each kind of target is one flat, memory-mapped file. One byte per example says whether its targets are
    written, and is set after them. Disk space is reserved at once, since a write to a mapped file on a
    full disk kills the process. A folder with another key is emptied.

    Args:
        key: What the values depend on: teacher, data and settings.
        lengths: (n,) tokens of each example.
        shape: Sizes of an example's targets.

    Raises:
        OutputError: The disk has no room for it.
    """

    def __init__(
        self, folder: Path, key: Mapping[str, Any], lengths: np.ndarray, shape: TargetShape
    ) -> None:
        self.folder = folder
        self.shape = shape
        self.lengths = lengths
        self.offsets = shape.offsets(lengths)
        sizes = {name: int(ends[-1]) for name, ends in self.offsets.items()}
        bytes_of = {f"{name}.bin": size * shape.dtype.itemsize for name, size in sizes.items()}
        bytes_of[_DONE] = len(lengths)
        if not _is_of(folder, key, bytes_of):
            shutil.rmtree(folder, ignore_errors=True)
            require_room(folder, shape.bytes(lengths))
            folder.mkdir(parents=True)
            with disk_errors(folder):
                for file, size in bytes_of.items():
                    _reserve(folder / file, size)
                write_json(folder / _KEY, key)
        self.done = np.memmap(folder / _DONE, dtype=np.uint8, mode="r+")
        self.values = {
            name: torch.from_file(
                str(folder / f"{name}.bin"), shared=True, size=int(ends[-1]), dtype=shape.dtype
            )
            for name, ends in self.offsets.items()
        }

    def has(self, rows: Sequence[int]) -> bool:
        """Whether the targets of all these examples are written."""
        return bool(self.done[list(rows)].all())

    def write(self, rows: Sequence[int], examples: Sequence[ExampleTargets]) -> None:
        for row, example in zip(rows, examples, strict=True):
            for name, values in self.values.items():
                begin, end = self.offsets[name][row : row + 2]
                values[begin:end] = getattr(example, name).flatten()
        self.done[list(rows)] = 1

    def read(self, rows: Sequence[int]) -> list[ExampleTargets]:
        """The targets of these examples, as views of the files on the CPU."""
        return [self._example(row) for row in rows]

    def _example(self, row: int) -> ExampleTargets:
        parts: dict[str, Tensor] = {}
        for name, shape in self.shape.shapes(int(self.lengths[row])).items():
            begin, end = self.offsets[name][row : row + 2]
            parts[name] = self.values[name][begin:end].view(shape)
        return ExampleTargets(*(parts.get(name) for name in ("states", "attention", "logits")))


def _is_of(folder: Path, key: Mapping[str, Any], sizes: Mapping[str, int]) -> bool:
    try:
        whole = all((folder / file).stat().st_size == size for file, size in sizes.items())
        return whole and json.loads((folder / _KEY).read_text()) == json.loads(to_json(key))
    except (OSError, ValueError):
        return False


def require_room(folder: Path, size: int) -> None:
    """Raise OutputError unless the disk of a folder, which need not exist, has room for the targets."""
    free = shutil.disk_usage(existing(folder)).free
    if size > free:
        raise OutputError(
            f"{folder}: the teacher's targets take {size / 1e9:.1f} GB, and the disk has "
            f"{free / 1e9:.1f} GB free.\nMake room, or give --cache-teacher none."
        )


def _reserve(path: Path, size: int) -> None:
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
