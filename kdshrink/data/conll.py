"""Files of one word per line, its columns between tabs or spaces, with empty lines between sentences.

What the columns are is decided for a whole file: whether the first numbers the words of each sentence, as
in CoNLL-U and the .iob2 files of Universal NER, and which one holds the tags.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from ..errors import DataError, short
from .shard import Columns, Kind, Rows
from .streams import open_text

WORDS, TAGS = "tokens", "ner_tags"
_NUMBER = re.compile(r"\d+")
_OTHER_ID = re.compile(r"\d+[-.]\d+")
"""The number of a multiword token (1-2) or of an empty node (1.1), which are no words."""
_ENTITY_TAG = re.compile(r"O|[BILUESM][-_].+")
_START = "-DOCSTART-"
_SENTENCES = 5000
"""Sentences held at a time."""


@dataclass(frozen=True)
class Layout:
    """What the columns of a file are.

    Attributes:
        tabs: Whether tabs stand between them, else spaces.
        width: How many there are.
        numbered: Whether the first numbers the words of each sentence.
        tags: Index of the tags' column; None where several could be.
        last: What stands in the last column, in a file without tabs.
    """

    tabs: bool
    width: int
    numbered: bool
    tags: int | None
    last: frozenset[str]

    @property
    def words(self) -> int:
        return 1 if self.numbered else 0

    def index_of(self, column: str) -> int:
        """Index of a column by its name, or by its number from 1."""
        named = {WORDS: self.words, TAGS: self.tags}
        found = named[column] if column in named else int(column) - 1
        assert found is not None
        return found

    def columns(self) -> dict[str, Kind]:
        names = [WORDS, *([TAGS] if self.tags is not None else [])]
        return dict.fromkeys([*names, *map(str, range(1, self.width + 1))], "list")


@dataclass
class _Census:
    """What the lines of a file have in common, collected in one pass.

    Attributes:
        numbered: Whether the first column numbers the words of each sentence.
        expected: The next word's number; None at the beginning of a sentence.
        entities: For each column whether all its values may be tags of entities.
        last: What stands in the last column, in a file without tabs.
    """

    width: int = 0
    first_line: int = 0
    numbered: bool = True
    expected: int | None = None
    entities: list[bool] = field(default_factory=list)
    last: set[str] = field(default_factory=set)

    def add(self, path: Path, line: int, fields: list[str]) -> None:
        if not self.width:
            self.width, self.first_line = len(fields), line
            self.entities = [True] * self.width
        if len(fields) != self.width:
            raise DataError(
                f"{path}, line {line}: {len(fields)} columns, and line {self.first_line} has "
                f"{self.width}: {short(' '.join(fields))}\nA word needs all columns of the file."
            )
        for index, value in enumerate(fields):
            if self.entities[index] and not _ENTITY_TAG.fullmatch(value):
                self.entities[index] = False
        self._count(fields[0])

    def _count(self, first: str) -> None:
        if self.numbered and not _OTHER_ID.fullmatch(first):
            number = int(first) if _NUMBER.fullmatch(first) and first.isascii() else -1
            self.numbered = number == self.expected or (self.expected is None and number in (0, 1))
            self.expected = number + 1


def _fields(line: str, tabs: bool) -> list[str]:
    if tabs:
        return [part.strip(" ") for part in line.split("\t")]
    # Not str.split(), since words may hold spaces that do not break, or ideographic ones.
    return re.split(r"[ \t]+", line.strip(" \t"))


def _has_tabs(path: Path, encoding: str) -> bool:
    with open_text(path, encoding) as lines:
        return any("\t" in line.strip(" \t\r\n") for line in lines)


def find_layout(path: Path, encoding: str) -> Layout:
    """Find the columns of a file.

    Raises:
        DataError: It has none, or lines of unlike width.
    """
    tabs = _has_tabs(path, encoding)
    census = _Census()
    with open_text(path, encoding) as lines:
        for number, line in enumerate(lines, 1):
            text = line.rstrip("\r\n")
            if not text.strip(" \t"):
                census.expected = None
            elif not _may_be_comment(text, tabs):
                fields = _trimmed(_fields(text, tabs), census.width)
                if fields[0] != _START:
                    census.add(path, number, fields)
                    if not tabs:
                        census.last.add(fields[-1])
    if census.width < 2:
        found = "one column" if census.width else "no example"
        raise DataError(f"{path} has {found}.\nA word and its tag were expected on each line.")
    numbered = census.numbered and not (census.width == 2 and census.entities[1])
    tags = _tag_column(census, numbered)
    return Layout(tabs, census.width, numbered, tags, frozenset(census.last))


def _tag_column(census: _Census, numbered: bool) -> int | None:
    first = 2 if numbered else 1
    if census.width == first + 1:
        return first
    entities = [index for index in range(first, census.width) if census.entities[index]]
    if not entities:
        return None
    return entities[0] if numbered else entities[-1]


def _may_be_comment(line: str, tabs: bool) -> bool:
    return (
        line.startswith("#") and "\t" not in line if tabs else line.startswith("# ") or line == "#"
    )


def _trimmed(fields: list[str], width: int) -> list[str]:
    """The fields without empty ones behind the last column, which a separator at a line's end makes."""
    end = len(fields)
    while end > max(1, width) and not fields[end - 1]:
        end -= 1
    return fields[:end]


def conll_rows(path: Path, columns: Columns, layout: Layout, encoding: str) -> Iterator[Rows]:
    """The sentences of a file.

    Raises:
        DataError: A word or tag is missing, or a line is of another width than the others.
    """
    word_at = layout.index_of(columns.text)
    tag_at = None if columns.label is None else layout.index_of(columns.label)
    held: list[tuple[int, list[str], list[str]]] = []
    sentence: tuple[int, list[str], list[str]] | None = None
    with open_text(path, encoding) as lines:
        for number, line in enumerate(chain(lines, [""]), 1):
            fields = _word_line(line.rstrip("\r\n"), layout)
            if fields is None:
                continue
            if not fields:
                held += [sentence] if sentence else []
                sentence = None
                if len(held) == _SENTENCES:
                    yield _rows(held, tag_at is not None)
                    held = []
                continue
            if not fields[word_at] or (tag_at is not None and not fields[tag_at]):
                missing = "tag" if fields[word_at] else "word"
                raise DataError(f"{path}, line {number}: there is no {missing}: {short(line)}")
            sentence = sentence or (number, [], [])
            sentence[1].append(fields[word_at])
            if tag_at is not None:
                sentence[2].append(fields[tag_at])
    if held:
        yield _rows(held, tag_at is not None)


def _rows(sentences: Sequence[tuple[int, list[str], list[str]]], tagged: bool) -> Rows:
    numbers, words, tags = zip(*sentences, strict=True)
    return Rows(numbers, words, tags if tagged else None)


def _word_line(line: str, layout: Layout) -> list[str] | None:
    """The columns of a word; empty at the end of a sentence; None for what is no word."""
    if not line.strip(" \t"):
        return []
    fields = _trimmed(_fields(line, layout.tabs), layout.width)
    if _may_be_comment(line, layout.tabs) and not _is_word(fields, layout):
        return None
    if fields[0] == _START:
        return []
    if layout.numbered and _OTHER_ID.fullmatch(fields[0]):
        return None
    return fields


def _is_word(fields: list[str], layout: Layout) -> bool:
    """Whether a line that begins like a comment is the word `#`: it has all columns, and a known tag."""
    return not layout.tabs and len(fields) == layout.width and fields[-1] in layout.last
