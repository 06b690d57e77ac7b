"""Shards a teacher that does not fit on one GPU over the processes of a run (FSDP2)."""

from __future__ import annotations

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from .activations import encoder_layers
from .architectures import family_of


def shard(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Freeze a model and shard its weights over all processes, in units of a layer or the embeddings.

    The model may be on the CPU: at most one unit at a time is whole on a device. Each forward pass is a
    collective operation from now on, which all processes must run equally often.
    """
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    model.requires_grad_(False)
    modules = family_of(model.config.to_dict(), "distilled").modules
    embeddings = model.base_model.get_submodule(modules.embeddings)
    for part in (*encoder_layers(model), embeddings, model):
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    return model


def is_sharded(model: PreTrainedModel) -> bool:
    """Whether a model was sharded by `shard`."""
    return hasattr(model, "unshard")
