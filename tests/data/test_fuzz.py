"""Data files of all formats, valid and damaged, against a plain reader: right, or refused.

    KDSHRINK_FUZZ_CASES=3000 pytest tests/data/test_fuzz.py -s

does long what the suite does briefly: so many files, a third of them damaged. KDSHRINK_FUZZ_SEED picks others
than the seed that is printed.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from hypothesis import strategies as st
from pyarrow import parquet

from kdshrink.commands.inputs import data_request
from kdshrink.config.commands import EvalConfig
from kdshrink.data.load import load_data
from kdshrink.errors import KdshrinkError

from ..helpers.plain_reader import Row, classes, csv_records, iob2_readings, read_plain

CASES = int(os.environ.get("KDSHRINK_FUZZ_CASES", "180"))
SEED = int(os.environ.get("KDSHRINK_FUZZ_SEED", "14"))
SECONDS = 20
"""A file that takes longer hangs: the slowest of them is a few hundred kilobytes."""

FUZZ = settings(
    max_examples=max(CASES // 3, 1),
    deadline=None,
    database=None,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
counts: Counter[str] = Counter()


@pytest.fixture(scope="module", autouse=True)
def _tell() -> Iterator[None]:
    yield
    print(f"\n{CASES} files, seed {SEED}: {dict(sorted(counts.items()))}")


# --- what stands in the files -------------------------------------------------------------------

NASTY = (
    *(
        "NA",
        "N/A",
        "nan",
        "NaN",
        "null",
        "NULL",
        "None",
        "true",
        "False",
        "007",
        "1.0",
        "-1",
        "1e5",
        "inf",
    ),
    *(
        " padded ",
        "a,b",
        "a;b",
        "a\tb",
        'say "hi"',
        '"',
        "''",
        "a\nb",
        "a\r\nb",
        "a\rb",
        "\\",
        "\\n",
        "#",
        "# O",
    ),
    *(
        "😀👩‍👩‍👧",
        "مرحبا ‏بالعالم",
        "e\u0301",
        "\u00a0nbsp\u00a0",
        "a\u2028b\u2029c\x85d",
        "\ufeffmark",
        "\x0b\x0c\x1c",
    ),
    *(
        "=1+1",
        "[1, 2]",
        "{'a': 1}",
        "-DOCSTART-",
        "𝔘𝔫𝔦",
        "-" * 20_000,
        "ÿþ",
        "\x01\x7f",
        "a\0b",
        "\u200b",
    ),
)
texts = st.one_of(
    st.sampled_from(NASTY),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30),
    st.text("abc ,;\t\"'\n\r\\", min_size=1, max_size=15),
)
languages = st.sampled_from(["de", "es", "sw"])


def fits(text: str, without: str) -> bool:
    return not set(text) & set(without)


@st.composite
def label_pools(draw: Any, without: str = "\0") -> list[str]:
    """Names of labels; of which some are padded, and all may be numbers."""
    # Beside labels that are no numbers, one number in two spellings is refused, as are booleans beside numbers.
    plain = st.sampled_from(
        ["NA", "null", "None", "007", "01", "1", "-1", "2.50", "10", "x y", "Ünder", "a,b", 'q"q']
    )
    numbers = st.sampled_from(["1", "2", "3.0", "4.5", "10", "-2", "3", "1.0"])
    some = st.one_of(plain, st.text("abcäß漢-_.:/", min_size=1, max_size=8))
    pool = draw(st.one_of(st.lists(some, min_size=1, max_size=5), st.lists(numbers, min_size=1)))
    if draw(st.booleans()):
        pool = [f" {label}" for label in pool]
    kept = [label for label in pool if fits(label, without) and label.strip()]
    return kept or ["plain"]


@dataclass(frozen=True)
class DataFile:
    """A file, what it was made of, and what to say beside its name.

    Attributes:
        rows: None where the readings of `read_plain` are all that is known.
    """

    name: str
    content: bytes
    rows: list[Row]
    labelled: bool = True
    options: dict[str, Any] = field(default_factory=dict)


@st.composite
def tables(draw: Any, without: str, empty: bool) -> list[Row]:
    """Rows of text, label and language, whose values have none of some characters."""
    one = texts.filter(lambda text: fits(text, without))
    if empty:
        one = st.one_of(one, st.just(""))
    pool = draw(label_pools(without))
    with_language = draw(st.booleans())
    row = st.builds(Row, one, st.sampled_from(pool), languages if with_language else st.just("und"))
    return list(draw(st.lists(row, min_size=1, max_size=8)))


def expected(rows: Sequence[Row]) -> list[Row]:
    """What a table's rows are read as."""
    names = classes([str(row.label).strip() for row in rows])
    return [replace(row, label=name) for row, name in zip(rows, names, strict=True)]


def records(draw: Any, rows: Sequence[Row], fill: Sequence[Any]) -> list[dict[str, Any]]:
    """Rows with columns of usual names in any order, and perhaps one that nobody asks for."""
    text = draw(st.sampled_from(["text", "utt", "sentence"]))
    label = draw(st.sampled_from(["label", "labels", "intent"]))
    language = draw(st.sampled_from(["language", "lang", "locale"]))
    names = [text, label]
    if any(row.language != "und" for row in rows):
        names.append(language)
    if draw(st.booleans()):
        names.append("score")
    made = []
    order = draw(st.permutations(names))
    for i, row in enumerate(rows):
        values = {
            text: row.text,
            label: row.label,
            language: row.language,
            "score": fill[i % len(fill)],
        }
        made.append({name: values[name] for name in order})
    return made


def with_mark(draw: Any, text: str) -> bytes:
    return (b"\xef\xbb\xbf" if draw(st.booleans()) else b"") + text.encode()


# --- one strategy a format ----------------------------------------------------------------------


@st.composite
def csv_files(draw: Any) -> DataFile:
    separator = draw(st.sampled_from([",", ";", "\t", "|"]))
    name = draw(st.sampled_from(["data.csv", "data.tsv"]))
    quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    rows = draw(tables("", empty=False))
    table = records(draw, rows, ["1", "0.5", "", "none", "2020-01-01"])
    file = io.StringIO()
    ending = "\r\n" if quoting == csv.QUOTE_MINIMAL else draw(st.sampled_from(["\n", "\r\n"]))
    writer = csv.DictWriter(
        file, list(table[0]), delimiter=separator, quoting=quoting, lineterminator=ending
    )
    writer.writeheader()
    writer.writerows(table)
    text = file.getvalue()
    if draw(st.booleans()):
        text = text.removesuffix(ending)
    said = separator != "," or name == "data.tsv"
    options = {"separator": separator} if said else {}
    return DataFile(name, with_mark(draw, text), expected(rows), options=options)


@st.composite
def tsv_files(draw: Any) -> DataFile:
    rows = draw(tables("\t\r\n", empty=False))
    table = records(draw, rows, ["1", "", '"'])
    ending = draw(st.sampled_from(["\n", "\r\n"]))
    lines = ["\t".join(table[0]), *("\t".join(map(str, row.values())) for row in table)]
    text = ending.join(lines) + draw(st.sampled_from(["", ending]))
    return DataFile("data.tsv", with_mark(draw, text), expected(rows))


def bare(label: Any) -> Any:
    """A label as a number of JSON where it can be one."""
    try:
        number = json.loads(label)
    except ValueError:
        return label
    return number if isinstance(number, int | float) and repr(number) == label else label


@st.composite
def json_files(draw: Any) -> DataFile:
    rows = draw(tables("", empty=True))
    nested: list[Any] = [1, "a", None, {"a": [1]}, [[]], 0.5, True]
    table = records(draw, rows, nested)
    if draw(st.booleans()):
        label = next(name for name in table[0] if name in ("label", "labels", "intent"))
        if all(bare(row[label]) != row[label] for row in table):
            table = [{**row, label: bare(row[label])} for row in table]
    ascii_only = draw(st.booleans())
    if draw(st.booleans()):
        ending = draw(st.sampled_from(["\n", "\r\n", "\n\n"]))
        text = ending.join(json.dumps(row, ensure_ascii=ascii_only) for row in table)
        return DataFile("data.jsonl", with_mark(draw, text), expected(rows))
    text = json.dumps(table, ensure_ascii=ascii_only, indent=draw(st.sampled_from([None, 2])))
    return DataFile("data.json", with_mark(draw, text), expected(rows))


@st.composite
def parquet_files(draw: Any) -> DataFile:
    rows = draw(tables("", empty=True))
    table = records(draw, rows, [1])
    kinds = st.sampled_from(
        [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
    )
    columns: dict[str, Any] = {}
    for name in table[0]:
        values = [row[name] for row in table]
        columns[name] = values if name == "score" else pa.array(values).cast(draw(kinds))
    whole = pa.table(columns)
    label = next(name for name in columns if name in ("label", "labels", "intent"))
    if draw(st.booleans()):
        names = draw(st.permutations(sorted({f"l{str(row.label).strip()}" for row in rows})))
        rows = [replace(row, label=f"l{str(row.label).strip()}") for row in rows]
        whole = class_labels(whole, label, names, [names.index(row.label) for row in rows])
    file = io.BytesIO()
    parquet.write_table(
        whole,
        file,
        compression=draw(st.sampled_from(["none", "snappy", "zstd"])),
        row_group_size=draw(st.sampled_from([1, 3, 1000])),
    )
    return DataFile("data.parquet", file.getvalue(), expected(rows))


def class_labels(table: pa.Table, column: str, names: Sequence[str], values: Any) -> pa.Table:
    """The table with a column as datasets writes a ClassLabel, or lists of them."""
    listed = bool(values) and isinstance(values[0], list)
    feature = ClassLabel(names=list(names))
    features = Features({column: List(feature) if listed else feature})
    made = Dataset.from_dict({column: values}, features=features).with_format("arrow")
    data = made.data.table
    others = [name for name in table.column_names if name != column]
    for name in others:
        kind = Value("string") if name != "tokens" else List(Value("string"))
        features = Features({**features, name: kind})
        data = data.append_column(name, table.column(name))
    metadata = {"huggingface": json.dumps({"info": {"features": features.to_dict()}})}
    return data.replace_schema_metadata(metadata)


# --- words and tags -----------------------------------------------------------------------------

words = st.one_of(
    st.sampled_from(
        [
            "Anna",
            "in",
            "São",
            "1",
            "1990",
            "3.5",
            ",",
            '"',
            "#",
            "漢字",
            "😀",
            "a\u00a0b",
            "'s",
            "NA",
            "O",
        ]
    ),
    st.text(
        st.characters(exclude_categories=["Cs", "Zs", "Zl", "Zp", "Cc"]), min_size=1, max_size=8
    ),
)


@st.composite
def sentences(draw: Any) -> list[tuple[list[str], list[tuple[int, int, str]]]]:
    """Words, and entities as (begin, end, type)."""
    made = []
    for _ in range(draw(st.integers(1, 5))):
        said = draw(st.lists(words, min_size=1, max_size=7))
        spans, at = [], 0
        while at < len(said):
            length = draw(st.integers(1, 3))
            kind = draw(st.sampled_from(["", "PER", "LOC", "MISC-x"]))
            if kind:
                spans.append((at, min(at + length, len(said)), kind))
            at += length
        made.append((said, spans))
    return made


def tagged(count: int, spans: Sequence[tuple[int, int, str]], scheme: str) -> list[str]:
    """Tags of a scheme."""
    tags = ["O"] * count
    for begin, end, kind in spans:
        for i in range(begin, end):
            first, last = i == begin, i == end - 1
            if scheme == "IO":
                tags[i] = kind
            elif scheme == "IOB1":
                adjacent = first and begin > 0 and tags[begin - 1].endswith(f"-{kind}")
                tags[i] = f"{'B' if adjacent else 'I'}-{kind}"
            elif scheme == "IOB2":
                tags[i] = f"{'B' if first else 'I'}-{kind}"
            else:
                single, end_mark = ("S", "E") if scheme == "BIOES" else ("U", "L")
                prefix = single if first and last else "B" if first else end_mark if last else "I"
                tags[i] = f"{prefix}-{kind}"
    return tags


@st.composite
def token_rows(draw: Any, prefixed: bool = False) -> tuple[list[Row], list[list[str]]]:
    """Rows as they are to be read, in IOB2, and the tags that the file has."""
    schemes = ["IOB2", "IOB1", "BIOES", "BILOU", *([] if prefixed else ["IO", "POS"])]
    scheme = draw(st.sampled_from(schemes))
    made = draw(sentences())
    if scheme == "POS":
        kind = st.sampled_from(["NOUN", "VERB", "ADJ", "PUNCT", "X"])
        tags = [[draw(kind) for _ in said] for said, _ in made]
        return [Row(tuple(m[0]), tuple(t), "und") for m, t in zip(made, tags, strict=True)], tags
    if scheme == "IO":
        made = [(said, merged(spans)) for said, spans in made]
    tags = [tagged(len(said), spans, scheme) for said, spans in made]
    if scheme == "IO":
        assume(any("O" in one for one in tags))
    rows = [
        Row(tuple(said), tuple(tagged(len(said), spans, "IOB2")), "und") for said, spans in made
    ]
    return rows, tags


def merged(spans: Sequence[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Entities that touch another of their type as one: IO cannot tell them apart."""
    made: list[tuple[int, int, str]] = []
    for begin, end, kind in spans:
        if made and made[-1][1] == begin and made[-1][2] == kind:
            begin = made.pop()[0]
        made.append((begin, end, kind))
    return made


@st.composite
def conll_files(draw: Any) -> DataFile:
    kind = draw(st.sampled_from(["two", "pos", "2003", "numbered", "uner"]))
    # Of many columns those of the tags are found by their prefixes.
    rows, tags = draw(token_rows(prefixed=kind in ("pos", "2003", "uner")))
    separator = "\t" if kind == "uner" else draw(st.sampled_from(["\t", " "]))
    ending = draw(st.sampled_from(["\n", "\r\n"]))
    firsts = [str(word) for row in rows for word in row.text]
    # Words that number the words on most lines, and not on all, are refused as a damaged numbering.
    numbers = sum(word.isdigit() for word in firsts)
    assume(kind in ("numbered", "uner") or 2 * numbers <= len(firsts))
    assume(not any(word.startswith("-DOCSTART-") for word in firsts))
    comments = draw(st.booleans())
    lines = (
        [separator.join(["-DOCSTART-", "-X-", "-X-", "O"]), ""]
        if kind == "2003" and draw(st.booleans())
        else []
    )
    for number, (row, its_tags) in enumerate(zip(rows, tags, strict=True)):
        if comments:
            lines.append(f"# sent_id = {number}")
        if separator == " ":
            assume(not str(row.text[0]).startswith("#") or kind in ("numbered", "uner"))
        for i, (word, tag) in enumerate(zip(row.text, its_tags, strict=True), 1):
            if separator == " " and word == "#" and kind not in ("numbered", "uner"):
                assume(False)
            if kind in ("numbered", "uner") and draw(st.integers(0, 9)) == 0:
                lines.append(
                    separator.join(
                        [f"{i}-{i + 1}", word + "x", *(["_"] * (3 if kind == "uner" else 1))]
                    )
                )
            columns = {
                "two": [word, tag],
                "pos": [word, "NN", tag],
                "2003": [word, "NN", "I-NP", tag],
                "numbered": [str(i), word, tag],
                "uner": [str(i), word, tag, "-", "ann"],
            }[kind]
            lines.append(separator.join(columns))
        lines += [""] * draw(st.integers(1, 2))
    text = ending.join(lines) + draw(st.sampled_from(["", ending]))
    name = draw(st.sampled_from(["data.conll", "data.iob2"]))
    return DataFile(name, with_mark(draw, text), rows)


@st.composite
def word_tables(draw: Any) -> DataFile:
    """Lists of words and tags as JSON lines or parquet, with sentences of no words between."""
    rows, tags = draw(token_rows())
    said = [[str(word) for word in row.text] for row in rows]
    if draw(st.booleans()):
        said, tags = [*said, []], [*tags, []]
    text = draw(st.sampled_from(["tokens", "words"]))
    label = draw(st.sampled_from(["ner_tags", "tags"]))
    if draw(st.booleans()):
        lines = [
            json.dumps({text: one, label: its_tags}, ensure_ascii=False)
            for one, its_tags in zip(said, tags, strict=True)
        ]
        return DataFile("data.jsonl", with_mark(draw, "\n".join(lines)), rows)
    kind = draw(st.sampled_from([pa.list_, pa.large_list]))
    inner = draw(st.sampled_from([pa.string(), pa.large_string()]))
    table = pa.table({text: pa.array(said, kind(inner))})
    if text == "tokens" and draw(st.booleans()):
        names = sorted({tag for one in tags for tag in one})
        table = pa.table({text: pa.array(said, pa.list_(pa.string()))})
        values = [[names.index(tag) for tag in one] for one in tags]
        table = class_labels(table, label, names, values)
    else:
        table = table.append_column(label, pa.array(tags, kind(inner)))
    file = io.BytesIO()
    parquet.write_table(table, file)
    return DataFile("data.parquet", file.getvalue(), rows)


@st.composite
def text_files(draw: Any) -> DataFile:
    one = texts.filter(lambda text: fits(text, "\r\n") and text.strip() and text[0] != "\ufeff")
    lines = draw(st.lists(one, min_size=1, max_size=8))
    ending = draw(st.sampled_from(["\n", "\r\n", "\n\n"]))
    rows = [Row(line, None, "und") for line in lines]
    return DataFile("data.txt", with_mark(draw, ending.join(lines)), rows, labelled=False)


@st.composite
def split_files(draw: Any) -> tuple[dict[str, bytes], list[Row]]:
    """A train and a test file, not always in one format, and what the test file's rows are read as."""
    rows = draw(tables("", empty=False).filter(lambda rows: len(rows) > 1))
    cut = draw(st.integers(1, len(rows) - 1))
    contents = {}
    for split, some in (("train", rows[:cut]), ("test", rows[cut:])):
        ending = draw(st.sampled_from(sorted(WRITERS)))
        columns = [{"text": r.text, "label": r.label, "language": r.language} for r in some]
        contents[f"{split}.{ending}"] = WRITERS[ending](columns)
    return contents, expected(rows)[cut:]


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def _json_lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(list(rows)), file)
    return file.getvalue()


WRITERS: dict[str, Callable[[Sequence[dict[str, Any]]], bytes]] = {
    "csv": _csv,
    "jsonl": _json_lines,
    "parquet": _parquet,
}


@st.composite
def data_files(draw: Any) -> DataFile:
    made = draw(
        st.one_of(
            csv_files(),
            tsv_files(),
            json_files(),
            parquet_files(),
            conll_files(),
            conll_files(),
            word_tables(),
            text_files(),
        )
    )
    if made.name.endswith(".parquet"):
        return made
    suffix = draw(st.sampled_from(["", "", "", "", "", "", ".gz", ".zst"]))
    return replace(made, name=made.name + suffix, content=COMPRESSED[suffix](made.content))


def _zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": lambda content: gzip.compress(content, mtime=0),
    ".zst": _zstd,
}


# --- damage -------------------------------------------------------------------------------------

_BYTES = st.sampled_from(
    [b'"', b",", b";", b"\t", b"\n", b"\r", b"\0", b"\xff", b"\xc3", b"[", b"]", b"{", b"}", b"\\", b" ", b"#",
     b"0", b"-1", b"null", b"NaN", b"\\ud800", b"\xef\xbb\xbf", b'""', b"\n\n", b":", b"O", b"1e999", b"/"]
)  # fmt: skip
_mutation = st.one_of(
    st.tuples(st.just("insert"), st.integers(0), _BYTES),
    st.tuples(st.just("replace"), st.integers(0), _BYTES),
    st.tuples(st.just("flip"), st.integers(0), st.integers(0, 7)),
    st.tuples(st.just("delete"), st.integers(0), st.integers(1, 20)),
    st.tuples(st.just("repeat"), st.integers(0), st.integers(1, 40)),
    st.tuples(st.just("cut"), st.integers(0), st.just(0)),
)
mutations = st.lists(_mutation, min_size=1, max_size=3)


def mutate(content: bytes, changes: Sequence[tuple[str, int, Any]]) -> bytes:
    for kind, place, what in changes:
        at = place % (len(content) + 1)
        before, after = content[:at], content[at:]
        if kind == "insert":
            content = before + what + after
        elif kind == "replace":
            content = before + what + after[len(what) :]
        elif kind == "flip" and after:
            content = before + bytes([after[0] ^ (1 << what)]) + after[1:]
        elif kind == "delete":
            content = before + after[what:]
        elif kind == "repeat":
            content = before + after[:what] + after
        elif kind == "cut":
            content = before
    return content


# --- the tests ----------------------------------------------------------------------------------


@contextmanager
def bounded() -> Iterator[None]:
    """A hang is a failure."""

    def over(*_: object) -> None:
        raise TimeoutError(f"reading took more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def read(path: Path, file: DataFile) -> list[Row]:
    """What kdshrink reads of a file, languages apart."""
    config = EvalConfig(model="unused", data=str(path), **file.options)
    with bounded():
        data = load_data(
            data_request(config),
            ("test",),
            purpose="evaluate",
            labels="required" if file.labelled else "optional",
        )
    names = data.labels or ()
    rows = []
    for row in data.splits["test"]:
        text, label = row["text"], row.get("label")
        if isinstance(text, list):
            tags = None if label is None else tuple(names[i] for i in label)
            rows.append(Row(tuple(text), tags, row["language"]))
        else:
            rows.append(Row(text, None if label is None else names[label], row["language"]))
    return rows


def check_message(message: str) -> None:
    """One to three lines, of which none is a whole file."""
    assert 1 <= len(message.split("\n")) <= 3, message
    assert len(message) < 2_000, message[:2_000]


def by_language(rows: Sequence[Row]) -> list[Row]:
    """In the order of TaskData: languages by name, each in the order of the file."""
    return sorted(rows, key=lambda row: row.language)


@seed(SEED)
@FUZZ
@given(data_files())
def test_a_valid_file_is_read_as_it_stands(file: DataFile) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / file.name
        path.write_bytes(file.content)
        separator = file.options.get("separator")
        readings = read_plain(path, separator=separator, labelled=file.labelled)
        assert file.rows in readings, "the plain reader itself"
        assert by_language(file.rows) == read(path, file)
    counts["valid"] += 1


@seed(SEED)
@FUZZ
@given(split_files())
def test_labels_are_decided_over_all_files(files: tuple[dict[str, bytes], list[Row]]) -> None:
    contents, rows = files
    with tempfile.TemporaryDirectory() as folder:
        for name, content in contents.items():
            (Path(folder) / name).write_bytes(content)
        found = read(Path(folder), DataFile("", b"", rows))
    assert by_language(rows) == found
    counts["valid, of two files"] += 1


@seed(SEED)
@FUZZ
@given(data_files(), mutations)
def test_a_damaged_file_is_refused_or_read_as_it_stands(
    file: DataFile, changes: list[tuple[str, int, Any]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / file.name
        path.write_bytes(mutate(file.content, changes))
        try:
            rows = read(path, file)
        except KdshrinkError as error:
            check_message(str(error))
            counts["damaged, refused"] += 1
            return
        separator = file.options.get("separator")
        readings = read_plain(path, separator=separator, labelled=file.labelled)
        found = Counter((row.text, row.label) for row in rows)
        # What is damaged may be a part that is not read: a second copy, or another program's metadata.
        possible = [*readings, file.rows]
        assert found in [Counter((row.text, row.label) for row in one) for one in possible]
    counts["damaged, read"] += 1


@seed(SEED)
@settings(FUZZ, max_examples=100)
@given(st.text('ab",;\n\r\t ', max_size=40), st.sampled_from(",;\t"))
def test_the_plain_reader_reads_csv_as_the_csv_module_does(text: str, separator: str) -> None:
    theirs = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if row]
    try:
        mine = [[value for value, _ in record] for record in csv_records(text, separator)]
    except Exception:
        with pytest.raises(csv.Error):
            list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
        return
    assert mine == theirs


@seed(SEED)
@settings(FUZZ, max_examples=100)
@given(token_rows())
def test_the_plain_reader_converts_tags_as_they_were_meant(
    made: tuple[list[Row], list[list[str]]],
) -> None:
    rows, tags = made
    assert iob2_readings(tags) == [[list(row.label or ()) for row in rows]]
