"""Files as users have them, written by what writes them: each is read as its user expects, or refused by place."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from pyarrow import parquet

from kdshrink.commands.inputs import data_request
from kdshrink.config.commands import EvalConfig
from kdshrink.data.load import TaskData, load_data
from kdshrink.errors import DataError, KdshrinkError, UsageError

REVIEWS = [
    ("Sehr gut, gerne wieder!", "positive"),
    ('Er sagte: "nie wieder"', "negative"),
    ("Zeile eins\nZeile zwei", "neutral"),
    ("NA", "negative"),
    ("null", "neutral"),
    ("007", "positive"),
    ("1.0", "positive"),
    ("  eingerückt ", "neutral"),
    ("😀 موسيقى", "positive"),
]
ENTITIES = [
    (["Anna", "Weber", "wohnt", "in", "Lissabon", "."], ["B-PER", "I-PER", "O", "O", "B-LOC", "O"]),
    (["1990", "kam", "UNO", "nach", "Bonn"], ["O", "O", "B-ORG", "O", "B-LOC"]),
    (["Bonn", "Köln", "Ruhe"], ["B-LOC", "B-LOC", "O"]),
]


def load(data: object, *splits: str, purpose: Any = "evaluate", **options: Any) -> TaskData:
    config = EvalConfig(model="unused", data=str(data), **options)
    return load_data(data_request(config), splits or ("test",), purpose=purpose)


def named(data: TaskData, split: str = "test") -> list[tuple[Any, Any]]:
    """Texts and names of labels."""
    labels = data.labels or ()
    pairs = []
    for row in data.splits[split]:
        label = row["label"]
        names = [labels[i] for i in label] if isinstance(label, list) else labels[label]
        pairs.append((row["text"], names))
    return pairs


def rows(data: object, **options: Any) -> list[tuple[Any, Any]]:
    return named(load(data, **options))


def refused(data: object, *words: str, **options: Any) -> None:
    """The data is refused in at most three lines, which have these words."""
    splits = options.pop("splits", ("test",))
    with pytest.raises(KdshrinkError) as caught:
        load(data, *splits, **options)
    message = str(caught.value)
    assert len(message.splitlines()) <= 3
    assert len(message) < 1_000
    for word in words:
        assert word in message, message


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame(REVIEWS, columns=["text", "label"])


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def write_zst(frame: pd.DataFrame, path: Path) -> None:
    """What pandas writes where zstandard is installed."""
    with pa.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write(frame.to_csv(index=False).encode())


# --- pandas -------------------------------------------------------------------------------------


@pytest.mark.defect("M2", "W8")
@pytest.mark.parametrize("index", [False, True])
def test_csv_of_pandas(tmp_path: Path, frame: pd.DataFrame, index: bool) -> None:
    frame.to_csv(tmp_path / "reviews.csv", index=index)
    assert rows(tmp_path / "reviews.csv") == REVIEWS


def test_compressed_csv_of_pandas(tmp_path: Path, frame: pd.DataFrame) -> None:
    frame.to_csv(tmp_path / "reviews.csv.gz", index=False)
    write_zst(frame, tmp_path / "reviews.csv.zst")
    assert rows(tmp_path / "reviews.csv.gz") == rows(tmp_path / "reviews.csv.zst") == REVIEWS


def test_tsv_of_pandas_with_its_quotes(tmp_path: Path, frame: pd.DataFrame) -> None:
    frame.to_csv(tmp_path / "reviews.tsv", index=False, sep="\t")
    assert rows(tmp_path / "reviews.tsv", separator="\t") == REVIEWS


@pytest.mark.parametrize("lines", [False, True])
def test_json_of_pandas(tmp_path: Path, frame: pd.DataFrame, lines: bool) -> None:
    path = tmp_path / ("reviews.jsonl" if lines else "reviews.json")
    frame.to_json(path, orient="records", lines=lines)
    assert rows(path) == REVIEWS


def test_json_of_pandas_by_columns_is_refused(tmp_path: Path, frame: pd.DataFrame) -> None:
    frame.to_json(tmp_path / "reviews.json")
    refused(tmp_path / "reviews.json", "reviews.json")


@pytest.mark.parametrize("dtype", ["object", "string[pyarrow]", "category"])
def test_parquet_of_pandas(tmp_path: Path, frame: pd.DataFrame, dtype: str) -> None:
    frame = frame.astype({"label": dtype})
    frame[frame.index >= 0].sort_index().to_parquet(tmp_path / "reviews.parquet", index=True)
    assert rows(tmp_path / "reviews.parquet") == REVIEWS


@pytest.mark.defect("M3")
def test_a_missing_text_of_pandas_is_refused_by_its_line(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ["gut", None, "schlecht"], "label": ["p", "n", "n"]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    frame.to_parquet(tmp_path / "a.parquet")
    refused(tmp_path / "a.csv", "a.csv", "3", "text")
    refused(tmp_path / "a.jsonl", "a.jsonl", "2", "text")
    refused(tmp_path / "a.parquet", "a.parquet", "2", "text")


@pytest.mark.defect("W14", "M3")
def test_a_missing_label_of_pandas_is_refused_by_its_line(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ["a", "b", "c"], "label": [1.0, float("nan"), 2.0]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    frame.to_parquet(tmp_path / "a.parquet")
    refused(tmp_path / "a.csv", "a.csv", "3", "label")
    refused(tmp_path / "a.jsonl", "a.jsonl", "2", "label")
    refused(tmp_path / "a.parquet", "a.parquet", "2", "label")


@pytest.mark.defect("W15")
def test_lists_that_pandas_wrote_as_text_are_refused(tmp_path: Path) -> None:
    frame = pd.DataFrame(ENTITIES, columns=["tokens", "ner_tags"])
    frame.to_csv(tmp_path / "names.csv", index=False)
    refused(tmp_path / "names.csv", "names.csv", "parquet")
    frame.to_parquet(tmp_path / "names.parquet")
    assert rows(tmp_path / "names.parquet") == ENTITIES


def test_booleans_are_the_same_classes_in_each_format(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ["a", "b"], "label": [True, False]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    frame.to_parquet(tmp_path / "a.parquet")
    found = [rows(tmp_path / name) for name in ("a.csv", "a.jsonl", "a.parquet")]
    assert found == [[("a", "True"), ("b", "False")]] * 3


def test_numbers_are_the_same_classes_in_each_format(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ["a", "b", "c"], "label": [10, 2, 1]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    frame.to_parquet(tmp_path / "a.parquet")
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        data = load(tmp_path / name)
        assert data.labels == ("1", "2", "10")
        assert named(data) == [("a", "10"), ("b", "2"), ("c", "1")]


# --- spreadsheets and R -------------------------------------------------------------------------

EXCEL = (
    "text;label\r\nSchön, aber teuer;negative\r\n"
    '"Er sagte: ""nie"";\nund ging";negative\r\nGrüße für €5;positive\r\n'
)
OF_EXCEL = [
    ("Schön, aber teuer", "negative"),
    ('Er sagte: "nie";\nund ging', "negative"),
    ("Grüße für €5", "positive"),
]


@pytest.mark.defect("W12")
def test_csv_of_excel_in_utf_8(tmp_path: Path) -> None:
    path = write(tmp_path / "export.csv", EXCEL, "utf-8-sig")
    assert rows(path, separator=";") == OF_EXCEL
    commas = write(tmp_path / "commas.csv", "text,label\r\na,b\r\n", "utf-8-sig")
    assert rows(commas) == [("a", "b")]


def test_semicolons_without_the_separator_are_refused_with_what_to_do(tmp_path: Path) -> None:
    refused(write(tmp_path / "export.csv", EXCEL, "utf-8-sig"), "--separator", "text;label")


def test_csv_of_excel_in_the_code_page_of_windows(tmp_path: Path) -> None:
    path = write(tmp_path / "export.csv", EXCEL, "cp1252")
    assert rows(path, separator=";", encoding="cp1252") == OF_EXCEL
    refused(path, "export.csv", "line 2", "--encoding", separator=";")


def test_unicode_text_of_excel(tmp_path: Path) -> None:
    path = write(tmp_path / "export.tsv", EXCEL.replace(";", "\t"), "utf-16")
    expected = [(text.replace(";", "\t"), label) for text, label in OF_EXCEL]
    assert rows(path, separator="\t", encoding="utf-16") == expected
    refused(path, "export.tsv", "--encoding utf-16", separator="\t")


def test_csv_of_r(tmp_path: Path) -> None:
    text = '"","text","label"\n"1","he said ""no""","neg"\n"2","NA","pos"\n"3","a, b","pos"\n'
    path = write(tmp_path / "frame.csv", text)
    assert rows(path) == [('he said "no"', "neg"), ("NA", "pos"), ("a, b", "pos")]


@pytest.mark.defect("D5", "M3")
def test_row_names_of_r_without_a_header_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "frame.csv", '"text","label"\n"1","good","pos"\n"2","bad","neg"\n')
    refused(path, "frame.csv", "line 2")


@pytest.mark.defect("D5", "M3")
def test_commas_without_quotes_are_refused_by_their_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\nfine,pos\nwell, not so fine,neg\n")
    refused(path, "a.csv", "line 3")
    narrow = write(tmp_path / "b.csv", "text,label\nfine,pos\nno label\n")
    refused(narrow, "b.csv", "line 3")


@pytest.mark.defect("D4")
def test_a_quote_in_tsv_is_a_letter(tmp_path: Path) -> None:
    text = 'text\tlabel\n"Hi, he said\tpos\n5" screen\tneg\n"quoted"\tpos\nit"s\tneg\n'
    path = write(tmp_path / "a.tsv", text)
    assert rows(path) == [
        ('"Hi, he said', "pos"),
        ('5" screen', "neg"),
        ('"quoted"', "pos"),
        ('it"s', "neg"),
    ]


@pytest.mark.defect("D4")
def test_quotes_of_csv_in_tsv_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = 'text\tlabel\nfine\tpos\n"He said ""no"""\tneg\n'
    path = write(tmp_path / "a.tsv", text)
    assert rows(path) == [("fine", "pos"), ('"He said ""no"""', "neg")]
    (record,) = caplog.records
    assert "a.tsv, line 3: a field is quoted as in CSV" in record.getMessage()
    caplog.clear()
    assert rows(path, separator="tab") == [("fine", "pos"), ('He said "no"', "neg")]
    plain = write(tmp_path / "b.tsv", 'text\tlabel\n"quoted"\tpos\n5"" wide\tneg\n')
    assert rows(plain) == [('"quoted"', "pos"), ('5"" wide', "neg")]
    assert not caplog.records


@pytest.mark.defect("D4")
def test_a_quote_that_is_not_closed_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\nfine,pos\n"open,neg\nthird,pos\nfourth,neg\n')
    refused(path, "a.csv", "line 3")


def test_lines_that_windows_ended_twice(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\r\r\ngood,pos\r\r\nbad,neg\r\r\n")
    assert rows(path) == [("good", "pos"), ("bad", "neg")]


def test_a_file_without_a_header_is_refused(tmp_path: Path) -> None:
    refused(write(tmp_path / "a.csv", "good,pos\nbad,neg\n"), "--text-column")


def test_an_empty_text_is_a_missing_one(tmp_path: Path) -> None:
    """In quotes or not: some programs quote every field, those without a value too."""
    refused(write(tmp_path / "a.csv", 'text,label\n"",pos\nb,neg\n'), "a.csv", "line 2")
    refused(write(tmp_path / "b.csv", "text,label\na,pos\n,neg\n"), "b.csv", "line 3")
    refused(write(tmp_path / "c.tsv", "text\tlabel\na\tpos\n\tneg\n"), "c.tsv", "line 3")


# --- labels -------------------------------------------------------------------------------------


@pytest.mark.defect("W8")
def test_codes_keep_their_zeros_in_every_split(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", "text,label\na,01\nb,02\nc,A1\n")
    write(tmp_path / "test.csv", "text,label\nx,01\ny,02\n")
    data = load(tmp_path)
    assert data.labels == ("01", "02", "A1")
    assert named(data) == [("x", "01"), ("y", "02")]


@pytest.mark.defect("W8", "M1")
def test_types_do_not_change_after_ten_thousand_rows(tmp_path: Path) -> None:
    lines = [f"{i},{i % 2 + 1:02d},{i}\n" for i in range(11_000)] + ["007,A1,none\n", "8,01,x\n"]
    path = write(tmp_path / "long.csv", "text,label,score\n" + "".join(lines))
    data = load(path)
    assert data.labels == ("01", "02", "A1")
    found = named(data)
    assert [found[0], *found[-2:]] == [("0", "01"), ("007", "A1"), ("8", "01")]
    assert len(found) == 11_002


@pytest.mark.defect("W7")
def test_ratings_match_by_value_over_files(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", "text,label\na,1.0\nb,2.0\nc,3.0\nd,4.0\ne,5.0\n")
    write(tmp_path / "test.csv", "text,label\nv,1\nw,4\n")
    data = load(tmp_path)
    assert [float(label) for label in data.labels or ()] == [1, 2, 3, 4, 5]
    assert named(data) == [("v", "1"), ("w", "4")]


@pytest.mark.defect("W9")
def test_a_class_has_one_name_over_files(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", "text,label\na,1\nb,2\nc,3\nd,unknown\n")
    write(tmp_path / "test.csv", "text,label\nx,1\ny,2\nz,3\n")
    data = load(tmp_path)
    assert data.labels == ("1", "2", "3", "unknown")
    assert named(data) == [("x", "1"), ("y", "2"), ("z", "3")]


def test_labels_are_stripped(tmp_path: Path) -> None:
    assert load(write(tmp_path / "a.csv", "text,label\na, pos\nb,pos\nc,neg \n")).labels == (
        "neg",
        "pos",
    )


@pytest.mark.defect("T5")
def test_labels_of_mixed_types(tmp_path: Path) -> None:
    lines = ['{"text": "a", "label": "x"}', '{"text": "b", "label": 7}']
    path = write(tmp_path / "a.jsonl", "\n".join(lines))
    assert rows(path) == [("a", "x"), ("b", "7")]


@pytest.mark.defect("T8")
def test_numbers_in_one_file_and_booleans_in_another_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n')
    write(tmp_path / "test.jsonl", '{"text": "a", "label": true}\n')
    refused(tmp_path, "label")


# --- datasets -----------------------------------------------------------------------------------


def of_datasets(labels: list[int]) -> Dataset:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos", "mid"])})
    texts = [f"text {i}" for i in range(len(labels))]
    return Dataset.from_dict({"text": texts, "label": labels}, features=features)


def test_classes_of_datasets_keep_names_and_order(tmp_path: Path) -> None:
    of_datasets([1, 0, 2]).to_parquet(tmp_path / "a.parquet")
    data = load(tmp_path / "a.parquet")
    assert data.labels == ("neg", "pos", "mid")
    assert named(data) == [("text 0", "pos"), ("text 1", "neg"), ("text 2", "mid")]


def test_json_of_datasets_has_numbers_for_classes(tmp_path: Path) -> None:
    of_datasets([1, 0, 2]).to_json(tmp_path / "a.jsonl")
    assert rows(tmp_path / "a.jsonl") == [("text 0", "1"), ("text 1", "0"), ("text 2", "2")]


@pytest.mark.defect("W5")
@pytest.mark.parametrize("nothing", [-1, -100])
def test_what_has_no_label_is_in_no_class(tmp_path: Path, nothing: int) -> None:
    """As the Hub has test splits whose labels are kept secret."""
    of_datasets([0, 1]).to_parquet(tmp_path / "train.parquet")
    table = parquet.read_table(tmp_path / "train.parquet")
    for values in ([0, nothing], [nothing, nothing]):
        column = pa.array(values, pa.int64())
        table = table.set_column(1, table.schema.field(1), column)
        parquet.write_table(table, tmp_path / "test.parquet")
        refused(tmp_path, "test.parquet", f"row {values.index(nothing) + 1}", "label")


def test_tags_of_datasets_keep_their_names(tmp_path: Path) -> None:
    names = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
    features = Features(
        {
            "id": Value("string"),
            "tokens": List(Value("string")),
            "ner_tags": List(ClassLabel(names=names)),
        }
    )
    made = Dataset.from_dict(
        {
            "id": ["0", "1", "2"],
            "tokens": [words for words, _ in ENTITIES],
            "ner_tags": [[names.index(tag) for tag in tags] for _, tags in ENTITIES],
        },
        features=features,
    )
    made.to_parquet(tmp_path / "names.parquet")
    data = load(tmp_path / "names.parquet")
    assert data.labels == tuple(names)
    assert named(data) == ENTITIES


# --- annotation tools ---------------------------------------------------------------------------


@pytest.mark.defect("M1")
def test_json_lines_of_prodigy(tmp_path: Path) -> None:
    """Keys that nobody asks for differ from line to line."""
    lines: list[dict[str, Any]] = [
        {
            "text": "Gut",
            "label": "POS",
            "_input_hash": -17,
            "meta": {"pattern": 3},
            "answer": "accept",
        },
        {"text": "Schlecht", "label": "NEG", "meta": "by hand", "spans": [{"start": 0, "end": 8}]},
        {
            "meta": None,
            "options": [1, "two", None],
            "label": "NEG",
            "text": "Übel\u2028sehr",
            "score": 0.5,
        },
        {"text": "Naja", "label": "NEG", "spans": [], "score": "none", "meta": [[], {}]},
    ]
    for ascii_only in (True, False):
        text = "".join(json.dumps(line, ensure_ascii=ascii_only) + "\n" for line in lines)
        path = write(tmp_path / f"{ascii_only}.jsonl", text)
        assert rows(path) == [(line["text"], line["label"]) for line in lines]


def test_json_of_label_studio(tmp_path: Path) -> None:
    """JSON-MIN: one indented array; the columns are the labelling interface's names."""
    tasks = [
        {"id": 1, "review": "Gut", "sentiment": "Positive", "annotator": 1, "lead_time": 2.5},
        {"id": 2, "review": "Übel", "sentiment": "Negative", "annotator": 1, "lead_time": 12},
    ]
    path = write(tmp_path / "project-1.json", json.dumps(tasks, indent=4))
    refused(path, "review", "--text-column")
    found = rows(path, text_column="review", label_column="sentiment")
    assert found == [("Gut", "Positive"), ("Übel", "Negative")]


def test_several_labels_per_text_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "doccano.jsonl", '{"id": 1, "text": "Gut", "label": ["pos", "new"]}\n')
    refused(path, "label")


# --- CoNLL --------------------------------------------------------------------------------------

CONLL_2003 = """-DOCSTART- -X- -X- O

EU NNP I-NP I-ORG
rejects VBZ I-VP O
German JJ I-NP I-MISC
call NN I-NP O

1996-08-22 CD I-NP O

22 CD I-NP O
Peter NNP I-NP I-PER
Blackburn NNP I-NP I-PER
Paris NNP I-NP I-LOC
Bonn NNP B-NP B-LOC

-DOCSTART- -X- -X- O

1 CD I-NP O
"""
OF_CONLL_2003 = [
    (["EU", "rejects", "German", "call"], ["B-ORG", "O", "B-MISC", "O"]),
    (["1996-08-22"], ["O"]),
    (["22", "Peter", "Blackburn", "Paris", "Bonn"], ["O", "B-PER", "I-PER", "B-LOC", "B-LOC"]),
    (["1"], ["O"]),
]


@pytest.mark.defect("W6", "W10")
def test_conll_2003_as_it_was_published(tmp_path: Path) -> None:
    """In IOB1, with rows that begin with a number, and chunks before the entities."""
    assert rows(write(tmp_path / "eng.testb.conll", CONLL_2003)) == OF_CONLL_2003


@pytest.mark.defect("W6")
def test_conll_2003_in_iob2(tmp_path: Path) -> None:
    text = CONLL_2003
    for tag in ("ORG", "MISC", "LOC"):
        text = text.replace(f" I-{tag}", f" B-{tag}")
    text = text.replace("Peter NNP I-NP I-PER", "Peter NNP B-NP B-PER")
    assert rows(write(tmp_path / "test.conll", text)) == OF_CONLL_2003


@pytest.mark.defect("W6", "W10")
def test_chunks_are_not_taken_for_the_tags(tmp_path: Path) -> None:
    """Where the tags behind them have no prefix: these are read, or the file is refused."""
    path = write(tmp_path / "a.conll", "EU NNP B-NP ORG\nrejects VBZ B-VP O\n\nBonn NNP B-NP LOC\n")
    try:
        found = rows(path)
    except DataError:
        return
    assert found == [(["EU", "rejects"], ["B-ORG", "O"]), (["Bonn"], ["B-LOC"])]


@pytest.mark.defect("W6")
def test_three_columns_with_words_that_are_numbers(tmp_path: Path) -> None:
    text = "1990 CD O\nkam VB O\nBonn NE B-LOC\n\n3 CD O\nTage NN O\n"
    found = rows(write(tmp_path / "a.conll", text))
    assert found == [(["1990", "kam", "Bonn"], ["O", "O", "B-LOC"]), (["3", "Tage"], ["O", "O"])]


UNER = """# sent_id = 1
# text = Anna vor Ort
1\tAnna\tB-PER\t-\tann1
2-3\tvorm\t_\t-\t-
2\tvor\tO\t-\tann1
3\tdem\tO\t-\tann1
3.1\tsein\t_\t-\t-
4\tNew York\tB-LOC\t-\tann1

# sent_id = 2
1\t#\tO\t-\tann1
2\t1\tO\t-\tann1
"""


@pytest.mark.defect("W11", "W12")
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_iob2_of_universal_ner(tmp_path: Path, encoding: str) -> None:
    found = rows(write(tmp_path / "de_pud-ud-test.iob2", UNER, encoding))
    words = ["Anna", "vor", "dem", "New York"]
    assert found == [(words, ["B-PER", "O", "O", "B-LOC"]), (["#", "1"], ["O", "O"])]


@pytest.mark.parametrize("name", ["utf-9", "hex", "undefined"])
def test_an_encoding_that_there_is_not_is_refused_before_anything_is_read(name: str) -> None:
    config = EvalConfig(model="unused", data="there-is-no-such-file.csv", encoding=name)
    with pytest.raises(UsageError, match=f"--encoding {name}: there is no such encoding"):
        data_request(config)


@pytest.mark.parametrize("name", ["utf-8", "utf-8-sig", "cp1252", "latin-1", "utf-16", "cp037"])
def test_encodings_of_text_are_taken(name: str) -> None:
    config = EvalConfig(model="unused", data="d", encoding=name)
    assert data_request(config).reading.encoding == name


CONLLU = """# newdoc id = a
# sent_id = a-1
# text = Im Haus
1-2\tIm\t_\t_\t_\t_\t_\t_\t_\t_
1\tIn\tin\tADP\tAPPR\t_\t3\tcase\t_\t_
2\tdem\tder\tDET\tART\tCase=Dat\t3\tdet\t_\t_
3\tHaus\tHaus\tNOUN\tNN\t_\t0\troot\t_\tSpaceAfter=No
3.1\tist\tsein\tAUX\tVAFIN\t_\t_\t_\t0:x\t_

"""


@pytest.mark.defect("W11", "W10")
def test_conll_u_with_the_column_of_the_tags(tmp_path: Path) -> None:
    path = write(tmp_path / "de.conll", CONLLU)
    refused(path, "--label-column")
    found = rows(path, label_column="4")
    assert found == [(["In", "dem", "Haus"], ["ADP", "DET", "NOUN"])]


@pytest.mark.defect("D9")
def test_the_word_hash_is_a_word(tmp_path: Path) -> None:
    tabs = write(tmp_path / "tabs.conll", "#\tO\nBonn\tB-LOC\n# a comment\n\n# \tO\n#1\tO\n")
    assert rows(tabs)[0] == (["#", "Bonn"], ["O", "B-LOC"])
    spaces = write(tmp_path / "spaces.conll", "# a comment of words\nin O\n# O\nBonn B-LOC\n")
    assert rows(spaces) == [(["in", "#", "Bonn"], ["O", "O", "B-LOC"])]


@pytest.mark.defect("T9")
def test_separators_at_the_ends_of_lines(tmp_path: Path) -> None:
    tabs = write(tmp_path / "tabs.conll", "Anna\tB-PER\t\nWeber\tI-PER\nda\tO\t\n")
    spaces = write(tmp_path / "spaces.conll", "Anna B-PER \nWeber I-PER\nda O\t\n")
    expected = [(["Anna", "Weber", "da"], ["B-PER", "I-PER", "O"])]
    assert rows(tabs) == expected
    assert rows(spaces) == expected


def test_words_keep_spaces_that_do_not_break(tmp_path: Path) -> None:
    text = "10\u00a0000 O\nEuro\u3000s B-X\nab\x85c O\n"
    found = rows(write(tmp_path / "a.conll", text))
    assert found == [(["10\u00a0000", "Euro\u3000s", "ab\x85c"], ["O", "B-X", "O"])]


@pytest.mark.parametrize("damaged", ["x", "2-", ""])
def test_a_damaged_word_number_is_refused(tmp_path: Path, damaged: str) -> None:
    """Else all the other numbers would be words."""
    text = UNER.replace("\n4\tNew", f"\n{damaged}\tNew")
    refused(write(tmp_path / "de_pud.iob2", text), "de_pud.iob2")


def test_a_damaged_word_number_beside_one_tag_is_refused(tmp_path: Path) -> None:
    text = "1\tAnna\tB-PER\n2\tda\tO\n\n1\tBonn\tB-LOC\nx\thier\tO\n\n1\tja\tO\n"
    refused(write(tmp_path / "a.conll", text), "a.conll, line 5")


def test_words_numbered_over_a_whole_document(tmp_path: Path) -> None:
    """Whether read or refused, the numbers are no words."""
    text = "1\tAnna\tB-PER\n2\tda\tO\n\n3\tBonn\tB-LOC\n4\thier\tO\n\n5\tja\tO\n6\tso\tO\n"
    path = write(tmp_path / "a.conll", text)
    try:
        found = rows(path)
    except DataError:
        return
    assert [word for words, _ in found for word in words] == [
        "Anna",
        "da",
        "Bonn",
        "hier",
        "ja",
        "so",
    ]


@pytest.mark.defect("W10")
@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["I-PER", "I-PER", "O", "I-LOC"], ["B-PER", "I-PER", "O", "B-LOC"]),
        (["PER", "PER", "O", "LOC"], ["B-PER", "I-PER", "O", "B-LOC"]),
        (["B-PER", "E-PER", "O", "S-LOC"], ["B-PER", "I-PER", "O", "B-LOC"]),
        (["B-PER", "L-PER", "O", "U-LOC"], ["B-PER", "I-PER", "O", "B-LOC"]),
        (["B-PER", "I-PER", "O", "B-LOC"], ["B-PER", "I-PER", "O", "B-LOC"]),
        (["NOUN", "PROPN", "ADP", "NOUN"], ["NOUN", "PROPN", "ADP", "NOUN"]),
        (["3", "4", "0", "10"], ["3", "4", "0", "10"]),
    ],
    ids=["IOB1", "IO", "BIOES", "BILOU", "IOB2", "parts of speech", "numbers"],
)
def test_tag_schemes(tmp_path: Path, tags: list[str], expected: list[str]) -> None:
    words = ["Anna", "Weber", "in", "Bonn"]
    lines = write(tmp_path / "a.jsonl", json.dumps({"tokens": words, "ner_tags": tags}))
    columns = "".join(f"{word}\t{tag}\n" for word, tag in zip(words, tags, strict=True))
    assert rows(lines) == rows(write(tmp_path / "a.conll", columns)) == [(words, expected)]


@pytest.mark.defect("T1", "T6")
def test_sentences_and_words_that_are_empty(tmp_path: Path) -> None:
    lines = ['{"tokens": [], "ner_tags": []}', '{"tokens": ["a"], "ner_tags": ["O"]}']
    assert rows(write(tmp_path / "a.jsonl", "\n".join(lines))) == [(["a"], ["O"])]
    table = pa.table({"tokens": [["a"], [], ["b"]], "ner_tags": [["O"], [], ["B-X"]]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert rows(tmp_path / "a.parquet") == [(["a"], ["O"]), (["b"], ["B-X"])]
    lines[1] = '{"tokens": ["a", null], "ner_tags": ["O", "O"]}'
    refused(write(tmp_path / "b.jsonl", "\n".join(lines)), "b.jsonl", "line 2", "tokens")


@pytest.mark.defect("W14")
def test_large_lists_of_words(tmp_path: Path) -> None:
    kind = pa.large_list(pa.large_string())
    table = pa.table(
        {
            "tokens": pa.array([words for words, _ in ENTITIES], kind),
            "ner_tags": pa.array([tags for _, tags in ENTITIES], kind),
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    assert rows(tmp_path / "a.parquet") == ENTITIES


@pytest.mark.defect("W14", "T7")
@pytest.mark.parametrize("kind", ["binary", "struct", "timestamp"])
def test_columns_that_are_no_text_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    values: Any = {
        "binary": pa.array([b"a", b"b"]),
        "struct": pa.array([{"de": "a"}, {"de": "b"}]),
        "timestamp": pa.array([1, 2], pa.timestamp("s")),
    }[kind]
    parquet.write_table(pa.table({"text": values, "label": ["x", "y"]}), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "text")
    parquet.write_table(pa.table({"text": ["x", "y"], "label": values}), tmp_path / "b.parquet")
    refused(tmp_path / "b.parquet", "label")
    table = pa.table({"text": ["x", "y"], "extra": values, "label": ["1", "2"]})
    parquet.write_table(table, tmp_path / "c.parquet")
    assert rows(tmp_path / "c.parquet") == [("x", "1"), ("y", "2")]


# --- files that hold nothing, or are damaged ----------------------------------------------------


@pytest.mark.defect("T3")
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "text,label\n"),
        ("a.csv", "\n\n"),
        ("a.tsv", "text\tlabel"),
        ("a.jsonl", "\n \n"),
        ("a.json", "[]"),
        ("a.json", "{}"),
        ("a.jsonl", "{}\n{}\n"),
        ("a.conll", "\n\n"),
        ("a.conll", "# only a comment\n"),
        ("a.conll", "-DOCSTART- O\n\n"),
        ("a.csv", "\ufeff"),
    ],
)
def test_files_that_hold_nothing_are_refused(tmp_path: Path, name: str, text: str) -> None:
    refused(write(tmp_path / name, text), name)


@pytest.mark.defect("T2", "M3")
def test_latin_1_is_refused_by_its_line(tmp_path: Path) -> None:
    text = '{"text": "gut", "label": "p"}\n{"text": "schön", "label": "p"}\n'
    path = write(tmp_path / "a.jsonl", text, "latin-1")
    refused(path, "a.jsonl", "line 2", "--encoding")
    assert rows(path, encoding="latin-1") == [("gut", "p"), ("schön", "p")]


@pytest.mark.defect("T11", "M3")
@pytest.mark.parametrize("line", ['{"text": "b", "label": ', '["b", "q"]', '{"text": "b"}}', "b"])
def test_a_damaged_line_of_json_is_refused_by_its_number(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "a.jsonl", f'{{"text": "a", "label": "p"}}\n{line}\n')
    refused(path, "a.jsonl", "line 2")


@pytest.mark.defect("T4", "T2")
def test_a_damaged_archive_of_what_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    content = bytearray(gzip.compress("text,label\nschön,x\n".encode("latin-1")))
    content[-8] ^= 1  # of the checksum
    (tmp_path / "a.csv.gz").write_bytes(content)
    refused(tmp_path / "a.csv.gz", "a.csv.gz")


@pytest.mark.defect("T4")
@pytest.mark.parametrize("kept", [3, 100, 0.5, 0.9, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, frame: pd.DataFrame, kept: float) -> None:
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_csv(tmp_path / "a.csv.gz", index=False)
    write_zst(frame, tmp_path / "a.csv.zst")
    for name in ("a.parquet", "a.csv.gz", "a.csv.zst"):
        content = (tmp_path / name).read_bytes()
        end = int(len(content) * kept) if isinstance(kept, float) else kept
        (tmp_path / name).write_bytes(content[:end])
        refused(tmp_path / name, name)


@pytest.mark.defect("T4")
def test_a_parquet_file_whose_text_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    frame = pd.DataFrame({"text": ["schön" * 9, "fine" * 9], "label": ["a", "b"]})
    frame.to_parquet(path, compression="none", use_dictionary=False)
    path.write_bytes(path.read_bytes().replace("schön".encode(), b"sch\xa0\xa0n"))
    refused(path, "a.parquet is damaged")


@pytest.mark.defect("T4", "W5")
def test_classes_that_are_described_in_two_ways_are_refused(tmp_path: Path) -> None:
    """The metadata stands in a parquet file twice; damaged once, numbers might be classes or none."""
    path = tmp_path / "a.parquet"
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    Dataset.from_dict({"text": ["a"], "label": [1]}, features=features).to_parquet(path)
    path.write_bytes(path.read_bytes().replace(b'"ClassLabel"', b'"ClassMabel"', 1))
    refused(path, "a.parquet is damaged")


@pytest.mark.defect("M4")
def test_a_wrong_column_is_not_listed_whole(tmp_path: Path) -> None:
    lines = [f"text {i},label {i}\n" for i in range(5_000)]
    write(tmp_path / "train.csv", "text,label\n" + "".join(lines))
    data = load(write(tmp_path / "a.csv", "text,label\n" + "".join(lines)), label_column="text")
    assert len(data.labels or ()) == 5_000
    wide = ",".join(f"column_{i}" for i in range(5_000))
    refused(write(tmp_path / "wide.csv", f"{wide}\n{wide}\n"), "wide.csv", "column_0")


# --- places -------------------------------------------------------------------------------------


def conll_of(word: str) -> str:
    return f"{word}\tB-LOC\n"


@pytest.mark.defect("W1")
def test_files_of_one_name_in_two_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for word in ("Bonn", "Köln"):
        write(tmp_path / word / "test.conll", conll_of(word))
        monkeypatch.chdir(tmp_path / word)
        assert rows("test.conll") == [([word], ["B-LOC"])]


@pytest.mark.defect("W1", "W2")
@pytest.mark.parametrize("ending", ["iob2", "csv", "jsonl", "parquet"])
def test_a_file_that_was_rewritten_in_place(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"test.{ending}"
    for word in ("Bonn", "Kiel"):
        if ending == "parquet":
            parquet.write_table(pa.table({"text": [word], "label": ["x"]}), path)
        else:
            texts = {
                "iob2": conll_of(word),
                "csv": f"text,label\n{word},x\n",
                "jsonl": json.dumps({"text": word, "label": "x"}),
            }
            write(path, texts[ending])
        os.utime(path, (1_700_000_000, 1_700_000_000))
        text = rows(path)[0][0]
        assert text in (word, [word])


@pytest.mark.defect("W3", "T10")
@pytest.mark.parametrize(
    ("name", "sibling"),
    [
        ("reviews[1].jsonl", "reviews1.jsonl"),
        ("a*.jsonl", "ab.jsonl"),
        ("a?.jsonl", "ab.jsonl"),
        ("a**b.jsonl", "axb.jsonl"),
        ("zip::a.jsonl", "a.jsonl"),
        ("{a,b}.jsonl", "a.jsonl"),
        ("a%20b.jsonl", "a b.jsonl"),
        ("a#b.jsonl", "a"),
        ("~.jsonl", "x.jsonl"),
    ],
)
def test_a_path_is_literal(tmp_path: Path, name: str, sibling: str) -> None:
    write(tmp_path / sibling, '{"text": "other", "label": "x"}\n')
    path = write(tmp_path / name, '{"text": "this", "label": "x"}\n')
    assert rows(path) == [("this", "x")]
    path.unlink()
    refused(path)


@pytest.mark.defect("W3")
def test_a_directory_of_any_name(tmp_path: Path) -> None:
    write(tmp_path / "run1" / "de" / "test.jsonl", '{"text": "other", "label": "x"}\n')
    write(tmp_path / "run[1]" / "de" / "test.jsonl", '{"text": "this", "label": "x"}\n')
    assert rows(tmp_path / "run[1]") == [("this", "x")]


@pytest.mark.defect("M12", "M5")
def test_a_directory_as_it_comes_from_a_mac_and_the_hub(tmp_path: Path) -> None:
    write(tmp_path / ".cache" / "huggingface" / "x.metadata", "1")
    write(tmp_path / ".cache" / "train.csv", "text,label\nwrong,w\n")
    write(tmp_path / ".git" / "test.csv", "text,label\nwrong,w\n")
    write(tmp_path / "__MACOSX" / "test.csv", "text,label\nwrong,w\n")
    write(tmp_path / "__MACOSX" / "._test.csv", "\0\5\x16\7")
    write(tmp_path / "._test.csv", "\0\5\x16\7\0\2\0\0Mac OS X")
    write(tmp_path / ".DS_Store", "\0\0\0\1Bud1")
    write(tmp_path / "README.md", "# Reviews")
    for number, text in enumerate(("first", "second")):
        table = pa.table({"text": [text], "label": ["p"]})
        parquet.write_table(table, tmp_path / f"train-{number:05d}-of-00002.parquet")
    write(tmp_path / "dev.csv", "text,label\nthird,n\n")
    (tmp_path / "test.jsonl.gz").write_bytes(gzip.compress(b'{"text": "last", "label": "n"}\n'))
    data = load(tmp_path, "train", "validation", "test", purpose="train")
    assert data.languages == ("und",)
    assert named(data, "train") == [("first", "p"), ("second", "p")]
    assert named(data, "validation") == [("third", "n")]
    assert named(data) == [("last", "n")]
    assert named(load(tmp_path, "validation"), "validation") == [("third", "n")]


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    table = pa.table({"text": ["a"], "label": ["p"]})
    for number in (0, 2):
        parquet.write_table(table, tmp_path / f"test-{number:05d}-of-00003.parquet")
    refused(tmp_path, "00001")


@pytest.mark.defect("D8")
def test_two_files_of_one_split_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", "text,label\na,x\n")
    write(tmp_path / "train.jsonl", '{"text": "b", "label": "y"}\n')
    refused(tmp_path, "train.csv", "train.jsonl", splits=("train",))
    (tmp_path / "train.jsonl").unlink()
    write(tmp_path / "training.csv", "text,label\nb,y\n")
    refused(tmp_path, "train.csv", "training.csv", splits=("train",))


@pytest.mark.defect("M12")
def test_languages_of_a_directory_are_those_with_data(tmp_path: Path) -> None:
    for language in ("de", "es"):
        write(tmp_path / language / "test.csv", f"text,label\n{language},x\n")
    write(tmp_path / ".cache" / "test.csv", "text,label\nwrong,x\n")
    write(tmp_path / "__MACOSX" / "de" / "._test.csv", "\0\5")
    (tmp_path / "notes").mkdir()
    data = load(tmp_path)
    assert data.languages == ("de", "es")
    assert [text for text, _ in named(data)] == ["de", "es"]


def test_the_same_content_elsewhere_is_the_same_data() -> None:
    """What is kept of a file that was read does not say where it was."""
    for _ in range(2):
        folder = Path(tempfile.mkdtemp())
        path = write(folder / "test.csv", "text,label\nonce,x\n")
        assert rows(path) == [("once", "x")]
        shutil.rmtree(folder)
