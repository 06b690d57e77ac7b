"""Devices that models run on."""

from __future__ import annotations

import torch
from transformers import (
    PreTrainedModel,
)

from ..errors import ModelError
from ..processes import local_rank

_CPU_POSITIONS, _GPU_POSITIONS = 1024, 32768
"""What a layer makes of so many stays in a CPU's cache, and fills a GPU."""


def forward_positions(device: str) -> int:
    """Positions, padding included, to run through a model at once where nothing is kept for backward.

    Args:
        device: A torch device's type.
    """
    return _GPU_POSITIONS if device == "cuda" else _CPU_POSITIONS


def pick_device(device: str) -> torch.device:
    """The device that `--device` names; auto is CUDA where there is a GPU, else the CPU.

    Of several processes on a machine each takes its own GPU.

    Raises:
        ModelError: There is no such device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and torch.cuda.is_available():
        return torch.device("cuda", local_rank())
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ModelError(
            f"--device {device}: no such device. Give auto, cpu, cuda or cuda:N."
        ) from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ModelError(
            f"--device {device}: PyTorch sees {torch.cuda.device_count()} CUDA devices here.\n"
            "Give --device cpu, or install a CUDA build of PyTorch and its driver."
        )
    return chosen


def describe_device(device: torch.device) -> str:
    """A device with its maker's name, for the record."""
    if device.type != "cuda":
        return str(device)
    return f"{device} ({torch.cuda.get_device_name(device)})"


def to_device(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    return model.to(device)  # type: ignore[arg-type]
