"""The calibration texts, with both models' activations on them up to the current layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..progress import Progress
from .batch import Batch
from .store import Spill

Ids = Callable[[Batch], tuple[Tensor, Tensor]]
"""Gives a batch's padded input ids for the teacher and for the student, both (B, T)."""

TEACHER_HIDDEN, TEACHER_RESIDUAL, STUDENT_HIDDEN, STUDENT_BRANCH, WEIGHT = (
    "teacher_hidden",
    "teacher_residual",
    "student_hidden",
    "student_branch",
    "weight",
)
"""Arrays on disk with one row per token: the teacher's hidden states, which are while a layer is fitted the
residual sum after the FFN of the block's last layer, before its norm; the residual sum after that layer's
attention; the student's hidden states and the latest intermediate values of the layer that is being fitted;
the token's weight in the regressions."""


def dropped_post_attention(number: int) -> str:
    """The array of the teacher's states between attention and FFN, in a block's dropped layer (from 0)."""
    return f"dropped-{number}"


class Stream:
    """Batches of texts, their activations on disk, and the basis that maps teacher to student.

    Attributes:
        basis: P (teacher's width, student's width) with orthonormal columns; None for the identity,
            where the widths are equal.
        positions: The teacher's and the student's embeddings of relative positions; None where there
            are none.

    Args:
        ids: Gives the input ids of a batch.
        widths: Hidden sizes of the teacher and of the student.
        dropped: How many of the teacher's layers one layer of the student replaces at most, minus 1.
        passes: Number of passes over the texts to come, for the progress.
        folder: Where activations are stored.
    """

    def __init__(
        self,
        batches: Sequence[Batch],
        ids: Ids,
        widths: tuple[int, int],
        *,
        dropped: int,
        passes: int,
        folder: Path,
        device: torch.device,
        progress: Progress,
    ) -> None:
        wide, narrow = widths
        arrays = {
            TEACHER_HIDDEN: wide,
            TEACHER_RESIDUAL: wide,
            STUDENT_HIDDEN: narrow,
            STUDENT_BRANCH: narrow,
            WEIGHT: 1,
        }
        arrays |= {dropped_post_attention(number): wide for number in range(dropped)}
        self._spill = Spill(folder, arrays, sum(batch.tokens for batch in batches), device)
        self._batches = batches
        self._progress = progress
        self._done, self._total = 0, passes * len(batches)
        self.ids = ids
        self.device = device
        self.basis: Tensor | None = None
        self.positions: tuple[Tensor, Tensor] | None = None

    def batches(self) -> Iterator[Batch]:
        """One pass over the texts."""
        for batch in self._batches:
            yield batch
            self._done += 1
            self._progress("calibrate", self._done, self._total, {})

    def read(self, name: str, batch: Batch) -> Tensor:
        return self._spill.read(name, batch)

    def write(self, name: str, batch: Batch, rows: Tensor) -> None:
        self._spill.write(name, batch, rows)

    def project(self, x: Tensor) -> Tensor:
        """Project the teacher's hidden states, along the last axis, to the student's width: x P."""
        return x if self.basis is None else x @ self.basis.to(x)

    def project_out(self, weight: Tensor) -> Tensor:
        """Project the output axis of a weight (out, in) from the teacher's width to the student's: Pᵀ W."""
        return self.project(weight.T).T
