"""How long a step of a distillation takes, tried before the run begins."""

from __future__ import annotations

import time

import numpy as np
import torch
from datasets import Dataset

from ..data.batching import Batches
from ..data.encoding import Collator, examples_at
from ..training.memory import BatchMemory
from .model import DistillationModel
from .teacher import Teacher


def seconds_per_step(
    learner: DistillationModel,
    teacher: Teacher,
    encoded: Dataset,
    batches: Batches,
    collate: Collator,
    accumulated: int,
    memory: BatchMemory | None = None,
    *,
    bf16: bool = False,
) -> float:
    """Seconds that a step takes on a batch of median size: the teacher's pass, the student's, and back.

    The optimizer's share, evaluations and what a cache of targets saves are not in it. Neither weights nor
    random numbers are changed.

    Args:
        encoded: The tokenised training set.
        accumulated: Batches of a step.
        memory: Bounds the examples that are tried at once.
        bf16: Whether the student is trained in bfloat16.
    """
    plan = batches.of_epoch(0)
    sizes = [len(rows) * int(batches.lengths[rows].max()) for rows in plan]
    rows = plan[int(np.argsort(sizes)[len(sizes) // 2])]
    batch_size = len(rows)
    if memory is not None:
        rows = rows[: memory.examples(int(batches.lengths[rows].max()))]
    device = teacher.recorder.model.device
    batch = {name: t.to(device) for name, t in collate(examples_at(encoded, rows)).items()}
    cuda = [device] if device.type == "cuda" else []
    cast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)
    with torch.random.fork_rng(devices=cuda):
        for _ in range(2):  # the first one has what is done once
            began = time.perf_counter()
            targets = teacher.targets(batch["input_ids"], batch["attention_mask"])
            with cast:
                terms = learner(**batch, targets=targets)
            torch.stack(list(terms.values())).sum().backward()
            if cuda:
                torch.cuda.synchronize(device)
            seconds = time.perf_counter() - began
    learner.zero_grad(set_to_none=True)
    return seconds * accumulated * batch_size / len(rows)
