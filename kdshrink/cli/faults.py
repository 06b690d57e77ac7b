"""Messages for errors of the operating system and of memory."""

from __future__ import annotations

import errno

from ..config.fields import shown
from ..hub.errors import cache_fault, chain_of


def known_fault(error: BaseException) -> str | None:
    """The message for an error that the machine caused; None for a bug."""
    for one in chain_of(error):
        if message := _memory_fault(one):
            return message
        if isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"The disk is full: {one}.\nMake room and run the command again."
    if isinstance(error, UnicodeEncodeError):
        return (
            f"A name cannot be written as {error.encoding}: {shown(error.object)}.\n"
            "Rename it: the names of files and directories must be UTF-8."
        )
    return _os_error(error) if isinstance(error, OSError) else None


def _memory_fault(error: BaseException) -> str | None:
    said = str(error).partition("\n")[0]
    kind = "memory of the GPU" if type(error).__name__ == "OutOfMemoryError" else "memory"
    # PyTorch has no class of its own for the CPU's memory.
    short = isinstance(error, RuntimeError) and "can't allocate memory" in said
    if not (short or isinstance(error, MemoryError) or kind != "memory"):
        return None
    found = f": {shown(said)}" if said else ""
    return (
        f"There is not enough {kind}{found}\n"
        "Lower --batch-size or --tokens-per-batch (and raise --gradient-accumulation-steps), or "
        "--max-length."
    )


def _os_error(error: OSError) -> str:
    """The message for an error of the operating system."""
    if message := cache_fault(error):
        return message
    if error.errno is None:
        return str(error)
    what = f"{shown(error.filename)}: {error.strerror}" if error.filename else str(error)
    advice = {
        errno.EACCES: "Give another path, or change the permissions.",
        errno.EPERM: "Give another path, or change the permissions.",
        errno.EROFS: "Give a path on a writable file system.",
        errno.ENOENT: "Check the path.",
        errno.EISDIR: "Give a file's path, not a directory's.",
        errno.ENOTDIR: "Check the path: what it names as a directory is a file.",
        errno.ENAMETOOLONG: "Give a shorter path.",
        errno.ELOOP: "Check the path: its links form a loop.",
        errno.EMFILE: "Raise the limit of open files (ulimit -n).",
        errno.EIO: "The disk or its connection is failing; see the system's log.",
    }.get(error.errno, "Files that were complete before are unchanged.")
    return f"{what}.\n{advice}"
