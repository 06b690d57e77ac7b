"""A teacher that outgrows one GPU, its weights spread over the processes of a run (FSDP2)."""

from __future__ import annotations

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from .activations import encoder_layers
from .architectures import family_of


def shard(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Spread a frozen model's weights over all processes, each of its layers and its embeddings apart.

    The model may be on the CPU: no more than a layer of it is on a device whole. From here on each
    forward is a collective: all processes must make as many.
    """
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    model.requires_grad_(False)
    modules = family_of(model.config.to_dict(), "distilled").modules
    embeddings = model.base_model.get_submodule(modules.embeddings)
    for part in (*encoder_layers(model), embeddings, model):
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    return model


def is_sharded(model: PreTrainedModel) -> bool:
    """Whether `shard` was called on it."""
    return hasattr(model, "unshard")
