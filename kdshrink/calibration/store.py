"""Activations of many batches, on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .batch import Batch


class Spill:
    """Float32 arrays with one row per token, each in a file.

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
                    # Reserved now, so that a full disk is told before the work.
                    os.posix_fallocate(file.fileno(), 0, 4 * width * rows)

    def read(self, name: str, batch: Batch) -> Tensor:
        """The rows of a batch, (tokens, width), on the device."""
        rows = torch.empty(batch.tokens, self._widths[name])
        with (self._folder / name).open("rb", buffering=0) as file:
            file.seek(rows[0].nbytes * batch.begin)
            count = file.readinto(rows.numpy().data)
        assert count == rows.nbytes
        return rows.to(self._device)

    def write(self, name: str, batch: Batch, rows: Tensor) -> None:
        content = rows.float().contiguous().cpu().numpy()
        with (self._folder / name).open("r+b") as file:
            file.seek(content[:1].nbytes * batch.begin)
            file.write(content.data)
