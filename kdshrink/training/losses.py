"""The loss of a batch by its labels, and what a term of a loss is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from ..data.encoding import IGNORED


@dataclass(frozen=True)
class Term:
    """A sum (scalar, float32) and the number of things summed (scalar)."""

    total: Tensor
    count: Tensor

    @property
    def mean(self) -> Tensor:
        """Sum over count; 0 where nothing counts."""
        return self.total / self.count.clamp_min(1)


def task_cross_entropy(logits: Tensor, labels: Tensor) -> Term:
    """Cross-entropy with gold labels, over examples or labelled tokens.

    Args:
        logits: (B, C) or (B, T, C).
        labels: (B) or (B, T), -100 where there is none.
    """
    total = functional.cross_entropy(
        logits.float().flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return Term(total, (labels != IGNORED).sum())
