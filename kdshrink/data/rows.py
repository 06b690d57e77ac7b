"""Reads examples from CSV, TSV, JSON lines, JSON and plain text.

The standard library parses them: pyarrow's JSON reader does not give numbers as they are written, and its
CSV reader silently drops the quotes of a partly quoted field.
"""

from __future__ import annotations

import csv
import json
import logging
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from itertools import accumulate, chain, islice
from operator import itemgetter
from pathlib import Path
from types import NoneType
from typing import IO, Any

from ..errors import DataError, short
from .shard import Columns, Kind, Rows
from .streams import open_text, text_blocks

logger = logging.getLogger(__name__)

_HEAD = 1000
"""The number of lines, or JSON objects, that are read to find the columns."""
_QUOTED = re.compile(r'(?:^|\t)"(?:[^"\t]|"")*""(?:[^"\t]|"")*"(?=\t|\r?\n|$)')
"""A TSV field that is quoted as in CSV."""


def _at(path: Path, line: int, column: str | None = None, unit: str = "line") -> str:
    return f"{path}, {unit} {line}" + (f", column {column!r}" if column else "")


_CHARACTERS = 2**23
"""The size of the blocks in which a file is read, so that memory does not grow with the texts."""
_MOST = 2000


def _line_chunks(lines: IO[str]) -> Iterator[tuple[int, list[str]]]:
    """The lines of a file in chunks, each with the number of its first line."""
    number = 1
    while chunk := lines.readlines(_CHARACTERS):
        for begin in range(0, len(chunk), _MOST):
            part = chunk[begin : begin + _MOST]
            yield number, part
            number += len(part)


# CSV and TSV

_Records = tuple[Sequence[int], list[list[str]]]
"""Records of a file, and the line where each begins."""


def _records(path: Path, separator: str | None, encoding: str) -> Iterator[_Records]:
    """The records of a file in chunks, without blank lines.

    Without a separator, fields are separated by tabs and not quoted; with one, they may be quoted.
    """
    with open_text(path, encoding) as lines:
        yield from _unquoted(lines) if separator is None else _quoted(lines, path, separator)


def _unquoted(lines: IO[str]) -> Iterator[_Records]:
    for number, chunk in _line_chunks(lines):
        stripped = [line.rstrip("\r\n") for line in chunk]
        yield _without_blank(
            range(number, number + len(chunk)),
            [line.split("\t") if line else [] for line in stripped],
        )


def _quoted(lines: IO[str], path: Path, separator: str) -> Iterator[_Records]:
    csv.field_size_limit(sys.maxsize)  # a global limit, which defaults to 128 KiB
    reader = csv.reader(lines, delimiter=separator, strict=True)
    before, count = 0, 1  # first the header alone, then more once the size of a row is known
    while True:
        try:
            records = list(islice(reader, count))
        except csv.Error as error:
            raise _misquoted(path, separator, lines, error) from error
        if not records:
            return
        begins: Sequence[int] = range(before + 1, before + 1 + len(records))
        if reader.line_num - before != len(records):  # a field spans several lines
            heights = [1 + sum(field.count("\n") for field in record) for record in records]
            begins = [before + 1, *(before + 1 + end for end in accumulate(heights[:-1]))]
        before = reader.line_num
        sample = records[:: 1 + len(records) // 100]
        size = sum(map(len, chain.from_iterable(sample)))
        count = max(1, min(_MOST, 20 * count, _CHARACTERS * len(sample) // max(1, size)))
        yield _without_blank(begins, records)


def _without_blank(begins: Sequence[int], records: list[list[str]]) -> _Records:
    if all(records):
        return begins, records
    kept = [(line, record) for line, record in zip(begins, records, strict=True) if record]
    return [line for line, _ in kept], [record for _, record in kept]


def _misquoted(path: Path, separator: str, lines: IO[str], error: csv.Error) -> DataError:
    """The error for a record with wrong quotes, which is parsed again to find where it begins."""
    lines.seek(0)
    reader = csv.reader(lines, delimiter=separator, strict=True)
    begin = 1
    try:
        for _ in reader:
            begin = reader.line_num + 1
    except csv.Error:
        pass
    return DataError(
        f"{_at(path, begin)}: the quotes of this row are not valid CSV ({error}).\n"
        'Put a field with quotes in quotes, and double its own: "a ""b"" c".'
    )


def _header(path: Path, separator: str | None, encoding: str) -> list[str]:
    for _, records in _records(path, separator, encoding):
        if records:
            return [name.strip() for name in records[0]]
    raise DataError(f"{path} is empty.")


def delimited_columns(path: Path, separator: str | None, encoding: str) -> dict[str, Kind]:
    """The columns of the header; warns about quotes near the top of a file that is read without quoting."""
    if separator is None:
        with open_text(path, encoding) as lines:
            quoted = (n for n, line in enumerate(islice(lines, _HEAD), 1) if _QUOTED.search(line))
            if line := next(quoted, None):
                logger.warning(
                    "%s: a field is quoted as in CSV, but its quotes are kept; "
                    "--separator tab reads them as quotes",
                    _at(path, line),
                )
    return dict.fromkeys(_header(path, separator, encoding), "text")


def delimited_rows(
    path: Path, columns: Columns, separator: str | None, encoding: str
) -> Iterator[Rows]:
    """The examples of a CSV or TSV file.

    Raises:
        DataError: A row has another number of fields than the header, or no text.
    """
    header = _header(path, separator, encoding)
    names = (columns.text, columns.label, columns.language)
    for name in names:
        if header.count(str(name)) > 1:
            raise DataError(f"{path}: {header.count(str(name))} columns have the name {name!r}.")
    text, label, language = (header.index(name) if name in header else None for name in names)
    assert text is not None
    skip = 1
    for lines, records in _records(path, separator, encoding):
        begin, skip = min(skip, len(records)), max(0, skip - len(records))
        lines, records = lines[begin:], records[begin:]
        if not records:
            continue
        if set(map(len, records)) != {len(header)}:
            raise _uneven(path, lines, records, len(header))
        fields = list(zip(*records, strict=True))
        texts = fields[text]
        if "" in texts:
            raise _missing(path, lines[texts.index("")], columns.text)
        yield Rows(
            lines,
            texts,
            None if label is None else fields[label],
            None if language is None else fields[language],
        )


def _uneven(
    path: Path, lines: Sequence[int], records: Sequence[list[str]], width: int
) -> DataError:
    line, record = next(
        (line, record) for line, record in zip(lines, records, strict=True) if len(record) != width
    )
    return DataError(
        f"{_at(path, line)}: {len(record)} fields, but the header has {width}: {short(record)}\n"
        "Quote a field that contains the separator, or give another --separator."
    )


def _missing(path: Path, line: int, column: str, unit: str = "line") -> DataError:
    return DataError(
        f"{_at(path, line, column, unit)}: there is no text.\nFill it in, or remove the example."
    )


# JSON


class _Number(str):
    """A number, as it is written in the file."""


def _nothing(constant: str) -> None:
    """Parse NaN and the infinities, which are not JSON, as null."""


_DECODER = json.JSONDecoder(parse_int=_Number, parse_float=_Number, parse_constant=_nothing)

_Values = tuple[Sequence[int], list[Any]]
"""JSON values, and the number of each: its line, or its position in the array."""


def json_unit(path: Path, encoding: str) -> str:
    """The unit of a JSON file: `line`, or `object` if it is one array."""
    with open_text(path, encoding) as lines:
        first = next((line.strip() for line in lines if line.strip()), "")
    return "object" if first.startswith("[") else "line"


def _objects(path: Path, encoding: str, unit: str, keys: Collection[str] = ()) -> Iterator[_Values]:
    """The objects of a JSON file in chunks.

    Args:
        keys: Keys that an object may not have twice.
    """
    blocks = _array(path, encoding, keys) if unit == "object" else _lines(path, encoding, keys)
    for numbers, values in blocks:
        if not {*map(type, values)} <= {dict}:
            number, value = next(
                (n, v) for n, v in zip(numbers, values, strict=True) if type(v) is not dict
            )
            raise DataError(
                f"{_at(path, number, unit=unit)}: this is {_kind_name(value)}, not an "
                'object.\nWrite one object per line: {"text": …, "label": …}.'
            )
        yield numbers, values


def _array(path: Path, encoding: str, keys: Collection[str]) -> Iterator[_Values]:
    values = _parse(path, 1, "".join(text_blocks(path, encoding)), keys)
    yield range(1, len(values) + 1), values


def _lines(path: Path, encoding: str, keys: Collection[str]) -> Iterator[_Values]:
    """The JSON value of each line that is not blank."""
    first = 1
    for text in text_blocks(path, encoding):
        count = text.count("\n")
        yield _parse_lines(path, first, count, text, keys)
        first += count


def _parse_lines(path: Path, first: int, count: int, text: str, keys: Collection[str]) -> _Values:
    # Usually each line is one object without duplicate keys: then all are parsed as one array.
    names = [json.dumps(key, ensure_ascii=False) for key in keys]
    odd = [name for name in names if text.count(name) != count]
    alike = text.count("}\n") + text.count("}\r\n") == count == text.count("\n{") + 1
    if not odd and alike and text.startswith("{") and text.endswith("\n"):
        with suppress(ValueError, RecursionError):
            values = _DECODER.decode("[" + text[:-1].replace("\n", ",") + "]")
            if len(values) == count:
                return range(first, first + count), values
    numbers, values = [], []
    for number, line in enumerate(text.split("\n"), first):
        if stripped := line.strip():
            twice = any(line.count(name) > 1 for name in odd)
            numbers.append(number)
            values.append(_parse(path, number, stripped, keys if twice else ()))
    return numbers, values


def _parse(path: Path, number: int, text: str, keys: Collection[str]) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs if name in keys]
        if len(names) > len({*names}):
            name = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{_at(path, number)}: the key {name!r} occurs twice.\n{short(text)}")
        return dict(pairs)

    decoder = _DECODER
    if keys:
        decoder = json.JSONDecoder(
            object_pairs_hook=once, parse_int=_Number, parse_float=_Number, parse_constant=_nothing
        )
    try:
        return decoder.decode(text)
    except json.JSONDecodeError as error:
        line = number + error.lineno - 1
        shown = short(text[max(0, error.pos - 30) : error.pos + 30])
        raise DataError(f"{_at(path, line)}: this is not JSON: {error.msg}.\n{shown}") from error
    except RecursionError as error:
        raise DataError(f"{_at(path, number)}: this JSON is nested too deeply.") from error


def _kind_name(value: Any) -> str:
    if isinstance(value, _Number):
        return "a number"
    names = {str: "text", bool: "true or false", dict: "an object", list: "a list"}
    return names.get(type(value), "null")


def json_columns(path: Path, encoding: str) -> dict[str, Kind]:
    """The keys of the first objects, each with the kind of its first value that is not null."""
    kinds: dict[str, Kind | None] = {}
    for _, objects in _objects(path, encoding, json_unit(path, encoding)):
        for one in objects[:_HEAD]:
            for name, value in one.items():
                if kinds.get(name) is None:
                    kinds[name] = _kind(value)
        if objects:
            break
    if not kinds:
        raise DataError(f"{path} has no examples.")
    return {name: kind or "text" for name, kind in kinds.items()}


def _kind(value: Any) -> Kind | None:
    if value is None:
        return None
    if isinstance(value, list):
        return "list"
    return "other" if isinstance(value, dict) else "text"


def json_rows(path: Path, columns: Columns, encoding: str) -> Iterator[Rows]:
    """The examples of a JSON file.

    Raises:
        DataError: A value is missing, or of another kind than the column's.
    """
    unit = json_unit(path, encoding)
    token = columns.task == "token"

    def values(
        numbers: Sequence[int], objects: Sequence[dict[str, Any]], column: str, *, kinds: set[type]
    ) -> list[Any]:
        """The values of a column, which must have one of these kinds."""
        try:
            found = list(map(itemgetter(column), objects))  # twice as fast as .get(column)
        except KeyError:
            found = [one.get(column) for one in objects]
        if not {*map(type, found)} <= kinds:
            number, value = next(
                (n, v) for n, v in zip(numbers, found, strict=True) if type(v) not in kinds
            )
            if value is None:
                raise _missing(path, number, column, unit)
            expected = "a list" if list in kinds else "text"
            raise _unfit(_at(path, number, column, unit), value, f"{expected} was expected")
        return found

    def strings(numbers: Sequence[int], lists: Sequence[Any], column: str) -> None:
        """Raise DataError unless these are lists of strings (or None)."""
        if {*map(type, chain.from_iterable(filter(None, lists)))} <= {str, _Number}:
            return
        for number, words in zip(numbers, lists, strict=True):
            for place, word in enumerate(words or (), 1):
                if type(word) not in (str, _Number):
                    where = _at(path, number, column, unit)
                    raise _unfit(where, word, f"a word or tag was expected as number {place}")

    single: set[type] = {str, _Number}
    label_kinds: set[type] = {list, NoneType} if token else {*single, bool, NoneType}
    used = {columns.text, columns.label, columns.language} - {None}
    for numbers, objects in _objects(path, encoding, unit, {str(name) for name in used}):
        texts = values(numbers, objects, columns.text, kinds={list} if token else single)
        labels = languages = None
        if columns.label:
            labels = values(numbers, objects, columns.label, kinds=label_kinds)
        if columns.language:
            languages = values(numbers, objects, columns.language, kinds={str, NoneType})
        if token:
            strings(numbers, texts, columns.text)
            strings(numbers, labels or [None] * len(texts), str(columns.label))
        elif labels is not None and bool in {*map(type, labels)}:
            labels = [str(label) if isinstance(label, bool) else label for label in labels]
        if texts:
            yield Rows(numbers, texts, labels, languages)


def _unfit(place: str, value: Any, expected: str) -> DataError:
    hint = ""
    if isinstance(value, dict):
        hint = "\nFrom pandas, write the file with to_json(orient='records', lines=True)."
    shown = short(json.dumps(value, ensure_ascii=False))
    return DataError(f"{place}: this is {_kind_name(value)}, and {expected}.\n{shown}{hint}")


# Plain text


def text_rows(path: Path, encoding: str) -> Iterator[Rows]:
    """One text per line; blank lines are left out."""
    with open_text(path, encoding) as lines:
        for first, chunk in _line_chunks(lines):
            kept = [(n, line) for n, line in enumerate(chunk, first) if line.strip()]
            if kept:
                yield Rows([n for n, _ in kept], [line.rstrip("\r\n") for _, line in kept])
