"""Files read and written, with errors that name them."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import KdshrinkError, ModelError, OutputError

logger = logging.getLogger(__name__)
_FULL = 2**20
"""A disk with fewer bytes free than this counts as full when writing fails."""


def read_json(path: Path) -> dict[str, Any] | None:
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


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False, default=str)
    path.write_text(text + "\n", encoding="utf-8")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()
