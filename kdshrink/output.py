"""Output directories: checked before the work, written whole or not at all."""

from __future__ import annotations

import fcntl
import glob
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import OutputError
from .files import disk_errors

logger = logging.getLogger(__name__)
RECORD = "kdshrink.json"
CHECKPOINTS = "checkpoints"
LOG = "train_log.jsonl"


def check_output(output_dir: Path, *, overwrite: bool, resume: bool = False) -> None:
    """Raise OutputError unless results may go here: it is new, empty, or --overwrite or --resume."""
    if output_dir.exists() and not output_dir.is_dir():
        raise OutputError(f"{output_dir} is a file. Give a directory with -o.")
    if output_dir.is_dir() and any(output_dir.iterdir()) and not (overwrite or resume):
        interrupted = (
            not (output_dir / "config.json").exists() and (output_dir / CHECKPOINTS).exists()
        )
        going_on = ", or --resume to go on with the run that it holds" if interrupted else ""
        raise OutputError(
            f"{output_dir} is not empty.\nGive another directory with -o, --overwrite{going_on}."
        )
    parent = next(
        folder for folder in (output_dir, *output_dir.absolute().parents) if folder.exists()
    )
    if not os.access(parent, os.W_OK):
        raise OutputError(f"{output_dir} cannot be written: no permission in {parent}.")


@contextmanager
def whole_directory(output_dir: Path) -> Iterator[Path]:
    """Give an empty directory to fill, and put it in output_dir's place when that went well.

    It stands beside output_dir, under a hidden name, so that the last step is one rename; if anything
    fails it is removed, and what stood at output_dir stays. What a killed process left is removed too.
    """
    parent = output_dir.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(parent, output_dir.name)
    staging = Path(tempfile.mkdtemp(prefix=f".{output_dir.name}.", suffix=".part", dir=parent))
    staging.chmod(0o777 & ~_umask())
    try:
        with _locked(staging), disk_errors(output_dir):
            yield staging
        old = None
        if output_dir.exists():
            old = staging.with_suffix(".old")
            output_dir.rename(old)
        staging.rename(output_dir)
        if old is not None:
            shutil.rmtree(old)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


@contextmanager
def _locked(directory: Path, flags: int = 0) -> Iterator[None]:
    """Hold a lock that ends with the process, if not before."""
    opened = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | flags)
        yield
    finally:
        os.close(opened)


def _remove_abandoned(parent: Path, name: str) -> None:
    for staging in parent.glob(f".{glob.escape(name)}.*.part"):
        try:
            with _locked(staging, fcntl.LOCK_NB):
                shutil.rmtree(staging)
        except OSError as error:  # another process is filling it, or it may not be touched
            logger.debug("%s stays: %s", staging, error)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def final_files(output_dir: Path) -> Iterator[Path]:
    """Give an empty directory to fill, and move its files into output_dir when that went well.

    For a directory that holds checkpoints already. config.json is moved last, and an old one removed
    first, so that it is there only in a whole result.
    """
    staging = output_dir / CHECKPOINTS / "final"
    shutil.rmtree(staging, ignore_errors=True)
    with disk_errors(output_dir):
        staging.mkdir(parents=True)
        yield staging
    (output_dir / "config.json").unlink(missing_ok=True)
    for path in sorted(staging.iterdir(), key=lambda path: path.name == "config.json"):
        target = output_dir / path.name
        if target.is_dir():
            shutil.rmtree(target)
        path.replace(target)
    staging.rmdir()
