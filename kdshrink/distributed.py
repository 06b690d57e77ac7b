"""The processes of a run that torchrun started: which is this one, and what all of them agree on."""

from __future__ import annotations

import os


def rank() -> int:
    """This process's number in the run; 0 where there is one alone."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes the run has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process's number on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_first() -> bool:
    """Whether this process writes and prints for all."""
    return rank() == 0
