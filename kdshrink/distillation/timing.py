"""A step of a distillation, to be tried before the run begins."""

from __future__ import annotations

import torch
from datasets import Dataset
from torch import Tensor

from ..data.batching import Batches
from ..training.memory import BatchMemory
from ..training.trial import Trial
from .pair import Pair


def trial_of(
    pair: Pair,
    encoded: Dataset,
    batches: Batches,
    *,
    memory: BatchMemory | None = None,
    bf16: bool = False,
) -> Trial:
    """A step on a batch: the teacher's pass, and the student's.

    Args:
        encoded: The tokenised training set.
        memory: Bounds the examples that are computed at once.
        bf16: Whether the student is trained in bfloat16.
    """

    def loss(batch: dict[str, Tensor]) -> Tensor:
        terms, _ = pair.step(batch, bf16=bf16)
        return torch.stack([term.float() for term in terms.values()]).sum()

    device = pair.teacher.recorder.model.device
    return Trial(pair.learner, loss, encoded, batches, pair.collate, device, memory)
