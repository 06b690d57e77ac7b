"""Files of one word per line, columns separated by tabs or spaces, with empty lines between sentences.

The meaning of the columns is inferred from the whole file: whether the first numbers the words of each
sentence, as in CoNLL-U and the .iob2 files of Universal NER, and which one has the tags.
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
"""The number of a multiword token (1-2) or of an empty node (1.1), which are not words."""
_ENTITY_TAG = re.compile(r"O|[BILUESM]-.+")
_START = "-DOCSTART-"
_SENTENCES = 5000
"""The number of sentences in memory at a time."""


@dataclass(frozen=True)
class Layout:
    """The columns of a file.

    Attributes:
        tabs: Whether they are separated by tabs, else by spaces.
        width: The number of columns.
        numbered: Whether the first numbers the words of each sentence.
        tags: The index of the column of tags; None if several columns could be it.
        last: The values of the last column, in a file without tabs.
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
        """The index of a column by its name, or by its number from 1."""
        named = {WORDS: self.words, TAGS: self.tags}
        found = named[column] if column in named else int(column) - 1
        assert found is not None
        return found

    def columns(self) -> dict[str, Kind]:
        names = [WORDS, *([TAGS] if self.tags is not None else [])]
        return dict.fromkeys([*names, *map(str, range(1, self.width + 1))], "list")


@dataclass
class _Column:
    """Statistics on the values of a column.

    Attributes:
        entities: Whether all values may be entity tags.
        outside: Whether one of the values is O.
    """

    entities: bool = True
    outside: bool = False

    def add(self, value: str) -> None:
        self.outside = self.outside or value == OUTSIDE
        if self.entities and not _ENTITY_TAG.fullmatch(value):
            self.entities = False


@dataclass
class _Census:
    """Statistics on the lines of a file, collected in one pass.

    Attributes:
        lines: The number of lines that were added.
        numbers: The number of lines that the first column numbers, within the sentence or the file.
        odd_line: The first line that it does not number.
        before: The number of the word before; None without one.
        begins: Whether the next line begins a sentence.
        words: Statistics on the columns, without lines that are not words if the first column numbers them.
        last: The values of the last column, in a file without tabs.
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
            DataError: It does so on most lines, but not on all.
        """
        if self.numbers == self.lines:
            return not (self.width == 2 and self.words[1].entities)
        if self.width > 2 and 2 * self.numbers > self.lines:
            raise DataError(
                f"{path}, line {self.odd_line}: the first column numbers the words on most lines, but "
                "not on this one.\nCorrect the number, or remove the column."
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
    # Not str.split(), since words may contain no-break or ideographic spaces.
    return re.split(r"[ \t]+", line.strip(" \t"))


def _has_tabs(path: Path, encoding: str) -> bool:
    with open_text(path, encoding) as lines:
        return any("\t" in line.strip(" \t\r\n") for line in lines)


def find_layout(path: Path, encoding: str) -> Layout:
    """Infer the columns of a file.

    Raises:
        DataError: It has none, or its lines differ in their number of columns.
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
    """The column of the tags: the only one, or that of entity tags.

    Of several columns of entity tags it is the last, as in CoNLL-2003, or in files with numbered words the
    first, as in Universal NER.
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
    """The fields without empty ones after the last column, which come from separators at a line's end."""
    end = len(fields)
    while end > max(1, width) and not fields[end - 1]:
        end -= 1
    return fields[:end]


def conll_rows(path: Path, columns: Columns, layout: Layout, encoding: str) -> Iterator[Rows]:
    """The sentences of a file.

    Raises:
        DataError: A word or tag is missing, or a line has another number of columns than the others.
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
    """The columns of a word; empty at the end of a sentence; None for a line that is not a word."""
    if not line.strip(" \t") or line.startswith(_START):
        return []
    fields = _trimmed(_fields(line, layout.tabs), layout.width)
    if _may_be_comment(line, layout.tabs) and not _is_word(fields, layout):
        return None
    if layout.numbered and _OTHER_ID.fullmatch(fields[0]):
        return None
    return fields


def _is_word(fields: list[str], layout: Layout) -> bool:
    """Whether a line that begins like a comment is the word `#`: it has all columns and a known tag."""
    return not layout.tabs and len(fields) == layout.width and fields[-1] in layout.last
