"""The terms of a loss, and the cross-entropy with the labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from ..data.encoding import IGNORED
from ..models.activations import expanded_mask
from ..models.devices import execution_on


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


def task_loss(forward: nn.Module, model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """The mean cross-entropy of a classifier on a batch, a scalar.

    Args:
        forward: The model, perhaps wrapped.
        inputs: What it takes, and `labels`, (B,) or (B, T).
    """
    given = {name: tensor for name, tensor in inputs.items() if name != "labels"}
    if execution_on(inputs["labels"].device).expands_masks:
        given["attention_mask"] = expanded_mask(model, given["attention_mask"])
    return task_cross_entropy(forward(**given).logits, inputs["labels"]).mean
