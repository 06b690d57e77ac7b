"""What a distillation was good for: the teacher, the untrained student and the distilled one."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from .data import TaskData, language_codes
from .evaluation import Evaluator
from .languages import language_of
from .progress import Progress


class Comparison:
    """Scores of several models on a test split, languages seen in training and unseen ones apart.

    Args:
        test: Holds the test split, in all languages.
        trained: The languages that the student is trained on.
    """

    def __init__(self, test: TaskData, trained: tuple[str, ...]) -> None:
        present = language_codes(test.splits["test"])[1]
        seen = {language_of(name) for name in trained}
        self._groups = {
            "seen": [name for name in present if language_of(name) in seen],
            "unseen": [name for name in present if language_of(name) not in seen],
        }
        self._models: dict[str, Any] = {}

    @torch.no_grad()
    def add(
        self, name: str, model: PreTrainedModel, evaluator: Evaluator, progress: Progress
    ) -> None:
        """Score a model with what evaluates it on the whole test split."""
        scores = {
            group: evaluator.part(languages).score(model, progress).to_dict() if languages else None
            for group, languages in self._groups.items()
        }
        self._models[name] = {"parameters": model.num_parameters(), **scores}

    def to_dict(self) -> dict[str, Any]:
        scores = next(iter(self._models.values()))
        metric = (scores["seen"] or scores["unseen"])["metric"]
        return {"metric": metric, "models": self._models}
