"""The weights and settings of the loss terms of a distillation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Objective:
    """Weights and settings of the loss terms of a distillation.

    Attributes:
        weights: The weight of every term.
        attention_target: What the attention term compares: scores before the softmax, or probabilities.
        prediction_loss: Soft cross-entropy or mean squared error of the logits.
        temperature: Of the soft cross-entropy.
    """

    weights: Mapping[str, float]
    attention_target: Literal["scores", "probabilities"] = "probabilities"
    prediction_loss: Literal["soft-ce", "mse"] = "soft-ce"
    temperature: float = 1.0

    def weight(self, term: str) -> float:
        """The weight of a term."""
        return self.weights[term]
