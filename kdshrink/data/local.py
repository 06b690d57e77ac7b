"""Reads data from local files and directories."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import DataError, listed
from ..files import sha256_of
from . import arrow, conll, rows
from .registry import NamedData
from .request import Reading
from .shard import SPLIT_OF, SPLITS, Columns, Kind, Rows, Shard, Table
from .streams import COMPRESSIONS, endings

FORMATS = ("jsonl", "json", "csv", "tsv", "parquet", "iob2", "conll", "conllu", "txt")
_ROWS = 10_000
_PART = re.compile(r"(.+?)-(\d{5})-of-(\d{5})")
_IGNORED = re.compile(r"\..*|__MACOSX")


@dataclass(frozen=True)
class FileTable:
    """The table of a file."""

    path: Path
    reading: Reading

    @property
    def origin(self) -> str:
        return str(self.path)

    @cached_property
    def format(self) -> str:
        ending, compression = endings(self.path)
        if ending not in FORMATS or (ending == "parquet" and compression):
            raise DataError(
                f"{self.path}: this file format is not supported.\n"
                f"Supported endings: {', '.join(FORMATS)}; all but parquet may be followed by "
                f".{' or .'.join(COMPRESSIONS)}."
            )
        if self.path.stat().st_size == 0:
            raise DataError(f"{self.path} is empty.")
        return ending

    @property
    def unit(self) -> str:
        if self.format in ("json", "jsonl"):
            return rows.json_unit(self.path, self.reading.encoding)
        return "row" if self.format == "parquet" else "line"

    @cached_property
    def sha256(self) -> str:
        return sha256_of(self.path)

    def digest(self) -> str:
        return f"{self.sha256} {self.format} {self.reading}"

    def is_unchanged(self) -> bool:
        return sha256_of(self.path) == self.sha256

    def columns(self) -> dict[str, Kind]:
        return self._kinds

    @cached_property
    def _kinds(self) -> dict[str, Kind]:
        if self.format == "parquet":
            return {f.name: arrow.kind_of(f.type) for f in self._parquet().schema_arrow}
        if self.format in ("iob2", "conll", "conllu"):
            return self._layout.columns()
        if self.format in ("csv", "tsv"):
            return rows.delimited_columns(self.path, self._separator, self.reading.encoding)
        if self.format == "txt":
            return {"text": "text"}
        return rows.json_columns(self.path, self.reading.encoding)

    def class_names(self, column: str) -> tuple[str, ...] | None:
        if self.format != "parquet":
            return None
        file = self._parquet()
        stored = (file.metadata.metadata or {}).get(b"huggingface")
        try:
            features = arrow.schema_features(file.schema_arrow, stored)
        except ValueError as error:
            raise _damaged(self.path, error) from error
        return arrow.class_names_of(features.get(column))

    def read(self, columns: Columns) -> Iterator[pa.RecordBatch]:
        if self.format == "parquet":
            names = self.class_names(columns.label) if columns.label else None
            yield from arrow.to_rows(self._parquet_batches(columns), columns, names, self.origin)
        else:
            for found in self._rows(columns):
                yield _batch(found, columns, self)

    @cached_property
    def _layout(self) -> conll.Layout:
        return conll.find_layout(self.path, self.reading.encoding)

    @property
    def _separator(self) -> str | None:
        if self.reading.separator is None and self.format == "csv":
            return ","
        return self.reading.separator

    def _rows(self, columns: Columns) -> Iterator[Rows]:
        encoding = self.reading.encoding
        if self.format in ("iob2", "conll", "conllu"):
            return conll.conll_rows(self.path, columns, self._layout, encoding)
        if self.format in ("csv", "tsv"):
            return rows.delimited_rows(self.path, columns, self._separator, encoding)
        if self.format == "txt":
            return rows.text_rows(self.path, encoding)
        return rows.json_rows(self.path, columns, encoding)

    def _parquet(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.path, memory_map=True)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self.path, error) from error

    def _parquet_batches(self, columns: Columns) -> Iterator[pa.RecordBatch]:
        wanted = [n for n in (columns.text, columns.label, columns.language) if n is not None]
        try:
            yield from self._parquet().iter_batches(batch_size=_ROWS, columns=wanted)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self.path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(f"{path} is damaged or cut off: {reason}\nCopy it again.")


def _batch(rows: Rows, columns: Columns, table: Table) -> pa.RecordBatch:
    nothing = [None] * len(rows.lines)
    texts, labels, languages = rows.texts, rows.labels or nothing, rows.languages or nothing
    schema = columns.schema
    try:
        values = [
            pa.array(texts, schema.field("text").type),
            pa.array(labels, schema.field("label").type),
            pa.array(languages, pa.string()),
            _integers(rows.lines),
        ]
    except UnicodeEncodeError:
        for line, *found in zip(rows.lines, texts, labels, languages, strict=True):
            try:
                "".join("".join(value or "") for value in found).encode()
            except UnicodeEncodeError as error:
                raise DataError(
                    f"{table.origin}, {table.unit} {line}: the text contains half a "
                    "character (a lone surrogate).\nCorrect or remove the example."
                ) from error
        raise
    values[1] = arrow.stripped(values[1])
    return pa.RecordBatch.from_arrays(values, schema=schema)


def _integers(numbers: Sequence[int]) -> pa.Array:
    if isinstance(numbers, range):  # pyarrow would iterate over it
        return pa.array(np.arange(numbers.start, numbers.stop, dtype=np.int64))
    return pa.array(numbers, pa.int64())


def is_data_file(path: Path) -> bool:
    return endings(path)[0] in FORMATS


def file_shard(path: Path, reading: Reading) -> Shard:
    """The shard of a single file, whatever its name."""
    return Shard(None, "train", str(path), partial(_open, (path,), reading), (path,))


def _open(paths: Sequence[Path], reading: Reading) -> tuple[FileTable, ...]:
    return tuple(FileTable(path, reading) for path in paths)


def _split_files(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The files of each split in a folder: a single file, or all parts of a sharded one.

    Raises:
        DataError: Several files could be the same split, or parts are missing.
    """
    stems: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.iterdir()):
        if not path.is_file() or _IGNORED.fullmatch(path.name) or not is_data_file(path):
            continue
        stem, _, ending = path.name.partition(".")
        part = _PART.fullmatch(stem)
        split = SPLIT_OF.get((part[1] if part else stem).lower())
        if split is not None:
            name = f"{part[1]}-of-{part[3]}.{ending}" if part else path.name
            stems[split][name].append(path)
    found = {}
    for split, files in stems.items():
        if len(files) > 1:
            names = [path.name for paths in files.values() for path in paths]
            raise DataError(
                f"{folder}: several files could be its {split} split: {listed(names)}.\n"
                "Leave only one there, or give one of them to --data."
            )
        (paths,) = files.values()
        found[split] = tuple(paths)
        _check_parts(folder, split, paths)
    return found


def _check_parts(folder: Path, split: str, paths: Sequence[Path]) -> None:
    part = _PART.fullmatch(paths[0].name.partition(".")[0])
    if part is None:
        return
    numbers = {int(_PART.match(path.name)[2]) for path in paths}  # type: ignore[index]
    missing = [f"{n:05d}" for n in range(int(part[3])) if n not in numbers]
    if missing:
        raise DataError(
            f"{folder}: its {split} split has {int(part[3])} parts, and these are missing: "
            f"{listed(missing)}.\nCopy them too."
        )


def directory_shards(folder: Path, named: NamedData | None, reading: Reading) -> list[Shard]:
    """Shards of DIR/<language>/<split>.<ending>, or, for custom data, DIR/<split>.<ending>.

    Raises:
        DataError: There are no data files, or several could be the same split.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such directory.\nGive the directory of the data.")
    known = {unit.name for unit in named.units} if named else None
    places: list[tuple[str | None, Path]] = [
        (path.name, path)
        for path in sorted(folder.iterdir())
        if path.is_dir()
        and not _IGNORED.fullmatch(path.name)
        and (known is None or path.name in known)
    ]
    if named is None:
        places.insert(0, (None, folder))
    shards = []
    for language, place in places:
        files = _split_files(place)
        for split in SPLITS:
            if paths := files.get(split):
                origin = str(paths[0]) if len(paths) == 1 else f"{place}, {split}"
                opened = partial(_open, paths, reading)
                shards.append(Shard(language, split, origin, opened, paths))
    if not shards:
        what = f" of {named.name}" if named else ""
        raise DataError(
            f"{folder}: no data{what} found.\n"
            f"Expected <language>/<split>.<ending>, split one of {', '.join(SPLITS)}, "
            f"ending one of {', '.join(FORMATS)}."
        )
    return shards
