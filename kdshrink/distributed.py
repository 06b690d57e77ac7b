"""The processes of a run that torchrun started: ranks and all-reduce."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import UsageError

if TYPE_CHECKING:  # the command line asks for its rank before it loads torch
    import numpy as np
    import torch


Made = TypeVar("Made")


def rank() -> int:
    """This process's rank; 0 where there is one process."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """The number of processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process's rank on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """How many of the run's processes are on this machine; all, where nothing says otherwise."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def is_on_several_machines() -> bool:
    """Whether the run has processes on other machines too."""
    return world_size() > local_world_size()


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


def part() -> None:
    """End the working together of a run's processes, so that one goes on alone; all must call this."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def largest(number: int, device: torch.device) -> int:
    """The maximum of a number over all processes."""
    import torch
    from torch import distributed

    numbers = torch.tensor(int(number), device=device)
    distributed.all_reduce(numbers, distributed.ReduceOp.MAX)
    return int(numbers)


def from_first(make: Callable[[], Made]) -> Made:
    """What the first process of the run makes, in all of them: the others wait for it."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return make()
    made: list[Any] = [make() if is_first() else None]
    distributed.broadcast_object_list(made)
    return made[0]


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
