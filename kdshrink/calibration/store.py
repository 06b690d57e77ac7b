"""Activations of many batches, on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .batch import Batch


class Spill:
    """Float32 arrays with one row per token, each in a memory-mapped file.

    A file is mapped for one batch at a time, since mapped pages count as memory of the process.

    Args:
        folder: Where the files go.
        widths: The width of each array by name.
        rows: Tokens of all batches.
        device: Where `read` puts what it reads.

    Raises:
        OSError: The disk has no room for them.
    """

    def __init__(
        self, folder: Path, widths: Mapping[str, int], rows: int, device: torch.device
    ) -> None:
        self._folder, self._widths, self._device = folder, widths, device
        for name, width in widths.items():
            with (folder / name).open("wb") as file:
                file.truncate(4 * width * rows)
                if hasattr(os, "posix_fallocate"):
                    # Reserved now, since a write to a mapped file on a full disk kills the process.
                    os.posix_fallocate(file.fileno(), 0, 4 * width * rows)

    def _mapped(self, name: str, batch: Batch) -> np.memmap:
        width = self._widths[name]
        return np.memmap(
            self._folder / name,
            dtype=np.float32,
            mode="r+",
            offset=4 * width * batch.begin,
            shape=(batch.tokens, width),
        )

    def read(self, name: str, batch: Batch) -> Tensor:
        """The rows of a batch, (tokens, width), on the device."""
        return torch.from_numpy(np.array(self._mapped(name, batch))).to(self._device)

    def write(self, name: str, batch: Batch, rows: Tensor) -> None:
        self._mapped(name, batch)[:] = rows.cpu().numpy()
