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
from .tags import OUTSIDE

WORDS, TAGS = "tokens", "ner_tags"
_NUMBER = re.compile(r"\d+")
_OTHER_ID = re.compile(r"\d+[-.]\d+")
"""The number of a multiword token (1-2) or of an empty node (1.1), which are no words."""
_ENTITY_TAG = re.compile(r"O|[BILUESM]-.+")
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
class _Column:
    """What the values of a column may be.

    Attributes:
        entities: Whether all may be tags of entities.
        outside: Whether O is one of them.
    """

    entities: bool = True
    outside: bool = False

    def add(self, value: str) -> None:
        self.outside = self.outside or value == OUTSIDE
        if self.entities and not _ENTITY_TAG.fullmatch(value):
            self.entities = False


@dataclass
class _Census:
    """What the lines of a file have in common, collected in one pass.

    Attributes:
        lines: How many lines were added.
        numbers: How many of them the first column numbers, within the sentence or the file.
        odd_line: The first that it does not.
        before: The number of the word before; None if there is none.
        begins: Whether a sentence begins.
        words: The columns, of lines that are words even where the first column numbers them.
        last: What stands in the last column, in a file without tabs.
    """

    first_line: int = 0
    lines: int = 0
    numbers: int = 0
    odd_line: int = 0
    before: int | None = None
    begins: bool = True
    all_lines: list[_Column] = field(default_factory=list)
    words: list[_Column] = field(default_factory=list)
    last: set[str] = field(default_factory=set)

    @property
    def width(self) -> int:
        return len(self.words)

    def numbered(self, path: Path) -> bool:
        """Whether the first column numbers the words.

        Raises:
            DataError: It does so on most lines, and not on all.
        """
        if self.numbers == self.lines:
            return not (self.width == 2 and self.words[1].entities)
        if self.width > 2 and 2 * self.numbers > self.lines:
            raise DataError(
                f"{path}, line {self.odd_line}: the first column numbers the words on most lines, and "
                "not on this one.\nMend the number, or take the column out."
            )
        return False

    def add(self, path: Path, line: int, fields: list[str]) -> None:
        if not self.width:
            self.first_line = line
            self.words = [_Column() for _ in fields]
            self.all_lines = [_Column() for _ in fields]
        if len(fields) != self.width:
            raise DataError(
                f"{path}, line {line}: {len(fields)} columns, and line {self.first_line} has "
                f"{self.width}: {short(' '.join(fields))}\nA word needs all columns of the file."
            )
        for column, value in zip(self.all_lines, fields, strict=True):
            column.add(value)
        if not _OTHER_ID.fullmatch(fields[0]):
            for column, value in zip(self.words, fields, strict=True):
                column.add(value)
            self._count(line, fields[0])

    def _count(self, line: int, first: str) -> None:
        number = int(first) if _NUMBER.fullmatch(first) and first.isascii() else -1
        follows = self.before is not None and number == self.before + 1
        self.lines += 1
        if follows or (self.begins and number in (0, 1)):
            self.numbers += 1
        self.odd_line = self.odd_line or (line if self.numbers < self.lines else 0)
        self.before, self.begins = number, False


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
                census.begins = True
            elif not _may_be_comment(text, tabs) and not text.startswith(_START):
                fields = _trimmed(_fields(text, tabs), census.width)
                census.add(path, number, fields)
                if not tabs:
                    census.last.add(fields[-1])
    if census.width < 2:
        found = "one column" if census.width else "no example"
        raise DataError(f"{path} has {found}.\nA word and its tag were expected on each line.")
    numbered = census.numbered(path)
    tags = _tag_column(census.words if numbered else census.all_lines, 2 if numbered else 1)
    return Layout(tabs, census.width, numbered, tags, frozenset(census.last))


def _tag_column(columns: Sequence[_Column], first: int) -> int | None:
    """The column of the tags: the only one, or that of entities; the last of these, as in CoNLL-2003.

    Behind numbered words the first of these, as in Universal NER's files.
    """
    last = len(columns) - 1
    if last == first:
        return first
    entities = [index for index in range(first, last + 1) if columns[index].entities]
    if first == 2:
        return entities[0] if entities else None
    if columns[last].outside:
        return last
    return entities[-1] if entities else None


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
    if not line.strip(" \t") or line.startswith(_START):
        return []
    fields = _trimmed(_fields(line, layout.tabs), layout.width)
    if _may_be_comment(line, layout.tabs) and not _is_word(fields, layout):
        return None
    if layout.numbered and _OTHER_ID.fullmatch(fields[0]):
        return None
    return fields


def _is_word(fields: list[str], layout: Layout) -> bool:
    """Whether a line that begins like a comment is the word `#`: it has all columns, and a known tag."""
    return not layout.tabs and len(fields) == layout.width and fields[-1] in layout.last
