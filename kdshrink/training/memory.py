"""What a batch keeps on a GPU until its backward pass, and the parts that it is computed in to fit there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..data.batching import Batches
from ..models.devices import execution_on, free_bytes

logger = logging.getLogger(__name__)

_SHARE = 0.6
"""Of what is free, for what is kept; the rest is for what comes and goes within a layer."""
_STATE_BYTES = 16
"""A trained parameter's gradient, AdamW's two moments and DDP's copy of the gradient."""


@dataclass(frozen=True)
class BatchMemory:
    """What the examples of a batch keep until its backward pass.

    Attributes:
        coefficients: Of the bytes an example, a polynomial of its length in tokens, the highest power first.
            Attention takes memory by the square of the length.
        available: Bytes that there are for it.
    """

    coefficients: tuple[float, ...]
    available: int

    def of_example(self, tokens: int) -> int:
        """Bytes that an example of so many tokens keeps."""
        return int(np.polyval(self.coefficients, tokens))

    def examples(self, tokens: int) -> int:
        """How many examples of so many tokens fit at once: at least one."""
        return max(1, self.available // max(1, self.of_example(tokens)))

    @classmethod
    def measured(
        cls,
        forward: Callable[[Tensor, Tensor], Sequence[Tensor]],
        device: torch.device,
        *,
        longest: int,
        available: int,
    ) -> BatchMemory:
        """Count what small batches keep; neither weights nor random numbers are changed.

        Args:
            forward: The forward pass of a training step, of (B, T) ids and mask; gives the tensors that
                are kept beside what autograd keeps.
            longest: Tokens that the model takes at least.
        """

        def kept(examples: int, tokens: int) -> int:
            ids = torch.zeros(examples, tokens, dtype=torch.int64, device=device)
            return kept_bytes(lambda: forward(ids, torch.ones_like(ids)))

        longest = max(4, min(longest, 32))
        lengths = longest // 4, longest // 2, longest
        cuda = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            of_an_example = [kept(2, tokens) - kept(1, tokens) for tokens in lengths]
        return cls(tuple(np.polyfit(lengths, of_an_example, 2).tolist()), available)


def batch_memory(
    forward: Callable[[Tensor, Tensor], Sequence[Tensor]],
    model: nn.Module,
    batches: Batches,
    device: torch.device,
) -> BatchMemory | None:
    """What the batches of a run keep, where they are bounded by it; None elsewhere.

    Args:
        forward: As in `BatchMemory.measured`.
        model: The model that is trained.
    """
    if not execution_on(device).splits_batches:
        return None
    parameters = sum(one.numel() for one in model.parameters() if one.requires_grad)
    available = int(_SHARE * (free_bytes(device) - _STATE_BYTES * parameters))
    longest = int(batches.lengths.max())
    training = model.training
    model.train()
    memory = BatchMemory.measured(forward, device, longest=longest, available=available)
    model.train(training)
    largest = [int(batches.widths[rows].max()) for rows in batches.of_epoch(0)]
    sizes = map(len, batches.of_epoch(0))
    split = sum(size > memory.examples(tokens) for size, tokens in zip(sizes, largest, strict=True))
    if split:
        logger.info(
            "%d of %d batches are computed in parts, since they would take more than %.1f GB",
            *(split, len(batches), max(0, available) / 1e9),
        )
    return memory


def kept_bytes(run: Callable[[], Sequence[Tensor]], without: Iterable[Tensor] = ()) -> int:
    """Bytes of the tensors that something gives, and of those that autograd keeps for its backward pass.

    Args:
        without: Tensors that do not count, such as a model's weights.
    """
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        given = run()
    for tensor in given:
        keep(tensor)
    for tensor in without:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storage.nbytes() for storage in storages.values())
