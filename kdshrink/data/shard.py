"""Where the examples of one language and split are, and the form in which all of them are read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import pyarrow as pa

from .registry import Task

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development"),
    "test": ("test",),
}
SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}

Kind = Literal["text", "list", "other"]
"""What a column's values are: one text (or number), a list of them, or what cannot be read."""


@dataclass(frozen=True)
class Columns:
    """Which column of a table holds what, and for which task."""

    text: str
    label: str | None
    language: str | None
    task: Task

    @property
    def schema(self) -> pa.Schema:
        """The form in which examples are read: every value as the text that stands there.

        `line` is the line of the file that an example begins at, or its row.
        """
        value = pa.list_(pa.string()) if self.task == "token" else pa.string()
        return pa.schema(
            {"text": value, "label": value, "language": pa.string(), "line": pa.int64()}
        )


class Rows(NamedTuple):
    """Examples as they stand in a file, a list each of what one has. A value of None is missing."""

    lines: Sequence[int]
    texts: Sequence[str] | Sequence[list[str]]
    labels: Sequence[Any] | None = None
    languages: Sequence[str | None] | None = None


class Table(Protocol):
    """Examples in a file or on the Hub."""

    @property
    def origin(self) -> str:
        """What messages call it."""

    @property
    def unit(self) -> str:
        """What `line` counts: line or row."""

    @property
    def sha256(self) -> str | None:
        """The SHA-256 of the file's content when it was first asked for; None on the Hub."""

    def digest(self) -> str:
        """What tells its content, as it was when first asked for, from any other."""

    def is_unchanged(self) -> bool:
        """Whether the content is still what `digest` tells."""

    def columns(self) -> dict[str, Kind]:
        """Its columns.

        Raises:
            DataError: It cannot be read.
        """

    def class_names(self, column: str) -> tuple[str, ...] | None:
        """The names of a column's classes, if its type has them."""

    def read(self, columns: Columns) -> Iterator[pa.RecordBatch]:
        """Its examples, as `columns.schema` has them; no other column is read.

        Raises:
            DataError: A value cannot be read, with its place.
        """


@dataclass(frozen=True)
class Shard:
    """The examples of one language (None: the file's own column says) and split, not read yet.

    Attributes:
        origin: What messages call it.
        open: Opens its tables, several if it is sharded.
        paths: The files that they are in, if they are local.
        commit: The commit that they are read at, if they are on the Hub and it is known.
    """

    language: str | None
    split: str
    origin: str
    open: Callable[[], Sequence[Table]]
    paths: tuple[Path, ...] = ()
    commit: str | None = None

    @cached_property
    def tables(self) -> tuple[Table, ...]:
        return tuple(self.open())


def describe_shards(shards: Sequence[Shard]) -> dict[str, Any]:
    """What tells which data was read: a commit, or the SHA-256 of each file and of that list."""
    described: dict[str, Any] = {}
    if commits := {shard.commit for shard in shards if shard.commit}:
        described["revision"] = ", ".join(sorted(commits))
    files = {}
    for shard in shards:
        folder = f"{shard.language}/" if shard.language else ""
        for path, table in zip(shard.paths, shard.tables if shard.paths else (), strict=True):
            files[folder + path.name] = table.sha256
    if files:
        listing = "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))
        described["fingerprint"] = hashlib.sha256(listing.encode()).hexdigest()
        described["files"] = files
    return described
