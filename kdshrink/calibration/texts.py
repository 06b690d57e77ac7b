"""Texts that a student is calibrated on: a sample of each language, some copies of them disturbed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..data.encoding import Collator, examples_at
from ..data.load import TaskData
from ..data.registry import Task
from ..data.sampling import language_codes, sample_rows
from .batch import Batch

_EXCHANGED = 0.5
"""The share of a disturbed copy's pieces that are exchanged for any of the vocabulary."""


@dataclass(frozen=True)
class CalibrationData:
    """What a student is calibrated on.

    Attributes:
        table: The texts, with `text` and `language`.
        max_length: Tokens that a text is cut to.
        copies: Disturbed copies of the texts that are read too, as a share of them.
    """

    table: Dataset
    task: Task
    max_length: int
    copies: float

    @classmethod
    def sample(
        cls, data: TaskData, per_language: int, *, max_length: int, copies: float
    ) -> CalibrationData:
        """At most so many texts of each language of the training split, the same whatever the seed."""
        table = data.splits["train"]
        return cls(
            table.select(sample_rows(table, per_language, "calibration")),
            data.task,
            max_length,
            copies,
        )

    def counts(self) -> dict[str, int]:
        """Texts by language."""
        codes, languages = language_codes(self.table)
        counts = np.bincount(codes, minlength=len(languages))
        return dict(zip(languages, counts.tolist(), strict=True))


class Texts:
    """Encoded texts, and after them disturbed copies of some, in which pieces are exchanged at random.

    A copy's pieces are drawn from the whole vocabulary. So the student is fitted to what the teacher
    makes of pieces too that the text does not have, as those of languages that are not in it.

    Args:
        encoded: Texts as `encoding.encode` makes them.
        teacher_ids: For each of the student's ids the teacher's; None if they are the same.
        copies: Disturbed copies, as a share of the texts.
    """

    def __init__(
        self,
        encoded: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        teacher_ids: Tensor | None,
        device: torch.device,
        copies: float,
    ) -> None:
        self._examples = encoded.select_columns(["input_ids"])
        self._collate = Collator(int(tokenizer.pad_token_id))
        self._special = np.asarray(sorted(set(tokenizer.all_special_ids)))
        self._ordinary = np.setdiff1d(np.arange(len(tokenizer)), self._special)
        self._teacher_ids, self._device = teacher_ids, device
        lengths = np.asarray(encoded["length"])
        order = np.random.default_rng(0).permutation(len(lengths))
        copied = np.resize(order, round(copies * len(lengths)))
        self._rows = np.concatenate([np.arange(len(lengths)), copied])
        self.lengths = lengths[self._rows].tolist()

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """A batch's ids for the teacher and for the student, both (B, T)."""
        rows = self._rows[list(batch.texts)]
        examples = [
            self._disturbed(example["input_ids"], text) if text >= len(self._examples) else example
            for text, example in zip(batch.texts, examples_at(self._examples, rows), strict=True)
        ]
        student_ids = self._collate(examples)["input_ids"].to(self._device)
        return (
            student_ids if self._teacher_ids is None else self._teacher_ids[student_ids]
        ), student_ids

    def _disturbed(self, ids: Sequence[int], seed: int) -> dict[str, Any]:
        rng, changed = np.random.default_rng(seed), np.asarray(ids)
        chosen = (rng.random(len(changed)) < _EXCHANGED) & ~np.isin(changed, self._special)
        changed[chosen] = rng.choice(self._ordinary, int(chosen.sum()))
        return {"input_ids": changed}
