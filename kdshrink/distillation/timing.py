"""A step of a distillation, to be tried before the run begins."""

from __future__ import annotations

import torch
from datasets import Dataset
from torch import Tensor

from ..data.batching import Batches
from ..data.encoding import Collator
from ..training.memory import BatchMemory
from ..training.trial import Trial, mixed
from .model import DistillationModel
from .teacher import Teacher


def trial_of(
    learner: DistillationModel,
    teacher: Teacher,
    encoded: Dataset,
    batches: Batches,
    collate: Collator,
    *,
    memory: BatchMemory | None = None,
    bf16: bool = False,
) -> Trial:
    """A step on a batch: the teacher's pass, and the student's.

    Args:
        encoded: The tokenised training set.
        memory: Bounds the examples that are computed at once.
        bf16: Whether the student computes in bfloat16.
    """
    device = teacher.recorder.model.device

    def loss(batch: dict[str, Tensor]) -> Tensor:
        targets = teacher.targets(batch["input_ids"], batch["attention_mask"])
        with mixed(device, bf16):
            terms = learner(**batch, targets=targets)
        return torch.stack([term.float() for term in terms.values()]).sum()

    return Trial(learner, loss, encoded, batches, collate, device, memory)
