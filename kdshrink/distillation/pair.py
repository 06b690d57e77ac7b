"""Student and teacher, loaded with only the embedding rows that the data uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from ..data.encoding import Collator
from ..models.activations import Recorder
from ..models.architectures import Head
from ..models.devices import execution_on
from ..models.embeddings import compact_ids, reachable_ids
from ..models.loading import load_weights
from ..models.source import Source
from ..training.setup import set_dropout
from ..training.trial import mixed
from .matching import match_classes
from .model import DistillationModel
from .objective import Objective
from .student import Student
from .teacher import Targets, Teacher, tensors_of


def _recorder(
    model: PreTrainedModel,
    layers: Sequence[int],
    objective: Objective,
    device: torch.device,
    heads: Sequence[Sequence[Head]] | None = None,
) -> Recorder:
    return Recorder(
        model,
        layers,
        hidden=objective.weight("hidden") > 0,
        attention=objective.attention_target if objective.weight("attention") else None,
        embedding=objective.weight("embedding") > 0,
        heads=heads,
        execution=execution_on(device),
    )


@dataclass(frozen=True)
class Pair:
    """Student and teacher, with only the embedding rows that the data uses, in the same order.

    Attributes:
        learner: The student and what is trained with it.
        teacher: The teacher, in eval mode.
        collate: Makes batches with ids of the compact embedding tables.
        kept: Ids of the rows that are held of the student's embedding table, (n,).
    """

    learner: DistillationModel
    teacher: Teacher
    collate: Collator
    kept: Tensor

    def step(self, batch: Mapping[str, Tensor], *, bf16: bool) -> tuple[dict[str, Tensor], Targets]:
        """The forward passes of a step: the terms of a batch's loss, and the teacher's targets for it.

        Args:
            batch: What the student takes, and labels if it has any, on the device.
            bf16: Whether the student is trained in bfloat16.
        """
        ids = batch["input_ids"]
        targets = self.teacher.targets(ids, batch["attention_mask"])
        with mixed(ids.device, bf16):
            return self.learner(**batch, targets=targets), targets

    def kept_by(self, input_ids: Tensor, attention_mask: Tensor, *, bf16: bool) -> list[Tensor]:
        """What a step on (B, T) ids without labels keeps until its backward pass, besides what autograd does."""
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        terms, targets = self.step(batch, bf16=bf16)
        return [*terms.values(), *tensors_of(targets)]


def load_pair(
    source: Source,
    student: Student,
    encoded: Mapping[str, Dataset],
    teacher_ids: Tensor | None,
    objective: Objective,
    device: torch.device,
    *,
    dropout: float | None,
    seed: int,
) -> Pair:
    """Load student and teacher; the learner goes to the device, the teacher stays on the CPU.

    Args:
        source: The teacher.
        encoded: The tokenised splits.
        teacher_ids: As `map_tokens` gives it.
        dropout: As in `set_dropout`.
        seed: Of the student's head, where its files have none.
    """
    vocabulary = student.source.vocabulary
    kept = reachable_ids(student.tokenizer, list(encoded.values()), vocabulary)
    model = student.load(source.task, seed, kept)
    set_dropout(model, dropout, calibrated=student.is_calibrated)
    rows = kept if teacher_ids is None else teacher_ids[kept]
    teacher_model = load_weights(source, source.task, rows).eval()
    classes = None
    if source.task is not None:
        classes = match_classes(student.labels, source.labels).to(device)
    learner = DistillationModel(
        model,
        _recorder(model, range(1, len(student.layers) + 1), objective, device),
        objective,
        teacher_model.config.hidden_size,
        source.task,
        student.basis,
    ).to(device)
    return Pair(
        learner,
        Teacher(
            _recorder(teacher_model, student.layers, objective, device, student.heads), classes
        ),
        Collator(int(student.tokenizer.pad_token_id), compact_ids(kept, vocabulary)),
        kept,
    )
