"""The columns of a table: found by name or flag, and brought to text, label and language."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from datasets import ClassLabel, Dataset, Features, List, Value

from ..config import DataOptions
from ..errors import DataError, UnlabelledError
from .registry import Task
from .shard import UNDETERMINED, Shard

_TEXT_COLUMNS = ("text", "utt", "sentence", "tokens", "words")
_LABEL_COLUMNS = ("label", "labels", "intent", "ner_tags", "tags")
_LANGUAGE_COLUMNS = ("language", "lang", "locale")


@dataclass(frozen=True)
class Columns:
    """Where own or named data has what, and for which task."""

    text: str
    label: str | None
    language: str | None
    task: Task


def find_columns(config: DataOptions, table: Dataset, labels_required: bool) -> Columns:
    """The columns of own data: those that flags name, else those of a usual name."""

    def find(flag: str, said: str | None, usual: Sequence[str]) -> str | None:
        if said is not None and said not in table.column_names:
            raise DataError(
                f"{flag} {said}: {config.data} has no such column.\n"
                f"It has: {', '.join(table.column_names)}."
            )
        return said or next((name for name in usual if name in table.column_names), None)

    text = find("--text-column", config.text_column, _TEXT_COLUMNS)
    label = find("--label-column", config.label_column, _LABEL_COLUMNS)
    language = find("--language-column", config.language_column, _LANGUAGE_COLUMNS)
    for flag, found, needed in (
        ("--text-column", text, True),
        ("--label-column", label, labels_required),
    ):
        if needed and found is None:
            if flag == "--label-column" and table.column_names == [text]:
                raise UnlabelledError(f"{config.data}: it has text alone, and no labels.")
            error = UnlabelledError if flag == "--label-column" else DataError
            raise error(
                f"{config.data}: none of its columns has a usual name for this.\n"
                f"It has: {', '.join(table.column_names)}. Say which with {flag}."
            )
    assert text is not None
    words = isinstance(table.features[text], (List, list))
    task: Task = "token" if words else "sequence"
    if config.task is not None and config.task != task:
        kind = "lists of words" if words else "plain text"
        raise DataError(
            f"--task {config.task}: the column {text!r} of {config.data} holds {kind}.\n"
            "Token classification needs lists of words and of tags, sequence classification text."
        )
    return Columns(text, label, language, task)


def _class_names(table: Dataset, column: str) -> list[str] | None:
    """Names of a column's classes where its type knows them."""
    feature = table.features[column]
    feature = getattr(feature, "feature", feature)
    return list(feature.names) if isinstance(feature, ClassLabel) else None


def label_union(tables: Sequence[Dataset], shards: Sequence[Shard], column: str) -> tuple[str, ...]:
    """All label names of own data: in the order of its classes if it has them, else sorted."""
    found: set[Any] = set()
    for table, shard in zip(tables, shards, strict=True):
        if column not in table.column_names:
            raise DataError(f"{shard.origin} has no column {column!r}, which other splits have.")
        if names := _class_names(table, column):
            return tuple(names)
        for batch in table.select_columns([column]).with_format("arrow").iter(10_000):
            values = batch[column]
            while pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
                values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
                values = values.flatten()
            found.update(values.unique().to_pylist())
    if None in found:
        raise DataError(f"Column {column!r} has examples without a label.\nRemove or label them.")
    numbers = all(isinstance(value, int) for value in found)
    return tuple(str(value) for value in sorted(found, key=None if numbers else str))


def normalise(
    table: Dataset,
    shard: Shard,
    columns: Columns,
    labels: tuple[str, ...] | None,
    other: str | None,
) -> Dataset:
    """The table with the columns text, label and language, labels as indices into `labels`."""
    for column in (columns.text, columns.label):
        if column is not None and column not in table.column_names:
            raise DataError(
                f"{shard.origin}: there is no column {column!r}.\nIt has: {', '.join(table.column_names)}."
            )
    token = columns.task == "token"
    text_type, label_type = Value("string"), Value("int32")
    features = {
        "text": List(text_type) if token else text_type,
        "language": Value("string"),
    }
    if columns.label:
        features["label"] = List(label_type) if token else label_type
    return table.map(
        _normalise_batch,
        batched=True,
        remove_columns=table.column_names,
        features=Features(features),
        fn_kwargs={
            "columns": columns,
            "language": shard.language,
            "index": {name: i for i, name in enumerate(labels or ())},
            "class_names": _class_names(table, columns.label) if columns.label else None,
            "other": other,
            "origin": shard.origin,
        },
    )


def _normalise_batch(
    batch: dict[str, list[Any]],
    columns: Columns,
    language: str | None,
    index: dict[str, int],
    class_names: list[str] | None,
    other: str | None,
    origin: str,
) -> dict[str, list[Any]]:
    def label_index(value: Any) -> int:
        if class_names is not None and isinstance(value, int):
            value = class_names[value]
        name = str(value)
        if name in index:
            return index[name]
        if isinstance(value, int) and 0 <= value < len(index):
            return value
        if other is not None and value is not None:
            return index[other]
        raise DataError(
            f"{origin}: an example has the label {value!r}, which this data set does not have.\n"
            f"Its labels: {', '.join(index)}."
        )

    texts = batch[columns.text]
    if any(text is None for text in texts):
        raise DataError(f"{origin}: column {columns.text!r} has examples without text.")
    token = columns.task == "token"
    if language is not None:
        languages = [language] * len(texts)
    elif columns.language is not None:
        languages = [
            UNDETERMINED if name is None else str(name) for name in batch[columns.language]
        ]
    else:
        languages = [UNDETERMINED] * len(texts)
    normal = {"text": texts if token else [str(text) for text in texts], "language": languages}
    if columns.label is None:
        return normal
    values = batch[columns.label]
    if token:
        for words, tags in zip(texts, values, strict=True):
            if tags is None or len(words) != len(tags):
                raise DataError(
                    f"{origin}: a sentence has {len(words)} words and {len(tags or ())} tags.\n"
                    f"It begins: {' '.join(words[:8])}"
                )
        normal["label"] = [[label_index(tag) for tag in tags] for tags in values]
    else:
        normal["label"] = [label_index(value) for value in values]
    return normal
