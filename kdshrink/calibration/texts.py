"""Calibration texts: a sample of each language, and noised copies of some of them."""

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

_REPLACED = 0.5
"""The share of a noised copy's tokens that are replaced by random ones."""


@dataclass(frozen=True)
class CalibrationData:
    """The data to calibrate a student on.

    Attributes:
        table: The texts, with columns `text` and `language`.
        task: The task of the data.
        max_length: Tokens that a text is truncated to.
        copies: Number of noised copies, as a share of the number of texts.
    """

    table: Dataset
    task: Task
    max_length: int
    copies: float

    @classmethod
    def sample(
        cls, data: TaskData, per_language: int, *, max_length: int, copies: float
    ) -> CalibrationData:
        """Sample up to `per_language` training texts of each language; the same ones for any seed."""
        table = data.splits["train"]
        return cls(
            table.select(sample_rows(table, per_language, "calibration")),
            data.task,
            max_length,
            copies,
        )

    def counts(self) -> dict[str, int]:
        """Number of texts by language."""
        codes, languages = language_codes(self.table)
        counts = np.bincount(codes, minlength=len(languages))
        return dict(zip(languages, counts.tolist(), strict=True))


class Texts:
    """Encoded texts, followed by noised copies of some, in which tokens are replaced at random.

    Replacements are drawn from the whole vocabulary, so that the student is also fitted on tokens that
    the texts do not contain, such as those of other languages.

    Args:
        encoded: Texts as `encoding.encode` makes them.
        tokenizer: The student's.
        teacher_ids: For each of the student's tokens the teacher's id; None if the vocabularies are the
            same.
        copies: Number of noised copies, as a share of the number of texts.
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
        """The input ids of a batch for the teacher and for the student, both (B, T), padded."""
        rows = self._rows[list(batch.texts)]
        examples = [
            self._noised(example["input_ids"], text) if text >= len(self._examples) else example
            for text, example in zip(batch.texts, examples_at(self._examples, rows), strict=True)
        ]
        student_ids = self._collate(examples)["input_ids"].to(self._device)
        return (
            student_ids if self._teacher_ids is None else self._teacher_ids[student_ids]
        ), student_ids

    def _noised(self, ids: Sequence[int], seed: int) -> dict[str, Any]:
        rng, changed = np.random.default_rng(seed), np.asarray(ids)
        chosen = (rng.random(len(changed)) < _REPLACED) & ~np.isin(changed, self._special)
        changed[chosen] = rng.choice(self._ordinary, int(chosen.sum()))
        return {"input_ids": changed}
