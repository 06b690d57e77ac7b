"""The objective on a development set without labels, as its score."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from ..data.batching import batches_by_length
from ..data.encoding import Collator, examples_at, token_counts
from ..data.sampling import language_codes
from ..evaluation.evaluator import not_finite
from ..evaluation.results import EvalResult, LanguageScore
from ..models.devices import evaluation_precision
from .model import DistillationModel
from .teacher import Teacher


@dataclass(frozen=True)
class LossEvaluator:
    """Scores a student without labels, by the negative loss on a development set.

    Attributes:
        table, encoded: The development set, and the same tokenised.
        learner: The student to score, with its objective.
    """

    table: Dataset
    encoded: Dataset
    learner: DistillationModel
    teacher: Teacher
    collate: Collator
    batch_size: int
    device: torch.device

    @torch.no_grad()
    def score(self, model: PreTrainedModel) -> EvalResult:
        assert model is self.learner.student
        with evaluation_precision(self.device):
            return self._score()

    def _score(self) -> EvalResult:
        training = self.learner.training
        self.learner.eval()
        began = time.perf_counter()
        codes, languages = language_codes(self.table)
        lengths = token_counts(self.encoded)
        scores = {}
        for code, language in enumerate(languages):
            rows = np.flatnonzero(codes == code)
            total = 0.0
            for places in batches_by_length(lengths[rows], size=self.batch_size):
                chosen = rows[places]
                batch = self.collate(examples_at(self.encoded, chosen))
                batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
                targets = self.teacher.targets(batch["input_ids"], batch["attention_mask"])
                terms = self.learner(**batch, targets=targets)
                objective = self.learner.objective
                loss = sum(float(value) * objective.weight(name) for name, value in terms.items())
                if not math.isfinite(loss):
                    raise not_finite("The student, or its teacher,", self.table, int(chosen[0]))
                total += loss * len(chosen)
            scores[language] = LanguageScore(-total / len(rows), len(rows))
        self.learner.train(training)
        examples = len(self.table)
        return EvalResult(
            metric="negative_loss",
            score=sum(row.score * row.examples for row in scores.values()) / examples,
            details={},
            mean_over_languages=float(np.mean([row.score for row in scores.values()])),
            per_language=scores,
            examples=examples,
            examples_per_second=examples / (time.perf_counter() - began),
        )
