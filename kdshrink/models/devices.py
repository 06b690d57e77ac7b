"""Devices that models run on."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..distributed import local_rank, local_world_size
from ..errors import ModelError, UsageError


@dataclass(frozen=True)
class Execution:
    """How work is laid out on a kind of device.

    A CPU computes as long as the arithmetic takes, so that work is saved: targets are made for several
    batches, without padding, and kept. A GPU is faster than the host can ask for work, so that the host is
    spared, and nothing makes it wait for the device.

    Attributes:
        positions: Positions of a batch, padding included, for inference.
        multiple: Batches of training are padded to multiples of so many tokens.
        groups_targets: Whether the teacher runs on the examples of several batches at once; else on the
            batch that is on the device for the student.
        keeps_activations: Whether reading a teacher's activations from a cache is cheaper than a forward.
        fuses_attention: Whether layers whose scores are recorded attend by sdpa, beside the scores.
        expands_masks: Whether a model gets masks of attention instead of padding: transformers looks into
            the latter for padding, which waits for the device.
        stacked_bytes: Student's layers that a loss compares in one stack, at most; larger ones are compared
            one by one.
        splits_batches: Whether a batch that would not fit into the device's memory is computed in parts.
        evaluation_precision: Of products of float32 matrices in evaluation, as
            torch.set_float32_matmul_precision has it: "high" is TF32 on a GPU, which rounds factors to 10 bits.
    """

    positions: int
    multiple: int
    groups_targets: bool
    keeps_activations: bool
    fuses_attention: bool
    expands_masks: bool
    stacked_bytes: int
    splits_batches: bool
    evaluation_precision: Literal["highest", "high"]

    def widths(self, longest: int) -> tuple[int, ...]:
        """Lengths that batches are padded to, ascending, up to the longest example; none for their own."""
        if self.multiple == 1:
            return ()
        return (*range(self.multiple, longest, self.multiple), longest)


ON_CPU = Execution(
    positions=1024,  # the activations of a layer fit into the cache
    multiple=1,
    groups_targets=True,
    keeps_activations=True,
    fuses_attention=False,
    expands_masks=False,
    stacked_bytes=0,
    splits_batches=False,
    evaluation_precision="highest",
)
ON_GPU = Execution(
    positions=32768,
    multiple=8,
    groups_targets=False,
    keeps_activations=False,
    fuses_attention=True,
    expands_masks=True,
    stacked_bytes=256 * 1024**2,  # copied in the time that the host takes to ask for 50 kernels
    splits_batches=True,
    evaluation_precision="high",
)


def execution_on(device: torch.device) -> Execution:
    """How work is laid out on a device."""
    return ON_GPU if device.type == "cuda" else ON_CPU


@contextmanager
def evaluation_precision(device: torch.device) -> Iterator[None]:
    """Compute products of float32 matrices as evaluation does on a device, here and in `eval` alike."""
    former = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(execution_on(device).evaluation_precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(former)


def free_bytes(device: torch.device) -> int:
    """Bytes of a GPU that no process holds, and that this one holds without use."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def to_device_soon(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device, without waiting for it to come there."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # from pageable memory the copy waits
    return tensor.to(device, non_blocking=True)


class HostCopies:
    """Copies of tensors on the host, which are asked for now and read later.

    Reading waits for the work that was queued before the copies, and not for what came after.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        on_gpu = any(tensor.device.type == "cuda" for tensor in tensors)
        self._copies = [
            torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=on_gpu) for tensor in tensors
        ]
        for copy, tensor in zip(self._copies, tensors, strict=True):
            copy.copy_(tensor, non_blocking=True)
        self._copied = torch.cuda.Event() if on_gpu else None
        if self._copied is not None:
            self._copied.record()

    def read(self) -> list[Tensor]:
        if self._copied is not None:
            self._copied.synchronize()
        return self._copies


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


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of the allocator on CUDA, else the process's peak resident set size."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident()


def peak_resident() -> int:
    """The peak resident set size of this process, in bytes."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    # ru_maxrss has the peak of the process that started this one too, if that was larger.
    if line := next((one for one in lines if one.startswith("VmHWM:")), None):
        return 1024 * int(line.split()[1])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
