"""Files read and written, with errors that name them; the only place that writes files atomically."""

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
"""A disk with fewer bytes free than this counts as full when writing fails."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a file system without locks answers."""


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object that a file holds; None without the file.

    Raises:
        ModelError: It holds something else.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is damaged: it is not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is damaged: it holds no JSON object.")
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
        free = shutil.disk_usage(_existing(what)).free
        told = "No space left on device" in str(error)
        # torch.save tells of a full disk by errors of its own, which do not name it.
        if told or free < _FULL:
            raise OutputError(
                f"{what}: the disk is full ({free / 2**20:.0f} MiB free).\n"
                "Make room and run the command again; what was complete before is still there."
            ) from error
        raise


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[int]:
    """Hold an exclusive lock on a file, made if need be; its descriptor.

    The kernel frees it when the process is gone, however that went.

    Raises:
        BlockingIOError: Somebody else holds it, and `wait` is off.
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
            # Its former holder may have removed it in the meantime.
            if path.exists() and os.path.samestat(os.fstat(opened), path.stat()):
                yield opened
                return
        finally:
            os.close(opened)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a file to write, and put it in path's place when that went well.

    A symlink stays, and what it points to is replaced. If anything fails, what stood there stays.
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
    """Give an empty directory to fill, and put it in path's place when that went well.

    For directories inside an output that is locked. If anything fails, what stood there stays; after a
    kill `recover_directory` finds it.
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
    """Put back what an `atomic_directory` had moved aside when its process was killed."""
    former = _beside(path, "former")
    if path.exists():
        shutil.rmtree(former, ignore_errors=True)
    elif former.exists():
        former.rename(path)


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}.{ending}")


def empty_directory(path: Path) -> None:
    """Remove what is in a directory, if there is one; it may be a link to one elsewhere, and stays it."""
    for inner in path.iterdir() if path.is_dir() else ():
        if inner.is_dir() and not inner.is_symlink():
            shutil.rmtree(inner)
        else:
            inner.unlink()


def to_json(content: Mapping[str, Any], *, indent: int | None = None) -> str:
    """JSON that every reader takes: a number that is not finite becomes null, and is told of."""
    form: dict[str, Any] = {"indent": indent, "ensure_ascii": False, "default": _plain}
    try:
        return json.dumps(content, allow_nan=False, **form)
    except ValueError:
        logger.warning("not finite, written as null: %s", ", ".join(_not_finite(content))[:200])
        return json.dumps(_with_nulls(content), allow_nan=False, **form)


def _plain(value: object) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _not_finite(content: Any, name: str = "") -> Iterator[str]:
    """Names of the numbers that JSON has no form for."""
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
    """Write a text file that appears whole or not at all."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that appears whole or not at all."""
    write_text(path, to_json(content, indent=2) + "\n")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
