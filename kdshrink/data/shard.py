"""Where the examples of one language and split are."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..files import sha256_of

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development"),
    "test": ("test",),
}
UNDETERMINED = "und"
"""BCP 47's code for a language that is not known: own data that names none."""


@dataclass(frozen=True)
class Shard:
    """The examples of one language (None: the file's own column tells) and split, not read yet.

    Attributes:
        path: The file that they are in, if it is a local one.
        commit: The commit that they are read at, if they are on the Hub and it is known.
    """

    language: str | None
    split: str
    origin: str
    load: Callable[[], Dataset]
    path: Path | None = None
    commit: str | None = None


def describe_shards(shards: Sequence[Shard]) -> dict[str, Any]:
    """What tells which data was read: a commit, or the SHA-256 of each file and of that list."""
    described: dict[str, Any] = {}
    if commits := {shard.commit for shard in shards if shard.commit}:
        described["revision"] = ", ".join(sorted(commits))
    files = {}
    for shard in shards:
        if shard.path is not None:
            folder = f"{shard.language}/" if shard.language else ""
            files[folder + shard.path.name] = sha256_of(shard.path)
    if files:
        listing = "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))
        described["fingerprint"] = hashlib.sha256(listing.encode()).hexdigest()
        described["files"] = files
    return described
