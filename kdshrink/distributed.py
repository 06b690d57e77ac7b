"""The processes of a run that torchrun started: which is this one, and what all of them agree on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .errors import UsageError

if TYPE_CHECKING:  # the command line asks for its rank before it loads torch
    import numpy as np
    import torch


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


def require_processes() -> None:
    """Raise UsageError unless several processes run together."""
    from torch import distributed

    if not distributed.is_initialized() or distributed.get_world_size() < 2:
        raise UsageError(
            "--shard-teacher: there is one process, and nothing to spread the teacher over.\n"
            "Start several, as in torchrun --nproc-per-node 8 -m kdshrink distill …"
        )


def largest(number: int, device: torch.device) -> int:
    """The largest of the processes' numbers."""
    import torch
    from torch import distributed

    numbers = torch.tensor(int(number), device=device)
    distributed.all_reduce(numbers, distributed.ReduceOp.MAX)
    return int(numbers)


def joined(answers: np.ndarray, device: torch.device) -> np.ndarray:
    """The answers of all processes, each of which has less than any answer where it has none."""
    import torch
    from torch import distributed

    tensor = torch.from_numpy(answers).to(device)
    distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
    return tensor.cpu().numpy()
