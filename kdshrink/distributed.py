"""The processes of a run that torchrun started: ranks and all-reduce."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .errors import UsageError

if TYPE_CHECKING:  # the command line asks for its rank before it loads torch
    import numpy as np
    import torch


def rank() -> int:
    """This process's rank; 0 where there is one process."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """The number of processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process's rank on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_first() -> bool:
    """Whether this is the process that writes and prints (rank 0)."""
    return rank() == 0


def require_processes() -> None:
    """Raise UsageError unless several processes run together."""
    from torch import distributed

    if not distributed.is_initialized() or distributed.get_world_size() < 2:
        raise UsageError(
            "--shard-teacher: there is only one process, so the teacher cannot be sharded.\n"
            "Start several with torchrun, as in torchrun --nproc-per-node 8 -m kdshrink distill …"
        )


def largest(number: int, device: torch.device) -> int:
    """The maximum of a number over all processes."""
    import torch
    from torch import distributed

    numbers = torch.tensor(int(number), device=device)
    distributed.all_reduce(numbers, distributed.ReduceOp.MAX)
    return int(numbers)


def joined(part: np.ndarray, device: torch.device) -> np.ndarray:
    """Merge the predictions of all processes by their elementwise maximum.

    Args:
        part: This process's predictions; where another process has the prediction, a smaller value.
    """
    import torch
    from torch import distributed

    tensor = torch.from_numpy(part).to(device)
    distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
    return tensor.cpu().numpy()
