"""Devices that models run on."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from ..distributed import local_rank, local_world_size
from ..errors import ModelError, UsageError

_CPU_POSITIONS, _GPU_POSITIONS = 1024, 32768
"""The activations of a layer for so many positions fit into a CPU's cache, and use a GPU fully."""


def forward_positions(device: str) -> int:
    """Positions of a batch, padding included, for inference.

    Args:
        device: A torch device's type.
    """
    return _GPU_POSITIONS if device == "cuda" else _CPU_POSITIONS


def pick_device(device: str) -> torch.device:
    """The device that `--device` names; auto is CUDA if there is a GPU, else the CPU.

    With several processes on a machine, each takes the GPU of its local rank.

    Raises:
        ModelError: There is no such device.
        UsageError: Several processes would share it.
    """
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device == "auto" and not here):
        return torch.device("cpu")
    _, _, number = device.partition(":")
    if number and (processes := local_world_size()) > 1:
        raise UsageError(
            f"--device {device}: {processes} processes of this machine would share one GPU.\n"
            "Leave --device out: each process takes a GPU of its own."
        )
    index = int(number) if number else local_rank()
    if index < here:
        return torch.device("cuda", index)
    if here and not number:
        raise ModelError(
            f"This is process {index} of its machine, where PyTorch sees {here} CUDA devices.\n"
            "Start as many processes as there are GPUs, or give --device cpu."
        )
    advice = (
        f"Give a device below cuda:{here}"
        if here
        else "Install a CUDA build of PyTorch and its driver"
    )
    raise ModelError(
        f"--device {device}: PyTorch sees {here} CUDA devices here.\n{advice}, or give --device cpu."
    )


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device is a GPU that computes in bfloat16, which those before Ampere only emulate."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def describe_device(device: torch.device) -> str:
    """A device with the name of the GPU, for kdshrink.json."""
    if device.type != "cuda":
        return str(device)
    return f"{device} ({torch.cuda.get_device_name(device)})"


def to_device(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    return model.to(device)  # type: ignore[arg-type]
