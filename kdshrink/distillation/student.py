"""The student before training: a given one, or one made from its teacher or from a base model."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..calibration.calibrate import BASIS, CalibrationReport, calibrate_student, read_basis
from ..calibration.texts import CalibrationData
from ..data.registry import Task
from ..distributed import from_first, is_first, world_size
from ..errors import ModelError, ShapeError
from ..files import atomic_directory, write_json
from ..models.architectures import Head
from ..models.loading import load_tokenizer, load_weights, load_with_head, require_task
from ..models.source import Source, find_model, require_classes
from ..models.whole import check_whole
from ..progress import Progress
from ..record import RECORD, Calibration, Record
from ..shrinking.layer_map import choose_layers
from ..shrinking.plan import Shape, StudentPlan
from ..shrinking.weights import shrink_source
from .matching import same_tokenizer

logger = logging.getLogger(__name__)

KEPT = "start"
"""The directory beside a run's checkpoints with its calibrated student before training."""


@dataclass(frozen=True)
class Student:
    """A student before training: its files, and the teacher's layers that its layers are matched with.

    Attributes:
        source: Its files.
        tokenizer: Its tokenizer.
        labels: Names of its classes, by id; empty for a bare encoder.
        layers: For each of its layers the number of the teacher's, 1-based.
        start: How it was initialised, as kdshrink.json says it.
        training_languages: Languages that its weights were trained on before.
        sources: The models besides the teacher that it was made of.
        heads: For each of its layers the teacher's heads that its own are matched with; None for those of
            the matched layer.
        basis: (teacher's width, student's width), the basis of its hidden states if it was calibrated and
            is narrower; else None.
        calibration: How it was calibrated in this run, for kdshrink.json.
    """

    source: Source
    tokenizer: PreTrainedTokenizerBase
    labels: tuple[str, ...]
    layers: tuple[int, ...]
    start: str
    training_languages: tuple[str, ...]
    sources: tuple[Source, ...] = ()
    heads: tuple[tuple[Head, ...], ...] | None = None
    basis: Tensor | None = None
    calibration: dict[str, Any] | None = None

    @property
    def is_calibrated(self) -> bool:
        """Whether its weights come from a calibration, in this run or before, without training since."""
        return self.calibration is not None or self.source.is_calibrated

    def load(self, task: Task | None, seed: int, rows: Tensor | None = None) -> PreTrainedModel:
        """Load the model, with a new head where its files have none.

        Args:
            task: The task of its head; None for a bare encoder.
            seed: For a new head.
            rows: As in `load_weights`.
        """
        if task is None:
            return load_weights(self.source, None, rows)
        return load_with_head(self.source, task, self.labels, seed, rows)


def given_student(
    source: Source,
    teacher: Source,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    layer_map: str | None,
) -> Student:
    """Use an existing model as the student.

    Args:
        source: Its files.
        tokenizer: The teacher's.
        task: That of the data.
        layer_map: Which of the teacher's layers its own are matched with; None for those that its
            kdshrink.json names.

    Raises:
        ShapeError: Its layers cannot be mapped to the teacher's.
        ModelError: Its head is not of the teacher's task, or its files are damaged.
    """
    require_classes(source)
    if source.task != teacher.task:
        if teacher.task is None:
            raise ModelError(f"{source.name} has a head, and the teacher {teacher.name} has none.")
        require_task(source, teacher.task)
    check_whole(source, teacher.task)
    layers, heads = _matched_layers(source, layer_map, teacher.depth)
    if source.depth != len(layers):
        raise ShapeError(
            f"--layer-map names {len(layers)} layers, and the student has {source.depth}."
        )
    shared = same_tokenizer(source, teacher)
    return Student(
        source,
        tokenizer if shared else load_tokenizer(source, task),
        source.labels if teacher.task else (),
        layers,
        f"from {source.name}",
        tuple(source.training_languages),
        (source,),
        heads,
        _fitting_basis(source, teacher),
    )


def make_student(
    teacher: Source,
    origin: Source,
    tokenizer: PreTrainedTokenizerBase,
    shape: Shape,
    init: str,
    folder: Path,
    *,
    seed: int,
    calibration: CalibrationData | None,
    device: torch.device,
    progress: Progress,
) -> Student:
    """Make a student from the teacher or from a base model.

    Args:
        origin: The model that is shrunk: the teacher, or its base.
        tokenizer: The teacher's.
        init: As --init has it.
        folder: An empty directory for its files.
        calibration: The texts for init="calibrated"; else None.

    Raises:
        ShapeError: The teacher cannot be shrunk to this shape.
    """
    shape = replace(shape, layers=_default_layers(shape, teacher.depth))
    how = {"from-scratch": "scratch", "calibrated": "calibrated"}.get(init, "copy")
    plan, _ = shrink_source(origin, shape, folder, init=how, seed=seed)
    report = None
    if calibration is not None:
        report = _calibrate(teacher, folder, plan, calibration, device, progress)
    return Student(
        find_model(str(folder), teacher.access),
        tokenizer,
        teacher.labels if teacher.task else (),
        tuple(plan.layers),
        init,
        () if init == "from-scratch" else tuple(origin.training_languages),
        () if origin is teacher else (origin,),
        None if report is None else report.heads,
        None if report is None else report.basis,
        # distill writes no file of the basis; only shrink does.
        None if report is None else {**report.to_dict(), "basis": None},
    )


def keep_calibrated(student: Student, folder: Path, teacher: Source) -> None:
    """Keep a student that was calibrated in this run, so that going on need not calibrate it again.

    Args:
        folder: Its directory, which `kept_calibrated` reads.
    """
    if student.source.directory == folder:
        return
    record = Record(
        command="shrink",
        calibration=Calibration.from_dict(
            {**(student.calibration or {}), "basis": None if student.basis is None else BASIS}
        ),
        layers=student.layers,
        of_layers=teacher.depth,
        heads=student.heads,
    )
    with atomic_directory(folder) as partial:
        shutil.copytree(student.source.directory, partial, dirs_exist_ok=True)
        write_json(partial / RECORD, record.to_dict())


def kept_calibrated(
    folder: Path, teacher: Source, tokenizer: PreTrainedTokenizerBase
) -> Student | None:
    """The student that `keep_calibrated` kept, as `make_student` made it; None where it is not whole.

    Args:
        tokenizer: The teacher's.
    """
    if not folder.exists():
        return None
    try:
        source = find_model(str(folder), teacher.access)
        check_whole(source, teacher.task)
        basis = read_basis(source)
    except ModelError as error:
        logger.warning("the student before training is calibrated again: %s", error)
        return None
    record = source.record
    assert record.calibration is not None
    return Student(
        source,
        tokenizer,
        teacher.labels if teacher.task else (),
        record.layers,
        "calibrated",
        tuple(teacher.training_languages),
        heads=_recorded_heads(record),
        basis=basis,
        calibration={**record.calibration.to_dict(), "basis": None},
    )


def _recorded_heads(record: Record) -> tuple[tuple[Head, ...], ...] | None:
    if record.heads is None:
        return None
    return tuple(tuple(Head(*one) for one in layer) for layer in record.heads)


def _calibrate(
    teacher: Source,
    folder: Path,
    plan: StudentPlan,
    texts: CalibrationData,
    device: torch.device,
    progress: Progress,
) -> CalibrationReport:
    """Calibrate the student in a directory, once for all processes of a run.

    Heads that fit nearly alike could fall out otherwise in each, and DDP would not notice.
    """
    weights = folder / "model.safetensors"

    def calibrate() -> tuple[CalibrationReport, bytes]:
        report = calibrate_student(teacher, folder, plan, texts, device, progress=progress)
        return report, weights.read_bytes() if world_size() > 1 else b""

    report, content = from_first(calibrate)
    if not is_first():
        weights.write_bytes(content)
    return report


def _fitting_basis(student: Source, teacher: Source) -> Tensor | None:
    """The basis that a student was saved with, if it fits the widths of this teacher and student."""
    basis = read_basis(student)
    widths = (teacher.width, student.width)
    if basis is not None and tuple(basis.shape) != widths:
        logger.warning("%s was calibrated to another teacher: its basis is not used", student.name)
        return None
    return basis


def _default_layers(shape: Shape, depth: int) -> int | None:
    if shape.layers is not None or shape.layer_map is not None:
        return shape.layers
    if shape.hidden_size is not None:
        return depth
    if depth % 2:
        raise ShapeError(
            f"The teacher has {depth} layers, which cannot be halved.\nSay how many with --layers."
        )
    return depth // 2


def _matched_layers(
    source: Source, layer_map: str | None, depth: int
) -> tuple[tuple[int, ...], tuple[tuple[Head, ...], ...] | None]:
    """The teacher's layers for a student's, by --layer-map, its kdshrink.json, or uniform; and heads."""
    record = source.record
    if layer_map is None and record.layers and record.of_layers == depth:
        return record.layers, _recorded_heads(record)
    return tuple(choose_layers(depth, source.depth, layer_map)), None


def check_base(base: Source, teacher: Source, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that a base model is complete and has the vocabulary of the teacher fine-tuned from it.

    Raises:
        ModelError: Its files are damaged, or its vocabulary is another.
    """
    require_classes(base)
    check_whole(base, base.task)
    if load_tokenizer(base, teacher.task).get_vocab() != tokenizer.get_vocab():
        raise ModelError(
            f"--base {base.name}: its tokenizer is not that of the teacher {teacher.name}.\n"
            "Give the base that the teacher was fine-tuned from, with the same vocabulary."
        )
