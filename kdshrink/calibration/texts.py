"""Calibration texts: a sample of each language, and noised copies of some of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..data.encoding import Collator, as_words, encode, examples_at
from ..data.languages import language_of
from ..data.load import TaskData, load_data
from ..data.registry import Task
from ..data.request import DataRequest
from ..data.sampling import language_codes, sample_rows
from .batch import Batch

_REPLACED = 0.5
"""The share of a noised copy's tokens that are replaced by random ones."""
_HELD_OUT = 20
"""Texts of each language on which teacher and student are compared."""


@dataclass(frozen=True)
class CalibrationData:
    """The data to calibrate a student on. Tables have the columns `text` and `language`.

    Attributes:
        table: The texts.
        sentences: Sentences in further languages, which ship with kdshrink.
        held_out: Other texts in all these languages, to compare the student with the teacher on.
        task: The task of the data.
        max_length: Tokens that a text is truncated to.
        copies: Number of noised copies, as a share of the number of texts and sentences.
    """

    table: Dataset
    sentences: Dataset
    held_out: Dataset
    task: Task
    max_length: int
    copies: float

    @classmethod
    def sample(
        cls,
        data: TaskData,
        per_language: int,
        *,
        max_length: int,
        copies: float,
        multilingual: float,
        unlabelled: TaskData | None = None,
    ) -> CalibrationData:
        """Sample up to `per_language` training texts of each language; the same ones for any seed.

        Args:
            multilingual: Number of shipped sentences, as a share of the number of texts.
            unlabelled: Further texts, for the same task.
        """
        sources = [data] if unlabelled is None else [data, unlabelled]
        everything = concatenate_datasets(
            [source.splits["train"].select_columns(["text", "language"]) for source in sources]
        )
        chosen = sample_rows(everything, per_language, "calibration")
        table = everything.select(chosen)
        rest = everything.select(np.setdiff1d(np.arange(len(everything)), chosen))
        held_out = [_at_most(rest, _HELD_OUT)]
        sentences = table.select(range(0))
        if multilingual:
            languages = [language for source in sources for language in source.languages]
            sentences = shipped_sentences("train", data.task, languages)
            sentences = _evenly(sentences, round(multilingual * len(table)))
            held_out.append(shipped_sentences("validation", data.task, languages))
        return cls(table, sentences, concatenate_datasets(held_out), data.task, max_length, copies)

    def counts(self) -> dict[str, int]:
        """Number of texts by language."""
        codes, languages = language_codes(self.table)
        counts = np.bincount(codes, minlength=len(languages))
        return dict(zip(languages, counts.tolist(), strict=True))


def shipped_sentences(
    split: Literal["train", "validation"], task: Task, without: Iterable[str]
) -> Dataset:
    """The sentences that ship with kdshrink, in 40 languages, for token tasks as words.

    Args:
        without: Languages to leave out.
    """
    with resources.as_file(resources.files("kdshrink.calibration") / "sentences") as folder:
        data = load_data(
            DataRequest(data=str(folder)), (split,), purpose="evaluate", labels="unused"
        )
    codes = {language_of(name) for name in without}
    kept = [language_of(name) not in codes for name in data.splits[split]["language"]]
    table = data.splits[split].select_columns(["text", "language"]).select(np.flatnonzero(kept))
    return as_words(table) if task == "token" else table


def repeated_sentences(
    count: int,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    task: Task,
    without: Iterable[str],
) -> Dataset:
    """At least so many of the sentences to train on, as many of each language; each several times if need be.

    None of them has a token that is unknown to the tokenizer; there are none where all have.

    Args:
        task, without: As in `shipped_sentences`.
    """
    table = shipped_sentences("train", task, without)
    encoded = encode(table, tokenizer, task=task, max_length=max_length, label_ids=None)
    table = _evenly(table.select(known_rows(encoded, tokenizer)), count)
    rows = np.arange(len(table))
    return table.select(np.resize(rows, count) if 0 < len(rows) < count else rows)


def known_rows(encoded: Dataset, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The rows of the texts that have no unknown token."""
    unknown = tokenizer.unk_token_id
    return [row for row, ids in enumerate(encoded["input_ids"]) if unknown not in ids]


def _evenly(table: Dataset, count: int) -> Dataset:
    """At least `count` texts, as many of each language; fewer if there are no more."""
    languages = max(1, len(set(table["language"])))
    return _at_most(table, -(-count // languages))


def _at_most(table: Dataset, per_language: int) -> Dataset:
    if not len(table):
        return table
    return table.select(sample_rows(table, per_language, "calibration"))


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
