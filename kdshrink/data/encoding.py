"""Prepares examples for a model: label ids, tokenisation, padding."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.utils.data
from datasets import Dataset, Features, List, Value, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from .registry import Task
from .tags import are_entities, from_iob2, scheme_of_labels

IGNORED = -100
"""The label of positions without one, which PyTorch's cross-entropy ignores."""


def needs_own_scheme(labels: Sequence[str], model_labels: Sequence[str]) -> bool:
    """Whether the data's entity tags, in IOB2, must be converted to the scheme of the model's."""
    scheme = scheme_of_labels(model_labels) if are_entities(labels) else None
    return scheme is not None and (scheme != "IOB2" or not set(labels) <= set(model_labels))


def in_scheme_of(table: Dataset, labels: Sequence[str], model_labels: Sequence[str]) -> Dataset:
    """Convert the tags of a token task's table to a model's class ids, in the model's tag scheme."""
    ids = {name: i for i, name in enumerate(model_labels)}

    def convert(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {
            "label": [
                [ids[tag] for tag in from_iob2([labels[i] for i in tags], model_labels)]
                for tags in batch["label"]
            ]
        }

    return table.map(convert, batched=True, features=table.features)


def encode(
    table: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    task: Task,
    max_length: int,
    label_ids: Sequence[int] | None,
) -> Dataset:
    """Tokenise a table of `TaskData`.

    Args:
        label_ids: The model's class id of each label (`match_labels`); None to leave labels out.

    Returns:
        A table with `input_ids`, `length`, `cut_off` and, with labels, `labels`: the example's class id,
        or for token tasks a class id at each word's first token and -100 elsewhere. `cut_off` is the
        number of words (for texts: 1 or 0) beyond max_length. Token tasks also have `positions`: the index
        of each word's first token, or -1 if the word was cut off or gives no token.
    """
    features = {
        "input_ids": List(Value("int32")),
        "length": Value("int32"),
        "cut_off": Value("int32"),
    }
    if task == "token":
        features["positions"] = List(Value("int32"))
    if label_ids is not None:
        features["labels"] = List(Value("int32")) if task == "token" else Value("int32")
    if not len(table):  # map would give a table without columns
        return Dataset.from_dict({name: [] for name in features}, Features(features))
    return table.map(
        _encode_batch,
        batched=True,
        remove_columns=table.column_names,
        features=Features(features),
        fn_kwargs={
            "tokenizer": tokenizer,
            "task": task,
            "max_length": max_length,
            "label_ids": None if label_ids is None else list(label_ids),
        },
    )


def _encode_batch(
    batch: dict[str, list[Any]],
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    max_length: int,
    label_ids: list[int] | None,
) -> dict[str, list[Any]]:
    split = task == "token"
    encoded = tokenizer(
        batch["text"], truncation=True, max_length=max_length, is_split_into_words=split
    )
    ids = encoded["input_ids"]
    result: dict[str, list[Any]] = {"input_ids": ids, "length": [len(one) for one in ids]}
    # The fast tokenizers return the part that is cut off as further encodings.
    cut = [bool(one.overflowing) for one in encoded.encodings]
    result["cut_off"] = [int(one) for one in cut]
    if split:
        result["positions"] = [
            first_tokens(encoded.word_ids(i), len(words)) for i, words in enumerate(batch["text"])
        ]
        result["cut_off"] = [
            _trailing(positions) if one else 0
            for one, positions in zip(cut, result["positions"], strict=True)
        ]
    if label_ids is not None and split:
        result["labels"] = [
            _labels_at(positions, [label_ids[tag] for tag in tags], len(one))
            for positions, tags, one in zip(result["positions"], batch["label"], ids, strict=True)
        ]
    elif label_ids is not None:
        result["labels"] = [label_ids[label] for label in batch["label"]]
    return result


def with_unlabelled(labelled: Dataset, unlabelled: Dataset) -> Dataset:
    """Two encoded tables in one; the examples of the second get the label of what has none."""
    if "labels" not in labelled.column_names:
        return concatenate_datasets([labelled, unlabelled])
    feature = labelled.features["labels"]

    def ignored(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if isinstance(feature, List):
            return {"labels": [[IGNORED] * length for length in batch["length"]]}
        return {"labels": [IGNORED] * len(batch["length"])}

    features = Features(unlabelled.features | {"labels": feature})
    filled = unlabelled.map(ignored, batched=True, features=features)
    return concatenate_datasets([labelled, filled])


def as_words(table: Dataset) -> Dataset:
    """A table of texts as one of words, for token tasks: what white space separates."""

    def split(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"text": [text.split() for text in batch["text"]]}

    features = Features(table.features | {"text": List(Value("string"))})
    return table.map(split, batched=True, features=features)


def first_tokens(word_ids: Sequence[int | None], words: int) -> list[int]:
    """The index of each word's first token, or -1 if it has none."""
    positions = [-1] * words
    for index, word in enumerate(word_ids):
        if word is not None and positions[word] < 0:
            positions[word] = index
    return positions


def _trailing(positions: Sequence[int]) -> int:
    """The number of words at the end without a token."""
    return next((n for n, one in enumerate(reversed(positions)) if one >= 0), len(positions))


def token_counts(encoded: Dataset) -> np.ndarray:
    """(n,) the number of tokens of each encoded example, int32."""
    return _column(encoded, "length")


def examples_at(encoded: Dataset, rows: np.ndarray) -> list[dict[str, Any]]:
    """The examples in these rows, in their order."""
    # As PyTorch's DataLoader does; indexing would give columns instead of examples.
    return encoded.__getitems__(rows.tolist())


def cut_off(encoded: Dataset) -> np.ndarray:
    """(n,) the number of words (for texts: 1 or 0) beyond the maximum length, int32."""
    return _column(encoded, "cut_off")


def _column(encoded: Dataset, name: str) -> np.ndarray:
    values = encoded.select_columns([name]).with_format("arrow")[:][name]
    return values.to_numpy().astype(np.int32)


def _labels_at(positions: Sequence[int], labels: Sequence[int], length: int) -> list[int]:
    spread = [IGNORED] * length
    for position, label in zip(positions, labels, strict=True):
        if position >= 0:
            spread[position] = label
    return spread


@dataclass(frozen=True)
class Collator:
    """Pads encoded examples to the longest of them, or to the next larger bucket.

    Returns int64 tensors: `input_ids` and `attention_mask` (B, T), and `labels`, (B) or (B, T), if the
    examples have labels.

    Attributes:
        compact_ids: The row of each token id in a compacted embedding table; padding keeps its id.
        buckets: Lengths to pad to, ascending; examples beyond the last are padded to the longest.
    """

    pad_token_id: int
    compact_ids: torch.Tensor | None = None
    buckets: tuple[int, ...] = ()

    def width(self, longest: int) -> int:
        """Tokens that a batch is padded to, whose longest example has so many."""
        return next((bucket for bucket in self.buckets if bucket >= longest), longest)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        lengths = [len(example["input_ids"]) for example in examples]
        shape = (len(examples), self.width(max(lengths)))
        ids = torch.full(shape, self.pad_token_id)
        mask = torch.zeros(shape, dtype=torch.int64)
        for row, (example, length) in enumerate(zip(examples, lengths, strict=True)):
            ids[row, :length] = torch.as_tensor(example["input_ids"])
            mask[row, :length] = 1
        if self.compact_ids is not None:
            ids = self.compact_ids[ids]
        batch = {"input_ids": ids, "attention_mask": mask}
        if "labels" not in examples[0]:
            return batch
        if isinstance(examples[0]["labels"], int):
            batch["labels"] = torch.tensor([example["labels"] for example in examples])
        else:
            labels = torch.full(shape, IGNORED)
            for row, (example, length) in enumerate(zip(examples, lengths, strict=True)):
                labels[row, :length] = torch.as_tensor(example["labels"])
            batch["labels"] = labels
        return batch


@dataclass(frozen=True)
class _Ragged:
    """Lists of numbers, one after another.

    Attributes:
        values: All numbers.
        begins: Where each list begins, and the last one ends.
    """

    values: np.ndarray
    begins: np.ndarray

    @classmethod
    def of(cls, encoded: Dataset, name: str) -> _Ragged:
        batches = encoded.select_columns([name]).with_format("arrow").iter(10_000)
        columns = [batch[name].combine_chunks() for batch in batches]
        lengths = [column.value_lengths().to_numpy() for column in columns]
        return cls(
            np.concatenate([column.flatten().to_numpy() for column in columns]),
            np.concatenate([[0], np.cumsum(np.concatenate(lengths), dtype=np.int64)]),
        )

    def padded(self, rows: np.ndarray, width: int, fill: int) -> tuple[np.ndarray, np.ndarray]:
        """(B, width) the lists in these rows, int64, with `fill` after them; and what is no fill, bool."""
        begins, columns = self.begins[rows][:, None], np.arange(width)
        places = begins + columns
        there = places < self.begins[rows + 1][:, None]
        values = self.values.take(places, mode="clip")
        return np.where(there, values, fill).astype(np.int64, copy=False), there


class EncodedArrays(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """An encoded table that gives batches as `Collator` does, without Python objects for each example.

    The ids are held as one array, 4 bytes a token.

    Args:
        encoded: As `encode` makes it.
        collate: How batches are padded, and which ids the model knows.
    """

    def __init__(self, encoded: Dataset, collate: Collator) -> None:
        self.collate = collate
        ids = _Ragged.of(encoded, "input_ids")
        if collate.compact_ids is not None:
            compact = collate.compact_ids.numpy().astype(np.int32)
            ids = _Ragged(compact[ids.values], ids.begins)
        self._ids = ids
        self._labels: np.ndarray | _Ragged | None = None
        if "labels" in encoded.column_names:
            by_token = isinstance(encoded.features["labels"], List)
            self._labels = (_Ragged.of if by_token else _column)(encoded, "labels")

    def padded_to(self, widths: tuple[int, ...]) -> EncodedArrays:
        """The same examples, with batches padded to these lengths, ascending; to their longest without."""
        other = copy.copy(self)
        other.collate = replace(self.collate, buckets=widths)
        return other

    def __len__(self) -> int:
        return len(self._ids.begins) - 1

    def __getitems__(self, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        """The batch of these rows, with labels if there are any, as PyTorch's DataLoader asks for it."""
        rows = np.asarray(numbers)
        batch = self.inputs(rows)
        if isinstance(self._labels, _Ragged):
            width = batch["input_ids"].shape[1]
            batch["labels"] = torch.from_numpy(self._labels.padded(rows, width, IGNORED)[0])
        elif self._labels is not None:
            batch["labels"] = torch.from_numpy(self._labels[rows].astype(np.int64))
        return batch

    def inputs(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask` of these rows, (B, T) int64."""
        longest = int((self._ids.begins[rows + 1] - self._ids.begins[rows]).max())
        ids, mask = self._ids.padded(rows, self.collate.width(longest), self.collate.pad_token_id)
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
        }
