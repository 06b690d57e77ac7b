"""A plain reader of data files, to compare kdshrink's with: slow, short, and with nothing in common with it.

A file is read whole, by the csv rules spelled out here, the json module, pyarrow's to_pylist and str.split.
What a damaged file holds may be open to more than one reading, so a list of readings is returned: empty where
the only right answer is to refuse.
"""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

TEXT_COLUMNS = ("text", "utt", "sentence", "tokens", "words")
LABEL_COLUMNS = ("label", "labels", "intent", "ner_tags", "tags")
LANGUAGE_COLUMNS = ("language", "lang", "locale")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?")
_PREFIXED = re.compile(r"([BIESLU])-(.+)", re.DOTALL)
_NEWLINES = ("\r\n|\r|\n", "\r*\n|\r+\\Z")
"""What ends a line: as Python's text mode has it, or newlines (the last may be cut off) alone and what stands
before them."""
_WORD_ID = re.compile(r"[0-9]+")
_RANGE_OR_EMPTY_NODE = re.compile(r"[0-9]+[-.][0-9]+")


class Refused(Exception):
    """The file must not be read."""


@dataclass(frozen=True)
class Row:
    """An example as it stands in the file; words and tags are tuples."""

    text: str | tuple[str, ...]
    label: str | tuple[str, ...] | None
    language: str


def read_plain(
    path: Path, *, separator: str | None = None, labelled: bool = True
) -> list[list[Row]]:
    """All readings of a file that a user would call right."""
    try:
        content = _decompressed(path)
        name = path.name.removesuffix(".gz").removesuffix(".zst")
        readings = _READERS[name.rpartition(".")[2]](content, separator, labelled)
    except Refused:
        return []
    return [reading for reading in readings if reading]


def _decompressed(path: Path) -> bytes:
    content = path.read_bytes()
    try:
        if path.suffix == ".gz":
            return gzip.decompress(content)
        if path.suffix == ".zst":
            with pa.CompressedInputStream(pa.py_buffer(content), "zstd") as stream:
                return bytes(stream.read())
    except Exception as error:
        raise Refused from error
    return content


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refused from error


# --- tables -------------------------------------------------------------------------------------


def _usual(names: Sequence[str], usual: Sequence[str], needed: bool) -> str | None:
    found = next((name for name in usual if name in names), None)
    if needed and found is None:
        raise Refused
    if found is not None and list(names).count(found) > 1:
        raise Refused
    return found


def _table(names: Sequence[str], records: list[dict[str, Any]], labelled: bool) -> list[list[Row]]:
    """Rows of a table whose values are None, text, or lists of text."""
    text = _usual(names, TEXT_COLUMNS, True)
    label = _usual(names, LABEL_COLUMNS, labelled)
    language = _usual(names, LANGUAGE_COLUMNS, False)
    texts = [record.get(text or "") for record in records]
    words = any(isinstance(value, list) for value in texts)
    labels = [record.get(label) if label else None for record in records]
    for one, its_label in zip(texts, labels, strict=True):
        if isinstance(one, list) != words or one is None or (words and None in one):
            raise Refused
        if label is None:
            continue
        if isinstance(its_label, list) != words or its_label is None:
            raise Refused
        if words and (len(one) != len(its_label) or None in its_label):
            raise Refused
    languages = [(record.get(language) if language else None) or "und" for record in records]
    if any(isinstance(name, list) for name in languages):
        raise Refused
    if words:
        tags = [[tag.strip() for tag in one or ()] for one in labels]
        return _token_readings(texts, tags if label else None, languages)
    names_of = classes([one.strip() for one in labels]) if label else labels
    return [[Row(*row) for row in zip(texts, names_of, languages, strict=True)]]


def classes(labels: Sequence[str]) -> list[str]:
    """Labels by name; if all of them are numbers by value, each in the shortest spelling it has here."""
    if not all(_NUMBER.fullmatch(label) for label in labels):
        return list(labels)
    names: dict[Fraction, str] = {}
    for label in sorted(labels, key=lambda label: (len(label), label)):
        names.setdefault(Fraction(label), label)
    return [names[Fraction(label)] for label in labels]


def _read_csv(content: bytes, separator: str | None, labelled: bool) -> list[list[Row]]:
    return _separated(list(csv_records(_decoded(content), separator or ",")), labelled)


def _read_tsv(content: bytes, separator: str | None, labelled: bool) -> list[list[Row]]:
    if separator is not None:
        return _read_csv(content, separator, labelled)
    text = _decoded(content)
    readings: list[list[Row]] = []
    for newline in _NEWLINES:
        lines = [line for line in re.split(newline, text) if line]
        try:
            found = _separated(
                [[(cell, False) for cell in line.split("\t")] for line in lines], labelled
            )
        except Refused:
            continue
        readings += [reading for reading in found if reading not in readings]
    return readings


def _separated(records: list[list[tuple[str, bool]]], labelled: bool) -> list[list[Row]]:
    if not records:
        raise Refused
    names = [name.strip() for name, _ in records[0]]
    if any(len(record) != len(names) for record in records):
        raise Refused
    tables = [
        {name: value or None for name, (value, _) in zip(names, record, strict=True)}
        for record in records[1:]
    ]
    return _table(names, tables, labelled)


def csv_records(text: str, separator: str) -> Iterator[list[tuple[str, bool]]]:
    """Fields of each record, and whether they stood in quotes, as the csv module reads them.

    The csv module of Python 3.11 does not say which fields were quoted; an end of file within quotes, which it
    lets pass, is refused.
    """
    record: list[tuple[str, bool]] = []
    value, quoted, inside, at = "", False, False, 0
    while at < len(text):
        letter = text[at]
        at += 1
        if inside:
            if letter != '"':
                value += letter
            elif text[at : at + 1] == '"':
                value += '"'
                at += 1
            else:
                inside = False
        elif letter == '"' and not value and not quoted:
            inside = quoted = True
        elif letter == separator:
            record.append((value, quoted))
            value, quoted = "", False
        elif letter in "\r\n":
            if letter == "\r" and text[at : at + 1] == "\n":
                at += 1
            if record or value or quoted:
                yield [*record, (value, quoted)]
            record, value, quoted = [], "", False
        else:
            value += letter
    if inside:
        raise Refused
    if record or value or quoted:
        yield [*record, (value, quoted)]


class _Written(str):
    """A number of a JSON file as it stands there."""


def _read_json(content: bytes, separator: str | None, labelled: bool) -> list[list[Row]]:
    text = _decoded(content)
    decoder = json.JSONDecoder(
        parse_int=_Written,
        parse_float=_Written,
        parse_constant=_no_constant,
        object_pairs_hook=_Object,
    )
    values, at = [], 0
    blank = re.compile(r"[ \t\r\n]*")
    try:
        while (at := blank.match(text, at).end()) < len(text):  # type: ignore[union-attr]
            value, at = decoder.raw_decode(text, at)
            values.append(value)
    except (ValueError, RecursionError) as error:
        raise Refused from error
    if len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    if not all(isinstance(value, _Object) for value in values):
        raise Refused
    names = list(dict.fromkeys(name for value in values for name, _ in value.pairs))
    used = {*TEXT_COLUMNS, *LABEL_COLUMNS, *LANGUAGE_COLUMNS}
    return _table(names, [value.used(used) for value in values], labelled)


def _no_constant(name: str) -> None:
    raise ValueError(name)


class _Object:
    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        self.pairs = pairs

    def used(self, names: set[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in self.pairs:
            if name in names:
                if name in found:
                    raise Refused
                found[name] = (
                    [_text(one) for one in value] if isinstance(value, list) else _text(value)
                )
        return found


def _text(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise Refused
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Refused from error
    return str(value)


def _read_parquet(content: bytes, separator: str | None, labelled: bool) -> list[list[Row]]:
    try:
        table = parquet.ParquetFile(io.BytesIO(content)).read()
    except Exception as error:
        raise Refused from error
    try:
        described = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
        features = described.get("info", {}).get("features", {})
    except (ValueError, AttributeError) as error:
        raise Refused from error
    used = [
        name
        for name in table.column_names
        if name in {*TEXT_COLUMNS, *LABEL_COLUMNS, *LANGUAGE_COLUMNS}
    ]
    columns = {}
    for name in used:
        feature = features.get(name, {})
        feature = feature.get("feature", feature)
        names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
        try:
            values = table.column(table.column_names.index(name)).to_pylist()
        except Exception as error:
            raise Refused from error
        columns[name] = [_value(value, names) for value in values]
    records = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    return _table(table.column_names, records, labelled)


def _value(value: Any, names: list[str] | None) -> Any:
    if isinstance(value, list):
        return [_value(one, names) for one in value]
    if names is not None and isinstance(value, int):
        if value >= len(names) or (value not in (-1, -100) and value < 0):
            raise Refused
        return names[value] if value >= 0 else None
    if isinstance(value, bool):
        raise Refused
    if isinstance(value, float) and value != value:
        raise Refused
    return str(value) if isinstance(value, int | float) else _text(value)


# --- words and tags -----------------------------------------------------------------------------


def _read_conll(content: bytes, separator: str | None, labelled: bool) -> list[list[Row]]:
    text = _decoded(content)
    readings: list[list[Row]] = []
    for newline, trailing, hash_words in product(_NEWLINES, (False, True), (False, True)):
        try:
            found = _conll(re.split(newline, text), trailing, hash_words)
        except Refused:
            continue
        readings += [reading for reading in found if reading not in readings]
    return readings


def _conll(lines: Sequence[str], trailing_separators: bool, hash_words: bool) -> list[list[Row]]:
    """Sentences of lines of columns, which are those of the whole file.

    Args:
        trailing_separators: Separators at the ends of lines separate nothing.
        hash_words: `# O` is a word and its tag, if that fits the file's other lines; else a comment.
    """
    lines = [line.rstrip("\t ") if trailing_separators else line for line in lines]
    comments = [line for line in lines if line.startswith("#") and "\t" not in line]
    words = [line for line in lines if line.strip() and line not in comments]
    if any("\t" in line for line in words):
        rows = _sentences(lines, comments, lambda line: line.split("\t"))
    else:
        # One-word comments are #, and #word is a word, in files whose separator is the space.
        split = partial(re.split, " +")
        width = min((len(split(line.strip(" "))) for line in words), default=0)
        tags = {line.split()[-1] for line in words}
        comments = [
            line
            for line in comments
            if (line.startswith("# ") or line == "#")
            and not (
                hash_words and len(split(line.strip(" "))) == width and line.split()[-1] in tags
            )
        ]
        rows = _sentences(lines, comments, lambda line: split(line.strip(" ")))
    widths = {len(row) for sentence in rows for row in sentence}
    if len(widths) != 1 or (width := widths.pop()) < 2:
        raise Refused
    if width == 2:
        return _words_and_tags(rows, 0, 1)
    numbered = _numbered(rows)
    readings = []
    if numbered is not False:
        kept = [[row for row in one if _WORD_ID.fullmatch(row[0])] for one in rows]
        readings += _words_and_tags([one for one in kept if one], 1, 2)
    if numbered:
        return readings
    cells = [row for sentence in rows for row in sentence]
    entities = [
        column
        for column in range(1, width)
        if all(row[column] == "O" or _PREFIXED.fullmatch(row[column]) for row in cells)
    ]
    for column in {*entities, width - 1}:
        readings += _words_and_tags(rows, 0, column)
    return readings


def _sentences(
    lines: Sequence[str], comments: Sequence[str], split: Callable[[str], list[str]]
) -> list[list[list[str]]]:
    sentences: list[list[list[str]]] = [[]]
    for line in lines:
        if not line.strip(" \t") or line.split()[0] == "-DOCSTART-":
            sentences.append([])
        elif line not in comments:
            sentences[-1].append([cell.strip(" ") for cell in split(line)])
    return [sentence for sentence in sentences if sentence]


def _numbered(rows: list[list[list[str]]]) -> bool | None:
    """Whether the first column numbers the words, from 1 in each sentence; None where it may.

    Raises:
        Refused: It does, but for a fault.
    """
    ids = [
        [row[0] for row in sentence if not _RANGE_OR_EMPTY_NODE.fullmatch(row[0])]
        for sentence in rows
    ]
    if any(ids) and all(one == [str(i + 1) for i in range(len(one))] for one in ids):
        return True
    flat = [one for sentence in ids for one in sentence]
    numbers = all(_WORD_ID.fullmatch(one) for one in flat)
    follows = sum(
        _WORD_ID.fullmatch(two) is not None and one.isdecimal() and int(two) == int(one) + 1
        for one, two in zip(["0", *flat], flat, strict=False)
    )
    if len(flat) < 4 or follows <= len(flat) / 2:
        return None if numbers else False
    if numbers:  # as over a whole document
        return True
    raise Refused


def _words_and_tags(rows: list[list[list[str]]], word: int, tag: int) -> list[list[Row]]:
    words = [[row[word] for row in sentence] for sentence in rows]
    tags = [[row[tag].strip() for row in sentence] for sentence in rows]
    return _token_readings(words, tags, ["und"] * len(words))


def _token_readings(
    words: Sequence[Any], tags: Sequence[Sequence[str]] | None, languages: Sequence[str]
) -> list[list[Row]]:
    kept = [i for i, one in enumerate(words) if one]
    if tags is None:
        return [[Row(tuple(words[i]), None, languages[i]) for i in kept]]
    return [
        [Row(tuple(words[i]), tuple(converted[i]), languages[i]) for i in kept]
        for converted in iob2_readings(tags)
    ]


def iob2_readings(sentences: Sequence[Sequence[str]]) -> list[list[list[str]]]:
    """Tags as IOB2 where they are of a known scheme, as they stand where they are of none.

    Where they fit no scheme to the letter, each that they may have been meant as.
    """
    raw = [list(one) for one in sentences]
    tags = {tag for one in raw for tag in one}
    inside = tags - {"O"}
    matches = [_PREFIXED.fullmatch(tag) for tag in inside]
    prefixes = {match[1] for match in matches if match}
    if not inside or not prefixes:
        if "O" in tags and inside:
            return [[_from_io(one) for one in raw]]
        return [classes_of_tags(raw)]
    everything = [raw, *([[_from_prefixes(one) for one in raw]] if all(matches) else [])]
    if not all(matches):
        return everything
    if prefixes <= {"B", "I"}:
        if all(_from_prefixes(one) == one for one in raw):
            return [raw]
        return everything[1:] if all(_is_iob1(one) for one in raw) else everything
    if prefixes <= {"B", "I", "E", "S"} or prefixes <= {"B", "I", "L", "U"}:
        return everything[1:] if all(_is_bioes(one) for one in raw) else everything
    return everything


def classes_of_tags(sentences: list[list[str]]) -> list[list[str]]:
    flat = iter(classes([tag for one in sentences for tag in one]))
    return [[next(flat) for _ in one] for one in sentences]


def _from_io(tags: Sequence[str]) -> list[str]:
    before = ["O", *tags]
    return [
        "O" if tag == "O" else f"{'I' if tag == last else 'B'}-{tag}"
        for last, tag in zip(before, tags, strict=False)
    ]


def _from_prefixes(tags: Sequence[str]) -> list[str]:
    """An entity begins at B, S, U, after O, E, S, L, U, or where the type changes."""
    made, last = [], ("O", "")
    for tag in tags:
        prefix, _, kind = tag.partition("-")
        if tag == "O":
            made.append("O")
        else:
            begins = prefix in "BSU" or last[0] in "OESLU" or last[1] != kind
            made.append(f"{'B' if begins else 'I'}-{kind}")
        last = (prefix, kind)
    return made


def _is_iob1(tags: Sequence[str]) -> bool:
    """Whether B stands only where an entity follows another of its type."""
    pairs = zip(["O", *tags], tags, strict=False)
    return all(last[2:] == tag[2:] and last != "O" for last, tag in pairs if tag.startswith("B-"))


def _is_bioes(tags: Sequence[str]) -> bool:
    """Whether each entity begins and ends as BIOES, or BILOU, has it."""
    is_open = False
    last = "O"
    for tag in [*tags, "O"]:
        follows = tag[:1] in "IEL" and tag != "O"
        if follows != is_open or (follows and last[2:] != tag[2:]):
            return False
        is_open = tag != "O" and tag[:1] in "BI"
        last = tag
    return True


def _read_txt(content: bytes, separator: str | None, labelled: bool) -> list[list[Row]]:
    text = _decoded(content)
    readings = []
    for newline in _NEWLINES:
        rows = [Row(line, None, "und") for line in re.split(newline, text) if line.strip()]
        if rows not in readings:
            readings.append(rows)
    return readings


_READERS: dict[str, Callable[[bytes, str | None, bool], list[list[Row]]]] = {
    "csv": _read_csv,
    "tsv": _read_tsv,
    "jsonl": _read_json,
    "json": _read_json,
    "parquet": _read_parquet,
    "conll": _read_conll,
    "iob2": _read_conll,
    "txt": _read_txt,
}
