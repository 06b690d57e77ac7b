"""Steps of a training run that are tried before it begins: how long one takes, and the memory that it needs."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn

from ..data.batching import Batches
from ..data.encoding import Collator, examples_at
from ..models.devices import peak_memory
from .memory import BatchMemory, kept_bytes

_MOMENTS = 2
"""Tensors that AdamW keeps of each trained weight."""


@dataclass(frozen=True)
class Trial:
    """A training step on batches of the run; trying it changes neither weights nor random numbers.

    Attributes:
        trained: The module that is trained, on its device.
        loss: Gives the loss of a batch on the device, a scalar.
        encoded: The tokenised training set.
        batches: Those of the run.
        memory: Bounds the examples that are computed at once; None computes each batch as a whole.
    """

    trained: nn.Module
    loss: Callable[[dict[str, Tensor]], Tensor]
    encoded: Dataset
    batches: Batches
    collate: Collator
    device: torch.device
    memory: BatchMemory | None = None

    def seconds(self, accumulated: int) -> float:
        """Seconds that a step takes on batches of median size: forward passes, and back.

        The optimizer's share, evaluations and what a cache of targets saves are not in it.

        Args:
            accumulated: Batches of a step.
        """
        with self._unchanged():
            for _ in range(2):  # the first one has what is done once
                batch, parts = self._batch(share=0.5)
                began = time.perf_counter()
                self.loss(batch).backward()
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
                seconds = time.perf_counter() - began
        return seconds * accumulated * parts

    def activations(self) -> int:
        """Bytes of the activations that the largest batch of an epoch keeps for its backward pass."""
        batch, _ = self._batch(share=1.0)
        with self._unchanged():
            return kept_bytes(lambda: [self.loss(batch)], without=self.trained.parameters())

    def _batch(self, share: float) -> tuple[dict[str, Tensor], float]:
        """The batch of the first epoch that this share of all are at most as large as, on the device.

        Of one that is too large, a part that is computed at once, and how many of these it has.
        """
        plan = self.batches.of_epoch(0)
        sizes = [len(rows) * int(self.batches.lengths[rows].max()) for rows in plan]
        rows = plan[int(np.argsort(sizes)[min(int(share * len(sizes)), len(sizes) - 1)])]
        size = len(rows)
        if self.memory is not None:
            rows = rows[: self.memory.examples(int(self.batches.widths[rows].max()))]
        batch = self.collate(examples_at(self.encoded, rows))
        return {name: tensor.to(self.device) for name, tensor in batch.items()}, size / len(rows)

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            yield
        self.trained.zero_grad(set_to_none=True)


def mixed(device: torch.device, bf16: bool) -> torch.autocast:
    """Computes as accelerate has the trained model compute with --bf16."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def tensor_bytes(*modules: nn.Module) -> int:
    """Bytes of the weights and buffers of modules, those that several share counted once."""
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    return _bytes(tensors)


def trained_bytes(trained: nn.Module) -> int:
    """Bytes of the weights that get a gradient."""
    return _bytes(weight for weight in trained.parameters() if weight.requires_grad)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in tensors}.values())


def training_memory(trained: nn.Module, *frozen: nn.Module, activations: int) -> dict[str, int]:
    """The parts of the memory that training takes at the end of a forward pass, in bytes.

    Args:
        activations: As of `Trial.activations`.
    """
    return {
        "weights": tensor_bytes(trained, *frozen),
        "gradients": trained_bytes(trained),
        "Adam's moments": _MOMENTS * trained_bytes(trained),
        "activations": activations,
    }


def checkpoint_bytes(trained: nn.Module) -> int:
    """Bytes that a checkpoint takes on disk: weights, and AdamW's moments."""
    return tensor_bytes(trained) + _MOMENTS * trained_bytes(trained)


def memory_in_use(device: torch.device) -> int:
    """Bytes that count as used now and are not of a model's own: of the process on a CPU, none on a GPU."""
    if device.type == "cuda":
        return 0
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux
        return peak_memory(device)
    return pages * resource.getpagesize()
