"""What a graph must hold to: fp32 that it computes what the model does, the others that they lose little by it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..errors import ModelError
from ..evaluation.results import EvalResult
from .graph import TOLERANCE, difference
from .runtime import OnnxClassifier, Output
from .schemes import Scheme


class Agreement(nn.Module):
    """A graph beside the model, or graph, that it was made from: it predicts as the graph, and notes where both differ.

    Attributes:
        largest: The largest relative difference of their logits so far.
        changed: How many predictions were others, of texts or of tokens.
    """

    def __init__(self, model: nn.Module, classifier: OnnxClassifier) -> None:
        super().__init__()
        self.model, self.classifier = model, classifier
        self.largest, self.changed = 0.0, 0

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Output:
        expected = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        found = self.classifier(input_ids, attention_mask).logits
        self.largest = max(self.largest, difference(expected, found, attention_mask))
        other = expected.argmax(-1) != found.argmax(-1)
        self.changed += int((other & attention_mask.bool() if other.dim() == 2 else other).sum())
        return Output(found)

    def check(self) -> None:
        """Raise ModelError where the two differ by more than rounding.

        A prediction may change by that alone where two classes are within the tolerance of each other.
        """
        if not self.largest <= TOLERANCE:
            raise ModelError(
                f"The exported graph does not compute what the model does: on the data's texts its logits "
                f"differ by up to {self.largest:.2g}, of {TOLERANCE:.0e} allowed, and {self.changed} "
                "predictions are others."
            )


@dataclass(frozen=True)
class Drop:
    """What one language lost, in points of the metric (0 to 100); less than 0 where it gained.

    Attributes:
        judged: Whether it has enough examples for the gate to tell.
    """

    score: float
    drop: float
    examples: int
    judged: bool

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "drop": round(self.drop, 3)}


@dataclass(frozen=True)
class Verdict:
    """What the gate says of one scheme.

    Attributes:
        drop: Points that are lost pooled over all languages.
        bytes: The size of the file, with weights beside it.
        difference: The largest relative difference of its logits from those of fp32; None where it was not
            measured.
    """

    scheme: Scheme
    score: float
    drop: float
    per_language: Mapping[str, Drop]
    passed: bool
    bytes: int
    difference: float | None = None

    @property
    def worst(self) -> tuple[str, float]:
        """The language that lost the most, of those judged if any is, and its drop in points."""
        judged = {name: row for name, row in self.per_language.items() if row.judged}
        rows = judged or self.per_language
        name = max(rows, key=lambda name: rows[name].drop)
        return name, rows[name].drop

    @property
    def loss(self) -> float:
        """The larger of the drops that count, in points."""
        return max([self.drop, *(row.drop for row in self.per_language.values() if row.judged)])

    def to_dict(self) -> dict[str, Any]:
        return {
            "precision": self.scheme.precision,
            "scheme": self.scheme.name,
            "kept_in_fp32": list(self.scheme.kept),
            "passed": self.passed,
            "score": self.score,
            "drop": round(self.drop, 3),
            "bytes": self.bytes,
            "difference": self.difference,
            "per_language": {name: row.to_dict() for name, row in self.per_language.items()},
        }


@dataclass(frozen=True)
class Gate:
    """Lets a graph pass that loses at most so much to its fp32, pooled and in each language.

    Attributes:
        reference: The scores of fp32.
        max_drop: Points of the metric, of 100.
    """

    reference: EvalResult
    max_drop: float
    least: int = field(init=False)

    def __post_init__(self) -> None:
        # With fewer examples than these one prediction weighs more than the drop that is allowed.
        least = math.ceil(100 / self.max_drop) if self.max_drop else 1
        object.__setattr__(self, "least", least)

    @property
    def too_small(self) -> list[str]:
        """The languages with too few examples to tell."""
        rows = self.reference.per_language
        return [name for name, row in rows.items() if row.examples < self.least]

    def judge(
        self, scheme: Scheme, found: EvalResult, size: int, difference: float | None = None
    ) -> Verdict:
        """Compare the scores of a scheme with those of fp32.

        Args:
            size, difference: As of `Verdict`; a graph whose logits are not all numbers does not pass.
        """
        drops = {}
        for name, row in found.per_language.items():
            drop = 100 * (self.reference.per_language[name].score - row.score)
            drops[name] = Drop(row.score, drop, row.examples, row.examples >= self.least)
        pooled = 100 * (self.reference.score - found.score)
        finite = difference is None or math.isfinite(difference)
        passed = finite and all(
            drop <= self.max_drop + 1e-9  # scores are rounded sums
            for drop in (pooled, *(row.drop for row in drops.values() if row.judged))
        )
        return Verdict(
            scheme, found.score, pooled, drops, passed, size, difference if finite else None
        )
