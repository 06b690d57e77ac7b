"""Scores of the teacher, the untrained student and the distilled student (--compare)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.languages import comparable
from ..data.load import TaskData
from ..data.sampling import language_codes
from ..evaluation.evaluator import Evaluator, make_evaluator
from ..evaluation.groups import LanguageGroups
from ..models.devices import to_device
from ..models.loading import load_weights
from ..models.source import Source
from ..progress import Progress
from .student import Student


class Comparison:
    """Scores of the models on the test split, for languages seen in training and unseen ones.

    The constructor scores the teacher and the untrained student.

    Args:
        test: The test split, in all its languages.
        trained_on: The languages that the student is trained on.
        teacher: The teacher's files; the model is loaded for this only.
        tokenizer: The teacher's.
        max_length: Tokens that a text is truncated to.
        seed: Of the student's head, where its files have none.
    """

    def __init__(
        self,
        test: TaskData,
        trained_on: Sequence[str],
        teacher: Source,
        tokenizer: PreTrainedTokenizerBase,
        student: Student,
        device: torch.device,
        progress: Progress,
        *,
        max_length: int,
        seed: int,
    ) -> None:
        present = language_codes(test.splits["test"])[1]
        trained = {comparable(name) for name in trained_on}
        self._groups = LanguageGroups(
            seen=[name for name in present if comparable(name) in trained],
            unseen=[name for name in present if comparable(name) not in trained],
        )
        self._models: dict[str, Any] = {}
        self._progress = progress
        options: Any = {"max_length": max_length, "batch_size": None, "device": device}
        evaluator = make_evaluator(test, "test", tokenizer, teacher, **options)
        whole = to_device(load_weights(teacher, teacher.task), device)
        self._add("teacher", whole, evaluator)
        named = {**student.source.config, "id2label": dict(enumerate(student.labels))}
        labelled = replace(student.source, config=named)
        self._evaluator = make_evaluator(test, "test", student.tokenizer, labelled, **options)
        untrained = to_device(student.load(teacher.task, seed), device)
        self._add("untrained student", untrained, self._evaluator)

    def add_distilled(self, model: PreTrainedModel) -> None:
        """Score the student after training."""
        self._add("distilled student", model, self._evaluator)

    @torch.no_grad()
    def _add(self, name: str, model: PreTrainedModel, evaluator: Evaluator) -> None:
        scores = {
            group: None if result is None else result.to_dict()
            for group, result in self._groups.score(evaluator, model, self._progress).items()
        }
        self._models[name] = {"parameters": model.num_parameters(), **scores}

    def to_dict(self) -> dict[str, Any]:
        scores = next(iter(self._models.values()))
        metric = (scores["seen"] or scores["unseen"])["metric"]
        return {"metric": metric, "models": self._models}
