"""Student and teacher, loaded together with the embedding rows that the data reaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from ..config.commands import DistillConfig
from ..data.encoding import Collator
from ..models.activations import Recorder
from ..models.architectures import Head
from ..models.embeddings import TABLE, WholeTable, compact_ids, reachable_ids
from ..models.loading import load_weights
from ..models.source import Source
from ..output import CHECKPOINTS
from ..training.setup import set_dropout
from .matching import match_classes
from .model import DistillationModel
from .student import Student
from .teacher import Teacher


def _recorder(
    model: PreTrainedModel,
    layers: Sequence[int],
    config: DistillConfig,
    heads: Sequence[Sequence[Head]] | None = None,
) -> Recorder:
    return Recorder(
        model,
        layers,
        hidden=config.weight("hidden") > 0,
        attention=config.attention_target if config.weight("attention") else None,
        embedding=config.weight("embedding") > 0,
        heads=heads,
    )


@dataclass(frozen=True)
class _Pair:
    """Student and teacher with the embedding rows alone that the data can reach, in one order."""

    learner: DistillationModel
    teacher: Teacher
    collate: Collator
    table: WholeTable


def load_pair(
    config: DistillConfig,
    source: Source,
    student: Student,
    encoded: Mapping[str, Dataset],
    pieces: Tensor | None,
    output_dir: Path,
    device: torch.device,
) -> _Pair:
    """The learner on its device, the teacher still on the CPU."""
    vocabulary = student.source.vocabulary
    kept = reachable_ids(student.tokenizer, list(encoded.values()), vocabulary)
    model = student.load(config, source.task, kept)
    set_dropout(model, config.dropout, calibrated=student.is_calibrated)
    table = WholeTable.keep(output_dir / CHECKPOINTS / TABLE, student.source.directory, model, kept)
    rows = kept if pieces is None else pieces[kept]
    teacher_model = load_weights(source, source.task, rows).eval()
    classes = None
    if source.task is not None:
        classes = match_classes(student.labels, source.labels).to(device)
    learner = DistillationModel(
        model,
        _recorder(model, range(1, len(student.layers) + 1), config),
        config,
        teacher_model.config.hidden_size,
        source.task,
        student.basis,
    ).to(device)
    return _Pair(
        learner,
        Teacher(_recorder(teacher_model, student.layers, config, student.heads), classes),
        Collator(int(student.tokenizer.pad_token_id), compact_ids(kept, vocabulary)),
        table,
    )
