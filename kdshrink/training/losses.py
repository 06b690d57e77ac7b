"""The terms of a loss, and the cross-entropy with the labels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from ..data.encoding import IGNORED


@dataclass(frozen=True)
class Term:
    """One term of the loss: a sum (scalar, float32) and the number of summands (scalar)."""

    total: Tensor
    count: Tensor

    @property
    def mean(self) -> Tensor:
        """The sum divided by the count; 0 if the count is 0."""
        return self.total / self.count.clamp_min(1)


def task_cross_entropy(logits: Tensor, labels: Tensor) -> Term:
    """Cross-entropy with the gold labels, over examples or labelled tokens.

    Args:
        logits: (B, C) or (B, T, C).
        labels: (B) or (B, T), -100 at positions without a label.
    """
    total = functional.cross_entropy(
        logits.float().flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return Term(total, (labels != IGNORED).sum())
