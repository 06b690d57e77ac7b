"""Reads and writes files, with errors that name them; the only place that writes files atomically."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import KdshrinkError, ModelError, OutputError

logger = logging.getLogger(__name__)
_FULL = 2**20
"""When writing fails with fewer free bytes than this, the disk counts as full."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""The errors of a file system without locks."""


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is no such file.

    Raises:
        ModelError: The content is not a JSON object.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is damaged: it is not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is damaged: it is not a JSON object.")
    return content


@contextmanager
def disk_errors(what: Path) -> Iterator[None]:
    """Turn a full disk into an OutputError that names what was being written."""
    try:
        yield
    except KdshrinkError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(existing(what)).free
        named = "No space left on device" in str(error)
        # The errors of torch.save on a full disk do not name the cause.
        if named or free < _FULL:
            raise OutputError(
                f"{what}: the disk is full ({free / 2**20:.0f} MiB free).\n"
                "Make room and run the command again; files that were complete before are still there."
            ) from error
        raise


def existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[int]:
    """Hold an exclusive lock on a file, which is created if need be; gives its descriptor.

    The kernel releases the lock when the process ends, even by a kill.

    Raises:
        BlockingIOError: Another process holds the lock, and `wait` is off.
    """
    while True:
        opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                logger.warning("%s: this file system has no locks", path)
            # The former holder may have removed the file in the meantime.
            if path.exists() and os.path.samestat(os.fstat(opened), path.stat()):
                yield opened
                return
        finally:
            os.close(opened)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary file to write, which replaces `path` when the block ends without an error.

    A symlink stays, and its target is replaced. On an error the former content stays.
    """
    path = Path(os.path.realpath(path))
    partial = path.with_name(f".{path.name}.part")
    with disk_errors(path), locked(partial):
        try:
            yield partial
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Give an empty directory to fill, which replaces `path` when the block ends without an error.

    For directories inside a locked output. On an error the former content stays; after a kill
    `recover_directory` restores it.
    """
    recover_directory(path)
    partial, former = _beside(path, "part"), _beside(path, "former")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with disk_errors(path):
            partial.mkdir()
            yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if path.exists():
        path.rename(former)
    partial.rename(path)
    shutil.rmtree(former, ignore_errors=True)


def recover_directory(path: Path) -> None:
    """Restore the former content that an `atomic_directory` had moved aside when its process was killed."""
    former = _beside(path, "former")
    if path.exists():
        shutil.rmtree(former, ignore_errors=True)
    elif former.exists():
        former.rename(path)


def former_or_own(path: Path) -> Path:
    """Where the content is that `recover_directory` would leave at `path`."""
    return path if path.exists() else _beside(path, "former")


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}.{ending}")


def empty_directory(path: Path) -> None:
    """Remove the content of a directory, if it exists; a link to a directory stays a link."""
    for inner in path.iterdir() if path.is_dir() else ():
        if inner.is_dir() and not inner.is_symlink():
            shutil.rmtree(inner)
        else:
            inner.unlink()


def to_json(content: Mapping[str, Any], *, indent: int | None = None) -> str:
    """Strictly valid JSON: a number that is not finite becomes null, with a warning."""
    form: dict[str, Any] = {"indent": indent, "ensure_ascii": False, "default": _plain}
    try:
        return json.dumps(content, allow_nan=False, **form)
    except ValueError:
        logger.warning("not finite, written as null: %s", ", ".join(_not_finite(content))[:200])
        return json.dumps(_with_nulls(content), allow_nan=False, **form)


def _plain(value: object) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _not_finite(content: Any, name: str = "") -> Iterator[str]:
    """Names of the numbers that are not finite."""
    if isinstance(content, float) and not math.isfinite(content):
        yield name
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _not_finite(value, f"{name}.{key}" if name else str(key))
    elif isinstance(content, list | tuple):
        for value in content:
            yield from _not_finite(value, name)


def _with_nulls(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {key: _with_nulls(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_with_nulls(value) for value in content]
    return content


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    write_text(path, to_json(content, indent=2) + "\n")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
