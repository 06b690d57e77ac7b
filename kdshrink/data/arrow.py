"""Converts Arrow tables (of parquet files, and of data sets on the Hub) to text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import DataError
from .shard import Columns, Kind

NO_LABEL = (-1, -100)
"""The values for no label in a column of class ids: on the Hub, and in PyTorch."""


def class_names_of(feature: Any) -> tuple[str, ...] | None:
    """The class names of a feature of datasets, in the JSON form of parquet metadata."""
    if isinstance(feature, list):
        feature = feature[0] if feature else None
    if not isinstance(feature, dict):
        return None
    if feature.get("_type") == "ClassLabel":
        return tuple(feature.get("names") or ()) or None
    return class_names_of(feature.get("feature"))


def schema_features(schema: pa.Schema, stored: bytes | None) -> dict[str, Any]:
    """The features that datasets wrote into a table's metadata; empty without any.

    Args:
        stored: The metadata that the file has in addition to that of the schema.

    Raises:
        ValueError: They are damaged, so class names could be missed.
    """
    described = (schema.metadata or {}).get(b"huggingface")
    if described != stored:
        raise ValueError("the file describes its columns twice, and differently")
    if described is None:
        return {}
    try:
        return dict((json.loads(described).get("info") or {}).get("features") or {})
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"the features in its metadata cannot be read ({error})") from error


def _is_list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_null(kind)
    )


def kind_of(kind: pa.DataType) -> Kind:
    """Whether values of this type are texts (or numbers), lists of them, or not supported."""
    if _is_list(kind):
        return "list" if _is_text(kind.value_type) else "other"
    return "text" if _is_text(kind) else "other"


def to_rows(
    batches: Iterator[pa.RecordBatch],
    columns: Columns,
    names: tuple[str, ...] | None,
    origin: str,
) -> Iterator[pa.RecordBatch]:
    """Convert batches to `columns.schema`; the rows of a table are numbered from 1.

    Args:
        names: Class names of the label column, if its type has them.

    Raises:
        DataError: A value cannot be read; the message has its row and column.
    """
    begin = 0
    token = columns.task == "token"
    for batch in batches:
        place = _Place(origin, begin)
        rows = batch.num_rows
        text = _column(batch, columns.text, None, token, place)
        place.require(text, columns.text)
        nothing = pa.nulls(rows, columns.schema.field("label").type)
        label = nothing
        if columns.label:
            label = stripped(_column(batch, columns.label, names, token, place))
        language = pa.nulls(rows, pa.string())
        if columns.language:
            language = _column(batch, columns.language, None, False, place)
        lines = pa.array(np.arange(begin + 1, begin + rows + 1))
        begin += rows
        yield pa.RecordBatch.from_arrays([text, label, language, lines], schema=columns.schema)


class _Place:
    """The position of a batch, for messages."""

    def __init__(self, origin: str, begin: int) -> None:
        self.origin = origin
        self.begin = begin

    def error(self, row: int, column: str, fault: str) -> DataError:
        return DataError(f"{self.origin}, row {self.begin + row + 1}, column {column!r}: {fault}")

    def require(self, values: pa.Array, column: str) -> None:
        if values.null_count:
            row = _first(pc.is_null(values))
            raise self.error(row, column, "there is no text.\nFill it in, or remove the example.")


def _first(mask: pa.Array) -> int:
    return int(pc.index(mask, True).as_py())


def stripped(labels: pa.Array) -> pa.Array:
    """Labels (or lists of tags) without surrounding white space; blank ones become null."""
    if pa.types.is_list(labels.type):
        lengths = pc.fill_null(pc.list_value_length(labels), 0)
        return _lists(pc.utf8_trim_whitespace(labels.flatten()), lengths, pc.is_null(labels))
    trimmed = pc.utf8_trim_whitespace(labels)
    return pc.if_else(pc.equal(trimmed, ""), None, trimmed)


def _column(
    batch: pa.RecordBatch, name: str, names: Sequence[str] | None, lists: bool, place: _Place
) -> pa.Array:
    values = batch.column(name)
    if not lists or pa.types.is_null(values.type):
        if kind_of(values.type) != "text":
            raise _unread(place, name, values.type)
        texts = _texts(values, names, lambda row: (row, name), place)
        return texts if not lists else pa.nulls(len(values), pa.list_(pa.string()))
    if kind_of(values.type) != "list":
        raise _unread(place, name, values.type)
    if pa.types.is_fixed_size_list(values.type):
        values = values.cast(pa.list_(values.type.value_type))
    flat = values.flatten()
    parents = pc.list_parent_indices(values)
    texts = _texts(flat, names, lambda index: (parents[index].as_py(), name), place)
    if texts.null_count:
        row = parents[_first(pc.is_null(texts))].as_py()
        raise place.error(row, name, "one of the values in this list is missing.")
    return _lists(texts, pc.fill_null(pc.list_value_length(values), 0), pc.is_null(values))


def _lists(values: pa.Array, lengths: pa.Array, missing: pa.Array) -> pa.Array:
    """Lists of these lengths, from their concatenated values."""
    offsets = np.concatenate([[0], np.cumsum(lengths.to_numpy(zero_copy_only=False))])
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values, mask=missing)


def _unread(place: _Place, column: str, kind: pa.DataType) -> DataError:
    return DataError(
        f"{place.origin}, column {column!r}: values of the type {kind} are not supported.\n"
        "Give text, numbers, classes, or lists of them."
    )


def _texts(
    values: pa.Array,
    names: Sequence[str] | None,
    where: Callable[[int], tuple[int, str]],
    place: _Place,
) -> pa.Array:
    """Convert values to text: classes by name, numbers as Arrow writes them, NaN to null."""
    try:
        values.validate(full=True)  # text of a damaged file may not be UTF-8
    except pa.ArrowInvalid as error:
        raise DataError(f"{place.origin} is damaged: {error}.\nCopy it again.") from error
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if names is not None and pa.types.is_integer(values.type):
        return _named(values.cast(pa.int64()), names, where, place)
    if pa.types.is_boolean(values.type):
        return pc.if_else(values, "True", "False")
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), None, values)
    return values.cast(pa.string())


def _named(
    values: pa.Array,
    names: Sequence[str],
    where: Callable[[int], tuple[int, str]],
    place: _Place,
) -> pa.Array:
    values = pc.if_else(pc.is_in(values, pa.array(NO_LABEL, pa.int64())), None, values)
    outside = pc.fill_null(pc.or_(pc.less(values, 0), pc.greater_equal(values, len(names))), False)
    if pc.any(outside).as_py():
        index = _first(outside)
        row, column = where(index)
        raise place.error(
            row, column, f"there is no class {values[index].as_py()} of {len(names)}."
        )
    return pa.array(list(names), pa.string()).take(values)
