"""The text that a sweep goes over, with what both models compute on it so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..progress import Progress
from .batch import Batch
from .store import Spill

Ids = Callable[[Batch], tuple[Tensor, Tensor]]
"""Gives a batch's ids for the teacher and for the student, both (B, T), padded."""

TEACHER_HIDDEN, TEACHER_RESIDUAL, STUDENT_HIDDEN, STUDENT_BRANCH, WEIGHT = (
    "teacher_hidden",
    "teacher_residual",
    "student_hidden",
    "student_branch",
    "weight",
)
"""What is spilled for each token: the teacher's hidden state and the sum before its next norm, the
student's hidden state and what its layer is at, and how much the token counts."""


def dropped_post_attention(number: int) -> str:
    """What is spilled of the number-th layer (from 0) that a block drops: its state before the FFN."""
    return f"dropped-{number}"


class Stream:
    """Batches, what is spilled of them, and the basis in which the student sees the teacher.

    Attributes:
        basis: P (teacher's width, student's width) with orthonormal columns; None where the widths are
            equal, for the identity.
        positions: The teacher's and the student's embeddings of relative positions, where their
            attention reads such.

    Args:
        widths: Of the teacher and of the student.
        dropped: How many layers a block drops at most.
        passes: How often the text will be gone over, for the progress.
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
        """One pass over the text."""
        for batch in self._batches:
            yield batch
            self._done += 1
            self._progress("calibrate", self._done, self._total, {})

    def read(self, name: str, batch: Batch) -> Tensor:
        return self._spill.read(name, batch)

    def write(self, name: str, batch: Batch, rows: Tensor) -> None:
        self._spill.write(name, batch, rows)

    def project(self, x: Tensor) -> Tensor:
        """From the teacher's basis to the student's, along the last axis: x P."""
        return x if self.basis is None else x @ self.basis.to(x)

    def project_out(self, weight: Tensor) -> Tensor:
        """A map (out, in) into the teacher's hidden states, into the student's: Pᵀ W."""
        return self.project(weight.T).T
