"""The output directory of a command: checked and locked before the work, filled when all files are ready."""

from __future__ import annotations

import errno
import fnmatch
import logging
import os
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from .distributed import is_first
from .errors import OutputError
from .files import disk_errors, empty_directory, locked
from .record import RECORD, Record, read_record

logger = logging.getLogger(__name__)
CHECKPOINTS = "checkpoints"
LOG = "train_log.jsonl"
RUN = "run.json"
"""The file in a run's checkpoints that identifies the run."""

_CONFIG = "config.json"
_LOCK = ".kdshrink.lock"
_STAGING = ".kdshrink.part"
_WHOLE = ".kdshrink.whole"
_NO_CONTENT = {_LOCK, _STAGING, "lost+found"}
_MODELS = ("finetune", "distill", "shrink", "export")
_RESULTS = ("eval", "zero-shot")
_FORMER_FILES = (
    *(RECORD, LOG, _CONFIG, "README.md", "*.safetensors", "model.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spm.model"),
)
"""The files that older versions wrote, whose records do not list them."""


@contextmanager
def open_output(
    directory: Path,
    command: str,
    *,
    overwrite: bool,
    resume: bool = False,
    inputs: Iterable[Path] = (),
) -> Iterator[None]:
    """Check that a command may write its result to a directory, and hold the directory's lock.

    The directory is created if need be, and removed at the end if it is empty. In a distributed run only
    the first process does this.

    Args:
        command: The subcommand, such as "distill".
        inputs: Local files and directories that the command reads.

    Raises:
        OutputError: The directory is locked, is an input, is not writable, or has content that may not be
            replaced.
    """
    if not is_first():
        yield
        return
    output = _checked_place(directory, inputs)
    made = [folder for folder in (output, *output.parents) if not os.path.exists(folder)]
    try:
        with _hold(directory, output):
            if (output / _WHOLE).is_dir():  # a run was killed while it moved its files
                _move_in(output)
            _check_content(directory, output, command, overwrite=overwrite, resume=resume)
            shutil.rmtree(output / _STAGING, ignore_errors=True)
            yield
    finally:
        with suppress(OSError):  # a directory with content stays
            for folder in made:
                folder.rmdir()


def check_output(
    directory: Path,
    command: str,
    *,
    overwrite: bool,
    resume: bool = False,
    inputs: Iterable[Path] = (),
) -> None:
    """Make the checks of `open_output`, with its arguments and errors, and write nothing."""
    if not is_first():
        return
    output = _checked_place(directory, inputs)
    check_makable(directory)
    if not output.is_dir():
        return
    lock, whole = output / _LOCK, output / _WHOLE
    if lock.exists():
        try:
            with locked(lock, wait=False):
                pass
        except BlockingIOError:
            raise _in_use(directory, lock) from None
    # Files of a run that was killed while it moved them: a command would move the rest first.
    content = whole if (whole / RECORD).is_file() else output
    _check_content(directory, content, command, overwrite=overwrite, resume=resume)


def check_makable(directory: Path) -> None:
    """Raise OutputError unless a directory can be made, or is there and writable."""
    output = Path(os.path.realpath(directory))
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        output.lstat()  # which raises if the name is too long
    folder = next(one for one in (output, *output.parents) if os.path.lexists(one))
    if not folder.is_dir():
        raise _unmakable(directory, os.strerror(errno.ENOTDIR))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _unwritable(directory, folder)
    try:
        _make_unnamed_file(folder)
    except OSError as error:  # as in /proc
        raise _unmakable(directory, error.strerror) from error


def _make_unnamed_file(folder: Path) -> None:
    """Make a file without a name, of which nothing stays, where the file system has such; else a directory."""
    if flag := getattr(os, "O_TMPFILE", 0):
        with suppress(OSError):
            os.close(os.open(folder, os.O_WRONLY | flag))
            return
    os.rmdir(tempfile.mkdtemp(prefix=".kdshrink-", dir=folder))


def _checked_place(directory: Path, inputs: Iterable[Path]) -> Path:
    """The real path of an output directory, which is neither a file nor an input."""
    output = Path(os.path.realpath(directory))
    _check_inputs(directory, output, inputs)
    if os.path.exists(output) and not output.is_dir():
        raise OutputError(f"{directory} is a file. Give a directory with -o.")
    return output


def _check_inputs(directory: Path, output: Path, inputs: Iterable[Path]) -> None:
    """Raise OutputError if an input is the output, or one contains the other."""
    for path in inputs:
        real = Path(os.path.realpath(path))
        if output == real or (output.exists() and real.exists() and output.samefile(real)):
            where = "this is"
        elif output.is_relative_to(real):
            where = "this is inside"
        elif real.is_relative_to(output):
            where = "this holds"
        else:
            continue
        raise OutputError(
            f"-o {directory}: {where} {path}, which the command reads.\n"
            "Give another directory with -o."
        )


@contextmanager
def _hold(directory: Path, output: Path) -> Iterator[None]:
    """Create the directory, and hold its lock."""
    lock = output / _LOCK
    with ExitStack() as held:
        try:
            with disk_errors(output):
                output.mkdir(parents=True, exist_ok=True)
                file = held.enter_context(locked(lock, wait=False))
        except BlockingIOError:
            raise _in_use(directory, lock) from None
        except (NotADirectoryError, FileNotFoundError, FileExistsError) as error:
            raise _unmakable(directory, error.strerror) from error
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            folder = next(one for one in (output, *output.parents) if os.path.exists(one))
            raise _unwritable(directory, folder) from error
        try:
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            holder = f"process {os.getpid()} on {socket.gethostname()}, since {since}"
            with suppress(OSError):  # on a full disk the holder is not named
                os.ftruncate(file, 0)
                os.pwrite(file, holder.encode(), 0)
            yield
        finally:
            lock.unlink(missing_ok=True)


def _in_use(directory: Path, lock: Path) -> OutputError:
    holder = lock.read_text(encoding="utf-8", errors="replace").strip() if lock.exists() else ""
    return OutputError(
        f"{directory}: another run writes to it{f' ({holder})' if holder else ''}.\n"
        "Wait until it has ended, or give another directory with -o."
    )


def _unmakable(directory: Path, reason: str | None) -> OutputError:
    return OutputError(f"{directory} cannot be made: {reason}.")


def _unwritable(directory: Path, folder: Path) -> OutputError:
    return OutputError(f"{directory} cannot be written: no permission in {folder}.")


def _check_content(
    directory: Path, output: Path, command: str, *, overwrite: bool, resume: bool
) -> None:
    """Raise OutputError unless it is empty, or has content that the command may replace or resume."""
    names = sorted(path.name for path in output.iterdir() if path.name not in _NO_CONTENT)
    if not names:
        return
    what, writer = _owner(output, read_record(output) or Record())
    kind = _RESULTS if command in _RESULTS else _MODELS
    if writer not in kind:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        if overwrite:
            ending = f"--overwrite of {command} does not replace it: remove it yourself, or give another with -o."
        else:
            ending = "Give another directory with -o."
        raise OutputError(f"{directory} is not empty: {what} ({shown}).\n{ending}")
    if CHECKPOINTS in names and not is_run(output):
        raise OutputError(
            f"{directory / CHECKPOINTS} was not written by kdshrink, which needs this name for its checkpoints.\n"
            "Move it away, or give another directory with -o."
        )
    if not (overwrite or resume):
        going_on = ", or --resume to go on with the run that it holds" if is_run(output) else ""
        raise OutputError(
            f"{directory} is not empty: {what}.\n"
            f"Give another directory with -o, --overwrite{going_on}."
        )


def _owner(output: Path, record: Record) -> tuple[str, str | None]:
    """A description of a directory's content, and the kdshrink command that wrote it, if any."""
    has_model = (output / _CONFIG).exists()
    command = record.command
    if command in _MODELS:
        return f"it holds what kdshrink {command} wrote", command
    if command in _RESULTS and not has_model:
        return f"it holds a result of kdshrink {command}", command
    if is_run(output) and not has_model:
        return "it holds the checkpoints of a run that did not end", "distill"
    if has_model:
        return "it holds a model that kdshrink did not write", None
    return "it was not written by kdshrink", None


def is_run(output: Path) -> bool:
    """Whether a directory is that of an unfinished training run, perhaps without a checkpoint yet."""
    folder = output / CHECKPOINTS
    if not folder.is_dir():
        return False
    # Older versions wrote no file that identifies the run: these two were their first files.
    ours = any((folder / name).exists() for name in (RUN, LOG, "embeddings.safetensors"))
    return ours or all(path.name.startswith(".") for path in folder.iterdir())


def _own_files(output: Path) -> set[str]:
    """The files of a directory that kdshrink wrote, according to its record."""
    record = read_record(output)
    if record is None:
        return set()
    present = [path for path in output.rglob("*") if not path.is_dir()]
    names = {path.relative_to(output).as_posix() for path in present}
    if record.files is not None:
        return names & {*record.files}
    return {n for n in names if any(fnmatch.fnmatchcase(n, one) for one in _FORMER_FILES)}


@contextmanager
def final_files(directory: Path) -> Iterator[Path]:
    """Give an empty directory to fill, and move its files into an open output if no error was raised.

    Earlier files of kdshrink are replaced, checkpoints included; all other files stay. kdshrink.json and
    then config.json are moved last, so that they exist only in a complete result.
    """
    output = Path(os.path.realpath(directory))
    staging = output / _STAGING
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with disk_errors(output):
            staging.mkdir(parents=True)
            yield staging
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    own = _own_files(output)
    for name in _names(staging):
        target = output / name
        if target.is_dir() or (os.path.lexists(target) and name not in own):
            _set_aside(target)
    staging.rename(output / _WHOLE)
    _move_in(output)


def _names(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


def _set_aside(path: Path) -> None:
    """Rename a file that kdshrink did not write and whose name the result needs."""
    kept = path.with_name(f"{path.name}.orig")
    while os.path.lexists(kept):
        kept = kept.with_name(f"{kept.name}.orig")
    path.rename(kept)
    logger.warning("%s was not written by kdshrink: it was renamed to %s", path, kept.name)


def _move_in(output: Path) -> None:
    """Move the files of a complete result into the output; it may be repeated after a kill."""
    whole = output / _WHOLE
    names = _names(whole)
    if _CONFIG in names:
        (output / _CONFIG).unlink(missing_ok=True)
    if RECORD in names:
        for name in _own_files(output) - set(names):
            (output / name).unlink(missing_ok=True)
    for name in sorted(names, key=lambda name: (name == _CONFIG, name == RECORD, name)):
        target = output / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (whole / name).replace(target)
    shutil.rmtree(whole)
    remove_checkpoints(output)


def remove_checkpoints(output_dir: Path) -> None:
    """Remove the checkpoints of a finished run."""
    folder = output_dir / CHECKPOINTS
    if not is_run(output_dir):
        return
    try:
        empty_directory(folder)
        if folder.is_symlink():
            folder.unlink()
        else:
            folder.rmdir()
    except OSError as error:  # the result is complete nevertheless
        logger.warning("%s could not be removed: %s", folder, error)


def check_file(path: Path, flag: str, *, overwrite: bool, inputs: Iterable[Path] = ()) -> None:
    """Check, before the work, that a file may be written at its end.

    Args:
        flag: The option that names it.
        inputs: Local files and directories that the command reads.

    Raises:
        OutputError: The file is an input, exists already, is not a regular file, or is not writable.
    """
    if path.is_dir():
        raise OutputError(f"{flag} {path} is a directory. Give the name of a file.")
    target = Path(os.path.realpath(path))
    folder = target.parent
    if not folder.is_dir():
        raise OutputError(f"{flag} {path}: there is no directory {folder}. Make it first.")
    if target.is_symlink():
        raise OutputError(f"{flag} {path} is a broken link. Give another name.")
    if path.exists():
        _check_replaced(path, target, flag, overwrite, inputs)
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{flag} {path} cannot be written: no permission in {folder}.")


def _check_replaced(
    path: Path, target: Path, flag: str, overwrite: bool, inputs: Iterable[Path]
) -> None:
    """Raise OutputError unless the existing file may be replaced."""
    if not stat.S_ISREG(path.stat().st_mode) or not target.exists():
        raise OutputError(
            f"{flag} {path} is not a regular file, but a device or a pipe. Give the name of a file."
        )
    if any(os.path.samestat(path.stat(), os.fstat(stream)) for stream in _open_streams()):
        raise OutputError(f"{flag} {path} is this command's own output. Give another name.")
    if os.path.ismount(target):
        raise OutputError(f"{flag} {path} is a mount point, and cannot be replaced. Give another.")
    for one in inputs:
        if target.samefile(one) or target.is_relative_to(os.path.realpath(one)):
            raise OutputError(
                f"{flag} {path} is a file of {one}, which the command reads. Give another name."
            )
    if not overwrite:
        raise OutputError(f"{flag} {path} exists already. Give another name, or --overwrite.")


def _open_streams() -> Iterator[int]:
    for stream in (1, 2):
        with suppress(OSError):
            os.fstat(stream)
            yield stream


def name_of(directory: Path) -> str:
    """A directory's own name, also if it was given as `.` or `..`."""
    return Path(os.path.abspath(directory)).name
