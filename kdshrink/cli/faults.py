"""What the machine could not do, in words."""

from __future__ import annotations

import errno

from ..config.fields import shown
from ..hub.errors import cache_fault, chain_of


def known_fault(error: BaseException) -> str | None:
    """What the machine could not do, in words; None for a bug."""
    for one in chain_of(error):
        if told := _memory_fault(one):
            return told
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
    # PyTorch says of the CPU's memory so alone.
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
    """What the system refused, in words."""
    if told := cache_fault(error):
        return told
    if error.errno is None:
        return str(error)
    what = f"{shown(error.filename)}: {error.strerror}" if error.filename else str(error)
    advice = {
        errno.EACCES: "Give another path, or get the permission.",
        errno.EPERM: "Give another path, or get the permission.",
        errno.EROFS: "Give a path on a file system that may be written to.",
        errno.ENOENT: "Check the path.",
        errno.EISDIR: "Give a file's path, not a directory's.",
        errno.ENOTDIR: "Check the path: what it names as a directory is a file.",
        errno.ENAMETOOLONG: "Give a shorter path.",
        errno.ELOOP: "Check the path: its links lead round in a circle.",
        errno.EMFILE: "Raise the limit of open files (ulimit -n).",
        errno.EIO: "The disk or its connection is failing; look into the system's log.",
    }.get(error.errno, "The system refused it; nothing that was whole before is lost.")
    return f"{what}.\n{advice}"
