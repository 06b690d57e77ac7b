"""Scores by whether a model was trained on a language."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..progress import Progress, silent
from .evaluator import Evaluator
from .results import EvalResult


@dataclass(frozen=True)
class LanguageGroups:
    """The languages of an evaluation that a model was trained on (seen), and those that it was not."""

    seen: Sequence[str]
    unseen: Sequence[str]

    def score(
        self, evaluator: Evaluator, model: torch.nn.Module, progress: Progress = silent
    ) -> dict[str, EvalResult | None]:
        """Scores of `seen` and of `unseen`; None for a group without a language."""
        return {
            name: evaluator.part(languages).score(model, progress) if languages else None
            for name, languages in (("seen", self.seen), ("unseen", self.unseen))
        }
