"""A cache of memory-mapped tables of examples, named by fingerprints of their content."""

from __future__ import annotations

import gc
import hashlib
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import pyarrow as pa
from datasets.table import MemoryMappedTable

from ..errors import DataError, OutputError
from .shard import Columns, Table

logger = logging.getLogger(__name__)

_FORM = "kdshrink 1"
"""The version of the stored form; change it when values are read differently."""


_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""The last bytes of an Arrow stream."""


_aside: list[Path] = []
"""Folders that take what is stored, in place of the cache; the last one is in use."""


def _folder() -> Path:
    return Path(datasets.config.HF_DATASETS_CACHE) / "kdshrink"


@contextmanager
def cache_unchanged() -> Iterator[None]:
    """Leave the cache as it is: what is not in it is stored in a temporary folder meanwhile."""
    caching = datasets.is_caching_enabled()
    with tempfile.TemporaryDirectory(prefix="kdshrink-") as folder:
        _aside.append(Path(folder))
        datasets.disable_caching()  # by which tokenised tables go to a temporary folder of datasets
        try:
            yield
        finally:
            _aside.pop()
            if caching:
                datasets.enable_caching()


def fingerprint(*parts: object) -> str:
    """A name that is a hash of these parts."""
    text = "\x00".join([_FORM, *map(str, parts)])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def stored(name: str, schema: pa.Schema, make: Iterable[pa.RecordBatch]) -> Path:
    """The Arrow file of this name in the cache; if it is missing, written atomically from `make`.

    Raises:
        OutputError: The cache cannot be written.
    """
    path = _folder() / f"{name}.arrow"
    if _is_whole(path):
        return path
    if _aside:
        path = _aside[-1] / path.name
        if _is_whole(path):
            return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=f".{name}.", dir=path.parent)
    except OSError as error:
        raise _unwritable(path.parent, error) from error
    try:
        with os.fdopen(handle, "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            for batch in make:
                _write(writer, batch, path.parent)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    return path


def _is_whole(path: Path) -> bool:
    """Whether a file is complete: after a crash of the machine its end may be missing."""
    try:
        with path.open("rb") as file:
            file.seek(-len(_END), os.SEEK_END)
            return file.read() == _END
    except OSError:
        return False


def _write(writer: pa.ipc.RecordBatchStreamWriter, batch: pa.RecordBatch, folder: Path) -> None:
    try:
        writer.write_batch(batch)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{folder}: the cache of data cannot be written: {error.strerror or error}.\n"
        "Set the environment variable HF_DATASETS_CACHE to a writable directory."
    )


def read_table(table: Table, columns: Columns) -> Path:
    """The Arrow file of a table's examples, as they are written.

    Raises:
        DataError: A value cannot be read, there are no examples, or the file changed while it was read.
    """
    name = fingerprint("table", table.digest(), columns)

    def batches() -> Iterator[pa.RecordBatch]:
        rows = 0
        for batch in table.read(columns):
            rows += batch.num_rows
            yield batch
        if not rows:
            raise DataError(f"{table.origin} has no examples.")
        if not table.is_unchanged():
            raise DataError(f"{table.origin} changed while it was read.\nRun the command again.")

    with _uncollected():
        return stored(name, columns.schema, batches())


@contextmanager
def _uncollected() -> Iterator[None]:
    """Switch the cyclic garbage collector off.

    Reading makes no cyclic garbage, but so many objects that the collector runs often: it took a quarter
    of the time.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def batches_of(path: Path) -> Iterator[pa.RecordBatch]:
    """The batches of a stored file."""
    with pa.memory_map(str(path)) as mapped, pa.ipc.open_stream(mapped) as reader:
        yield from reader


def as_dataset(path: Path) -> datasets.Dataset:
    """A stored file as a Dataset, with the file's name as its fingerprint."""
    return datasets.Dataset(MemoryMappedTable.from_file(str(path)), fingerprint=path.stem)
