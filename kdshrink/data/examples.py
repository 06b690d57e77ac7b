"""Turns tables of text into examples with label ids."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from ..errors import DataError, listed, short
from .labels import class_of_each, in_order
from .languages import UNDETERMINED
from .registry import NamedData, Task
from .shard import Table
from .store import as_dataset, batches_of, fingerprint, stored
from .tags import OUTSIDE, find_scheme, iob2_labels, to_iob2

logger = logging.getLogger(__name__)

_WRITTEN_LIST = re.compile(r"""\s*\[\s*(['"]).*\1\s*\]\s*""", re.DOTALL)
"""A list of strings, written as text by Python, NumPy or JSON."""


@dataclass(frozen=True)
class Part:
    """A table that was read.

    Attributes:
        language: The language of all its examples; None if it is in a column, or unknown.
        path: The Arrow file of its examples, with `Columns.schema`.
    """

    language: str | None
    table: Table
    path: Path

    def place(self, line: int, column: str | None) -> str:
        named = f", column {column!r}" if column else ""
        return f"{self.table.origin}, {self.table.unit} {line}{named}"


@dataclass(frozen=True)
class Labelling:
    """The labels of a data set and their ids.

    Attributes:
        labels: The names of the labels, by id.
        index: The id of each label as it is written in the data, or, for entity tags that are converted,
            in IOB2.
        renamed: The new names from --label-map.
        scheme: The scheme of entity tags; None for other labels.
    """

    labels: tuple[str, ...]
    index: Mapping[str, int]
    renamed: Mapping[str, str]
    scheme: str | None = None


def check_no_written_lists(parts: Sequence[Part], column: str) -> None:
    """Check that texts are not lists written as text, as pandas writes them to CSV.

    Raises:
        DataError: The first texts are such lists.
    """
    for part in parts:
        first = next(batches_of(part.path)).column("text").to_pylist()
        if all(_WRITTEN_LIST.fullmatch(text) for text in first):
            raise _written_list(f"{part.table.origin}, column {column!r}", first[0])


def _written_list(place: str, value: str) -> DataError:
    return DataError(
        f"{place}: these are lists written as text: {short(value)}.\n"
        "Write the data as JSON lines or parquet, which support lists."
    )


def _found_labels(parts: Iterable[Part]) -> set[str]:
    found: set[str | None] = set()
    for part in parts:
        for batch in batches_of(part.path):
            values = batch.column("label")
            flat = values.flatten() if pa.types.is_list(values.type) else values
            found.update(pc.unique(flat).to_pylist())
    return {label for label in found if label is not None}


def _sentences(parts: Iterable[Part], renamed: Mapping[str, str]) -> Iterator[list[str]]:
    for part in parts:
        for batch in batches_of(part.path):
            for tags in batch.column("label").to_pylist():
                yield [renamed.get(tag, tag) for tag in tags or ()]


def custom_labels(
    parts: Sequence[Part],
    column: str,
    task: Task,
    class_names: Sequence[str] | None,
    renamed: Mapping[str, str],
) -> Labelling:
    """The labels of custom data: the union over all splits.

    Args:
        class_names: The class names of the column, in order, if its type has them.

    Raises:
        DataError: The labels are ambiguous.
    """
    found = _found_labels(parts)
    if task == "sequence" and found and all(map(_WRITTEN_LIST.fullmatch, found)):
        label = min(found)
        raise _written_list(_place_of(label, parts, column), label)
    named = {label: renamed.get(label, label) for label in sorted(found)}
    standing = {name: label for label, name in named.items()}

    def place(name: str) -> str:
        return _place_of(standing[name], parts, column)

    scheme = None
    if task == "sequence":
        classes = class_of_each(named.values(), place)
    else:
        names = set(named.values())
        scheme = find_scheme(names, lambda: _sentences(parts, renamed), place)
        if scheme not in (None, "IOB2"):
            names = iob2_labels(names, str(scheme))
        classes = {name: name for name in names}
    if class_names and scheme in (None, "IOB2"):
        # Renamed classes keep their order; labels that only other files have come after them.
        ordered = [renamed.get(name, name) for name in class_names]
        ordered += in_order(set(classes.values()) - set(ordered))
        labels = tuple(dict.fromkeys(ordered))
    else:
        labels = in_order(classes.values())
    numbers = {name: number for number, name in enumerate(labels)}
    if scheme in (None, "IOB2"):
        index = {label: numbers[classes[name]] for label, name in named.items()}
    else:
        index = numbers
    return Labelling(labels, index, renamed, scheme)


def named_labels(parts: Sequence[Part], named: NamedData, renamed: Mapping[str, str]) -> Labelling:
    """The labels of a named data set: the registry's list, by name, or by id if all are numbers.

    Raises:
        DataError: The data has a label that is not in the list.
    """
    found = _found_labels(parts)
    numbers = {name: number for number, name in enumerate(named.labels)}
    names = {label: renamed.get(label, label) for label in sorted(found)}
    if all(name.isdecimal() and name.isascii() for name in names.values()):
        numbers = {str(number): number for number in range(len(named.labels))}
    numbers |= {tag: numbers[OUTSIDE] for tag in named.outside if OUTSIDE in numbers}
    if unknown := sorted(label for label, name in names.items() if name not in numbers):
        raise DataError(
            f"{_place_of(unknown[0], parts, named.label_column)}: {named.name} has no label "
            f"{short(unknown[0])!r}.\nIts labels: {listed(named.labels)}.\n"
            "--label-map FILE maps other names to those of the data set."
        )
    scheme = None
    if named.task == "token":
        scheme = find_scheme(set(named.labels), lambda: _sentences(parts, renamed))
    index = {label: numbers[name] for label, name in names.items()}
    if scheme not in (None, "IOB2"):
        index = {name: number for number, name in enumerate(named.labels)}
    return Labelling(named.labels, index, renamed, scheme)


def _place_of(label: str, parts: Sequence[Part], column: str) -> str:
    for part in parts:
        for batch in batches_of(part.path):
            values = batch.column("label")
            if pa.types.is_list(values.type):
                inside = pc.equal(values.flatten(), label)
                rows = pc.list_parent_indices(values).filter(inside)
            else:
                rows = pc.indices_nonzero(pc.fill_null(pc.equal(values, label), False))
            if len(rows):
                return part.place(batch.column("line")[rows[0].as_py()].as_py(), column)
    return parts[0].table.origin


def all_labelled(parts: Iterable[Part]) -> bool:
    """Whether every example has a label."""
    return all(
        batch.column("label").null_count == 0 for part in parts for batch in batches_of(part.path)
    )


def languages_of(parts: Iterable[Part]) -> set[str]:
    """The languages of the examples; und for those without one."""
    found: set[str] = set()
    for part in parts:
        for batch in batches_of(part.path):
            found.update(pc.unique(_languages(batch, part.language)).to_pylist())
    return found


def examples(
    parts: Sequence[Part], labelling: Labelling | None, task: Task, column: str | None
) -> Dataset:
    """A table of `text`, `label` (absent without a labelling) and `language`, in the parts' order.

    Sentences without words are left out.

    Raises:
        DataError: There are no words, or an example has no label.
    """
    name = fingerprint("examples", *(f"{p.path.stem} {p.language}" for p in parts), labelling)
    number: pa.DataType = pa.list_(pa.int32()) if task == "token" else pa.int32()
    text: pa.DataType = pa.list_(pa.string()) if task == "token" else pa.string()
    fields = {"text": text, "language": pa.string()}
    if labelling is not None:
        fields["label"] = number
    schema = pa.schema(fields)

    def batches() -> Iterator[pa.RecordBatch]:
        for part in parts:
            for batch in batches_of(part.path):
                if task == "token":
                    batch = batch.filter(pc.greater(pc.list_value_length(batch.column("text")), 0))
                columns = [batch.column("text"), _languages(batch, part.language)]
                if labelling is not None:
                    columns.append(_numbers(batch, labelling, task, part, column))
                yield pa.RecordBatch.from_arrays(columns, schema=schema)

    table = as_dataset(stored(name, schema, batches()))
    if len(table) == 0:
        raise DataError(f"{parts[0].table.origin} has no words.")
    if task == "token":
        _log_empty(parts, len(table))
    return table


def _log_empty(parts: Sequence[Part], kept: int) -> None:
    read = sum(batch.num_rows for part in parts for batch in batches_of(part.path))
    if read > kept:
        logger.info(
            "%s: %d of %d sentences have no words and are left out",
            parts[0].table.origin,
            read - kept,
            read,
        )


def _languages(batch: pa.RecordBatch, language: str | None) -> pa.Array:
    if language is not None:
        return pa.array([language] * batch.num_rows, pa.string())
    said = pc.utf8_trim_whitespace(pc.fill_null(batch.column("language"), ""))
    return pc.if_else(pc.equal(said, ""), UNDETERMINED, said)


def _numbers(
    batch: pa.RecordBatch, labelling: Labelling, task: Task, part: Part, column: str | None
) -> pa.Array:
    """The label ids of a batch."""
    values = batch.column("label")

    def first_line(mask: pa.Array) -> int:
        return int(batch.column("line")[pc.index(mask, True).as_py()].as_py())

    if values.null_count:
        place = part.place(first_line(pc.is_null(values)), column)
        raise DataError(f"{place}: there is no label.\nLabel the example, or remove it.")
    if task == "sequence":
        return _look_up(values, labelling.index)
    words = pc.list_value_length(batch.column("text"))
    counts = pc.list_value_length(values)
    unlike = pc.not_equal(words, counts)
    if pc.any(unlike).as_py():
        row = pc.index(unlike, True).as_py()
        raise DataError(
            f"{part.place(first_line(unlike), column)}: {words[row]} words and {counts[row]} tags.\n"
            f"It begins: {short(' '.join(batch.column('text')[row].as_py()[:8]))}"
        )
    if labelling.scheme in (None, "IOB2"):
        flat = values.flatten()
    else:
        flat = pa.array(
            [
                tag
                for tags in values.to_pylist()
                for tag in to_iob2(
                    [labelling.renamed.get(tag, tag) for tag in tags], str(labelling.scheme)
                )
            ],
            pa.string(),
        )
    offsets = np.concatenate([[0], np.cumsum(counts.to_numpy(zero_copy_only=False))])
    return pa.ListArray.from_arrays(
        pa.array(offsets.astype(np.int32)), _look_up(flat, labelling.index)
    )


def _look_up(labels: pa.Array, index: Mapping[str, int]) -> pa.Array:
    places = pc.index_in(labels, value_set=pa.array(list(index), pa.string()))
    return pa.array(list(index.values()), pa.int32()).take(places)
