"""The recipes of distill: what decides what the user does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Init = Literal["from-teacher", "from-base", "from-scratch", "calibrated"]


@dataclass(frozen=True)
class Recipe:
    """How a student is made and trained unless options say otherwise.

    Attributes:
        init: What it starts from.
        dropout: As --dropout.
        learning_rate: For a student that is 768 wide.
        by_width: Whether a narrower student's learning rate is higher, in inverse proportion to its width.
        warmup: Warm-up steps, as a share of all.
        epochs: Passes over the training data.
        most_steps: Optimizer steps at most, however many those passes have; None for any number.
        multilingual: As --multilingual.
    """

    init: Init
    dropout: float | None
    learning_rate: float
    by_width: bool
    warmup: float
    epochs: float
    most_steps: int | None
    multilingual: float

    def learning_rate_of(self, width: int) -> float:
        """The learning rate for a student of this hidden size."""
        return self.learning_rate * max(1.0, 768 / width) if self.by_width else self.learning_rate

    def steps(self, per_epoch: int) -> int:
        """The number of optimizer steps for a training set of so many an epoch."""
        steps = round(self.epochs * per_epoch)
        return steps if self.most_steps is None else min(steps, self.most_steps)


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "best": Recipe(
            init="calibrated",
            dropout=0.0,
            learning_rate=5e-5,
            by_width=True,
            warmup=0.1,
            epochs=30,
            most_steps=20_000,
            multilingual=0.2,
        ),
        "paper": Recipe(
            init="from-teacher",
            dropout=None,
            learning_rate=5e-5,
            by_width=False,
            warmup=0.0,
            epochs=30,
            most_steps=None,
            multilingual=0.0,
        ),
    }
)
