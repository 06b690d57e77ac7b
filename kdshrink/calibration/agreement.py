"""How often a calibrated student predicts what its teacher does, by language, on texts without labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from ..data.encoding import Collator
from ..data.registry import Task
from ..data.sampling import language_codes
from ..evaluation.evaluator import NotFiniteError, Predictions, not_finite, predict

_FEWEST = 10
"""Predictions of a language below which their share says nothing."""


def agreement(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    table: Dataset,
    encoded: Dataset,
    *,
    task: Task,
    collate: Collator,
    teacher_ids: Tensor | None,
    device: torch.device,
) -> dict[str, float]:
    """The share of predictions in which a student agrees with its teacher, by language.

    A prediction is a text's class. For token tasks it is a word's, and of the words only those count to
    which either gives another class than the one that the teacher gives most often (O), since on the rest any
    two models agree. A language with fewer than ten predictions is left out: few of the shipped sentences have an
    entity.

    Args:
        table, encoded: The texts, and the same tokenised for the student.
        teacher_ids: For each of the student's tokens the teacher's id; None if the vocabularies are the same.

    Raises:
        ModelError: A prediction is not finite.
    """
    of_teacher = replace(collate, compact_ids=None if teacher_ids is None else teacher_ids.cpu())

    def predicted(who: str, model: PreTrainedModel, ids: Collator) -> Predictions:
        try:
            return predict(
                model, encoded, task=task, collate=ids, batch_size=None, device=device, shared=False
            )
        except NotFiniteError as error:
            raise not_finite(who, table, error.row) from error

    found = [
        predicted("The teacher", teacher, of_teacher),
        predicted("The calibrated student", student, collate),
    ]
    wanted, given = (one.classes for one in found)
    codes, languages = language_codes(table)
    if found[0].bounds is not None:
        codes = np.repeat(codes, np.diff(found[0].bounds))
    counted = wanted >= 0
    if task == "token" and counted.any():
        usual = np.bincount(wanted[counted]).argmax()
        counted &= (wanted != usual) | (given != usual)
    shares = {}
    for code, language in enumerate(languages):
        here = counted & (codes == code)
        if here.sum() >= _FEWEST:
            shares[language] = float((wanted[here] == given[here]).mean())
    return shares
