"""The student of a distillation before it is trained: found, or made from its teacher or its base."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..calibration.calibrate import calibrate_student, read_basis
from ..config.commands import DistillConfig
from ..data.labels import read_label_map
from ..data.load import TaskData
from ..data.registry import Task
from ..errors import ModelError, ShapeError, UsageError
from ..models.architectures import Head
from ..models.loading import load_tokenizer, load_weights, load_with_head, require_task
from ..models.source import Source, find_model, require_classes
from ..models.whole import check_whole
from ..progress import Progress
from ..shrinking.layer_map import choose_layers
from ..shrinking.weights import shrink_source
from .matching import same_tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Student:
    """A student before training: its files, and which of the teacher's layers its layers stand for.

    Attributes:
        labels: Names of its classes, by id; empty for a bare encoder.
        layers: Numbers of the teacher's layers, 1-based.
        heads: For each of them the teacher's heads, if the student's do not stand for that layer's own.
        sources: The models besides the teacher that it was made of.
        basis: The basis of its hidden states in the teacher's, if it was calibrated to be narrower.
        calibration: How it was calibrated, for the record.
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
        """Whether its weights are as calibrating made them, here or before."""
        return self.calibration is not None or self.source.is_calibrated

    def load(
        self, config: DistillConfig, task: Task | None, rows: Tensor | None = None
    ) -> PreTrainedModel:
        """Its model, with a new head where its files have none (`rows`: as in `load_weights`)."""
        if task is None:
            return load_weights(self.source, None, rows)
        return load_with_head(self.source, task, self.labels, config.seed, rows)


def prepare_student(
    config: DistillConfig,
    teacher: Source,
    tokenizer: PreTrainedTokenizerBase,
    data: TaskData,
    folder: Path,
    progress: Progress,
) -> Student:
    """Find the student that --student names, or make the one that --init asks for.

    Args:
        data: What it will be distilled on; --init calibrated reads its texts.
        folder: An empty directory, for the files of a student that is made.

    Raises:
        ShapeError: No such student can be cut, or its layers cannot be mapped to the teacher's.
        ModelError: The student, the base or its tokenizer does not fit the teacher.
    """
    depth = teacher.depth
    if config.student is not None:
        source = find_model(config.student, teacher.access).renamed(
            read_label_map(config.label_map)
        )
        require_classes(source)
        if source.task != teacher.task:
            if teacher.task is None:
                raise ModelError(
                    f"{source.name} has a head, and the teacher {teacher.name} has none."
                )
            require_task(source, teacher.task)
        check_whole(source, teacher.task)
        layers, heads = _places_of(source, config, depth)
        own = source.depth
        if own != len(layers):
            raise ShapeError(f"--layer-map names {len(layers)} layers, and the student has {own}.")
        return Student(
            source,
            tokenizer if same_tokenizer(source, teacher) else load_tokenizer(source, data.task),
            source.labels if teacher.task else (),
            layers,
            f"from {source.name}",
            tuple(source.training_languages),
            (source,),
            heads,
            _fitting_basis(source, teacher),
        )
    shape = replace(config, layers=_default_layers(config, depth))
    init = config.init or "from-teacher"
    origin = _base_of(config, teacher, tokenizer) if init == "from-base" else teacher
    how = {"from-scratch": "scratch", "calibrated": "calibrated"}.get(init, "copy")
    plan, _ = shrink_source(origin, shape, folder, init=how, seed=config.seed)
    report = None
    if init == "calibrated":
        report = calibrate_student(teacher, folder, plan, data, config, progress=progress)
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
        # The file of the basis stays with what shrink writes.
        None if report is None else {**report.to_dict(), "basis": None},
    )


def _fitting_basis(student: Source, teacher: Source) -> Tensor | None:
    """The basis that was recorded with a student, if it is one of this teacher's width."""
    basis = read_basis(student)
    widths = (teacher.width, student.width)
    if basis is not None and tuple(basis.shape) != widths:
        logger.warning("%s was calibrated to another teacher: its basis is not used", student.name)
        return None
    return basis


def _default_layers(config: DistillConfig, depth: int) -> int | None:
    if config.layers is not None or config.layer_map is not None:
        return config.layers
    if config.hidden_size is not None:
        return depth
    if depth % 2:
        raise ShapeError(
            f"The teacher has {depth} layers, which cannot be halved.\nSay how many with --layers."
        )
    return depth // 2


def _places_of(
    source: Source, config: DistillConfig, depth: int
) -> tuple[tuple[int, ...], tuple[tuple[Head, ...], ...] | None]:
    """The teacher's layers of a given student: --layer-map, its record, or uniform; and the heads."""
    own = source.depth
    record = source.record
    if config.layer_map is None and record.layers and record.of_layers == depth:
        if record.heads is None:
            return record.layers, None
        return record.layers, tuple(tuple(Head(*one) for one in layer) for layer in record.heads)
    return tuple(choose_layers(depth, own, config.layer_map)), None


def _base_of(config: DistillConfig, teacher: Source, tokenizer: PreTrainedTokenizerBase) -> Source:
    name = config.base or teacher.record.base
    if not name:
        raise UsageError(
            f"--init from-base: nothing says which model {teacher.name} was fine-tuned from.\n"
            "Name it with --base."
        )
    base = find_model(name, teacher.access)
    require_classes(base)
    check_whole(base, base.task)
    if load_tokenizer(base, teacher.task).get_vocab() != tokenizer.get_vocab():
        raise ModelError(
            f"--base {name}: its tokenizer is not that of the teacher {teacher.name}.\n"
            "Give the base that the teacher was fine-tuned from, with the same vocabulary."
        )
    return base
