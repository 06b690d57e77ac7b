"""A walk over what was once found wrong: each has a test that carries its number."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

WRONG_RESULTS = {
    "W1": "a file of another directory, or as it was before it was edited, is scored",
    "W2": "a file that was rewritten with equal size and time is not read anew",
    "W3": "a path is taken for a pattern",
    "W4": "tensors that are missing are drawn at random, and foreign ones left out, without a word",
    "W5": "−1 and −100 are classes",
    "W6": "CoNLL rows that begin with a number have other columns",
    "W7": "numbers are matched by position",
    "W8": "types are guessed, so that 01 becomes 1 and 007 becomes 7.0",
    "W9": "one class has several names",
    "W10": "tags of other schemes, or of no entities, are scored as IOB2",
    "W11": "multiword numbers are words",
    "W12": "a byte-order mark is a part of a word",
    "W13": "a single file is its own test set, under any split's name",
    "W14": "lists, bytes and objects of Arrow are text in Python's notation",
    "W15": "lists that were written as text are classes",
    "W16": "words of byte-level tokenizers lack the space before them",
    "W17": "--resume goes on with other options or data",
    "W18": "a language that is not known counts as unseen",
    "W19": "a language without the split is left out without a word",
    "W20": "a teacher of several labels is read as one of exclusive classes",
    "W21": "a teacher, or data, of numbers is read as classes",
    "W22": "logits that are not finite give a score",
}
LOST_FILES = {
    "D1": "eval -o with --overwrite removes a model",
    "D2": "--predictions replaces a device or a link",
    "D3": "--predictions replaces a file that exists, or an input",
    "D4": "a quote in TSV swallows rows",
    "D5": "unquoted commas make the first field an index",
    "D6": "a finished result is removed where OUT is a mount point or the current directory",
    "D7": "a link at OUT is replaced",
    "D8": "of two files of one split one is ignored",
    "D9": "the word # is a comment",
    "D10": "files of sentence-transformers are left out without a note",
    "D11": "two runs write into one OUT",
}
TRACEBACKS = {
    "T1": "an empty sentence",
    "T2": "Latin-1",
    "T3": "files that hold nothing",
    "T4": "truncated or damaged parquet",
    "T5": "labels of mixed types",
    "T6": "null words",
    "T7": "struct columns",
    "T8": "numbers in one file and booleans in another",
    "T9": "a trailing tab in CoNLL",
    "T10": ":: or ** in a name",
    "T11": "malformed JSON",
    "T12": "a DistilBERT teacher",
    "T13": "a two-class model without id2label",
    "T14": "id2label as a list or with integers",
    "T15": "seeds, epochs, trackers and devices that cannot be",
    "T16": "--resume with other --layers",
    "T17": "a damaged checkpoint or log",
    "T18": "streams that cannot show a character",
    "T19": "closed streams",
    "T20": "a quantised checkpoint",
    "T21": "calibrating on almost no text, or with a NaN teacher",
    "T22": "curves of a damaged log",
}
MISLEADING = {
    "M1": "a file is refused for a column that changes type and is not used",
    "M2": "NA, None and null are missing",
    "M3": "errors without row or file",
    "M4": "an error that lists every value",
    "M5": "--split dev beside dev.csv",
    "M6": "--data '' reads the current directory",
    "M7": "--resume of a finished directory with another teacher",
    "M8": "plain text without --weight task=0",
    "M9": "faults of a config told as the tokenizer's",
    "M10": "words without a token count as cut off",
    "M11": "a cache that cannot be written is not named",
    "M12": ".cache/ and __MACOSX/ become languages",
    "M13": "thousands of languages take minutes",
}
FOUND = {**WRONG_RESULTS, **LOST_FILES, **TRACEBACKS, **MISLEADING}


def _numbers(path: Path) -> Iterator[str]:
    """The numbers that the tests of a file carry."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
            continue
        for mark in node.decorator_list:
            if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.defect":
                yield from (ast.literal_eval(number) for number in mark.args)


def test_every_defect_has_a_test() -> None:
    carried = {
        number for path in Path(__file__).parent.rglob("test_*.py") for number in _numbers(path)
    }
    assert carried - FOUND.keys() == set(), "numbers that are not on the list"
    assert FOUND.keys() - carried == set(), "left without a test"
