"""A teacher that outgrows one GPU, its weights spread over the processes of a run (FSDP2)."""

from __future__ import annotations

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from .errors import UsageError
from .recording import encoder_layers


def require_processes() -> None:
    """Raise UsageError unless several processes run together."""
    if not distributed.is_initialized() or distributed.get_world_size() < 2:
        raise UsageError(
            "--shard-teacher: there is one process, and nothing to spread the teacher over.\n"
            "Start several, as in torchrun --nproc-per-node 8 -m kdshrink distill …"
        )


def shard(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Spread a frozen model's weights over all processes, each of its layers and its embeddings apart.

    The model may be on the CPU: no more than a layer of it is on a device whole. From here on each
    forward is a collective: all processes must make as many.
    """
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    model.requires_grad_(False)
    for part in (*encoder_layers(model), model.base_model.embeddings, model):
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    return model


def is_sharded(model: PreTrainedModel) -> bool:
    """Whether `shard` was called on it."""
    return hasattr(model, "unshard")


def largest(number: int, device: torch.device) -> int:
    """The largest of the processes' numbers."""
    numbers = torch.tensor(int(number), device=device)
    distributed.all_reduce(numbers, distributed.ReduceOp.MAX)
    return int(numbers)
