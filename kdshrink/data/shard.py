"""The shards and tables of a data set, and the schema in which they are read."""

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
"""The kind of a column's values: text (or number), a list of them, or not supported."""


@dataclass(frozen=True)
class Columns:
    """The columns of text, label and language in a table, and its task."""

    text: str
    label: str | None
    language: str | None
    task: Task

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema in which examples are read: every value is text, as it is written.

        `line` is the line of the file where an example begins, or its row.
        """
        value = pa.list_(pa.string()) if self.task == "token" else pa.string()
        return pa.schema(
            {"text": value, "label": value, "language": pa.string(), "line": pa.int64()}
        )


class Rows(NamedTuple):
    """Examples as they are written in a file, by column; a missing value is None."""

    lines: Sequence[int]
    texts: Sequence[str] | Sequence[list[str]]
    labels: Sequence[Any] | None = None
    languages: Sequence[str | None] | None = None


class Table(Protocol):
    """A table of examples, in a file or on the Hub."""

    @property
    def origin(self) -> str:
        """Its name in messages."""

    @property
    def unit(self) -> str:
        """The unit of `line` in the schema, such as line or row."""

    @property
    def sha256(self) -> str | None:
        """The SHA-256 of the file's content at the first call; None on the Hub."""

    def digest(self) -> str:
        """A fingerprint of its content at the first call."""

    def is_unchanged(self) -> bool:
        """Whether the content still has this `digest`."""

    def columns(self) -> dict[str, Kind]:
        """Its columns.

        Raises:
            DataError: It cannot be read.
        """

    def class_names(self, column: str) -> tuple[str, ...] | None:
        """The class names of a column, if its type has them."""

    def read(self, columns: Columns) -> Iterator[pa.RecordBatch]:
        """Its examples, with `columns.schema`; no other column is read.

        Raises:
            DataError: A value cannot be read; the message has its position.
        """


@dataclass(frozen=True)
class Shard:
    """The examples of one language and split, not read yet; no language if a column has it.

    Attributes:
        origin: Its name in messages.
        open: Opens its tables, one per part.
        paths: Its files, if they are local.
        commit: The commit of its data on the Hub, if known.
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
    """Which data was read: a commit, or the SHA-256 of each file and of the list of these."""
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
