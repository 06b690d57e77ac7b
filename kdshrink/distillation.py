"""Distillation: a student learns from its teacher's layers, its logits and the labels."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from . import losses
from .checkpoint import Source, check_output, find_model, make_record
from .config import LOSS_TERMS, DistillConfig, ObjectiveOptions
from .data import IGNORED, Collator, TaskData, language_codes, load_data, match_labels
from .errors import ModelError, ShapeError, UsageError
from .evaluation import EvalResult, Evaluator, LanguageScore, make_evaluator
from .languages import language_of
from .loading import (
    Loaded,
    class_names,
    fitting_length,
    load_tokenizer,
    load_weights,
    new_model,
    pick_device,
    require_task,
    to_device,
    with_new_head,
)
from .progress import Progress, silent
from .recording import Record, Recorder
from .shrinking import plan_for, shrink_source
from .shrinking.calibrated import calibrate_student, read_basis
from .shrinking.layers import choose_layers
from .training import (
    TermTrainer,
    TrainResult,
    development_evaluator,
    encode_splits,
    finished_result,
    load_best,
    run_training,
    save_result,
    start_run,
    training_arguments,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Targets:
    """What the teacher says of a batch.

    Attributes:
        record: Its embedding output, and hidden states and attention of the mapped layers.
        logits: (B, C), or (B, T, C) for token tasks, in the student's order of classes; None for a
            bare encoder.
        centred: Whether the attention is scores less their mean over the keys.
    """

    record: Record
    logits: Tensor | None
    centred: bool


class DistillationModel(nn.Module):
    """A student with what its loss needs: recorded layers, and projections where widths differ.

    The objective is TinyBERT's (Jiao et al. 2020, eq. 7–11) with the task loss added:

        L = L_emb + L_hid + L_attn + L_pred + L_task

    each term weighted by `objective`. Hidden states of all layers share one projection W_h, the
    embedding output has its own W_e; both are trained and are no part of the student.

    Args:
        student: The model to train.
        recorder: Records the student's own layers.
        objective: Weights, temperature and kinds of the terms.
        teacher_width: Hidden size of the teacher.
        task: What the student's head is for; None for a bare encoder, which has neither prediction
            nor task term.
        basis: Where the projections start, (teacher's width, student's width), if the student's hidden
            states began as the teacher's in a basis; without one they are drawn.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        recorder: Recorder,
        objective: ObjectiveOptions,
        teacher_width: int,
        task: str | None,
        basis: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.recorder = recorder
        self.objective = objective
        self.task = task
        width = student.config.hidden_size
        same = width == teacher_width
        self.embedding_projection: nn.Module = (
            nn.Identity() if same else nn.Linear(width, teacher_width, bias=False)
        )
        self.hidden_projection: nn.Module = (
            nn.Identity() if same else nn.Linear(width, teacher_width, bias=False)
        )
        if basis is not None:
            for projection in (self.embedding_projection, self.hidden_projection):
                if isinstance(projection, nn.Linear):
                    projection.weight.data.copy_(basis)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        targets: Targets,
        labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The terms of a batch's loss, unweighted scalars; a term of weight 0 is 0 and costs nothing.

        Args:
            input_ids, attention_mask: (B, T).
            labels: (B), or (B, T) with -100 where there is none.
        """
        output, mine = self.recorder(input_ids=input_ids, attention_mask=attention_mask)
        theirs = targets.record
        mask = attention_mask.bool()
        zero = mask.new_zeros((), dtype=torch.float32)
        terms = dict.fromkeys(LOSS_TERMS, zero)
        if mine.embedding is not None and theirs.embedding is not None:
            projected = self.embedding_projection(mine.embedding)
            terms["embedding"] = losses.hidden_mse(projected, theirs.embedding, mask).mean
        for own, other in zip(mine.hidden, theirs.hidden, strict=True):
            projected = self.hidden_projection(own)
            terms["hidden"] = terms["hidden"] + losses.hidden_mse(projected, other, mask).mean
        for own, other in zip(mine.attention, theirs.attention, strict=True):
            if targets.centred and not self.recorder.centred:
                own = losses.centre(own, mask)
            elif self.recorder.centred and not targets.centred:
                other = losses.centre(other, mask)
            terms["attention"] = terms["attention"] + losses.attention_mse(own, other, mask).mean
        if targets.logits is not None and self.objective.weight("prediction"):
            examples = None if self.task == "sequence" else self._scored(mask, labels)
            if self.objective.prediction_loss == "mse":
                term = losses.logits_mse(output.logits, targets.logits, examples)
            else:
                term = losses.soft_cross_entropy(
                    output.logits, targets.logits, self.objective.temperature, examples
                )
            terms["prediction"] = term.mean
        if labels is not None and self.objective.weight("task"):
            terms["task"] = losses.task_cross_entropy(output.logits, labels).mean
        return terms

    @staticmethod
    def _scored(mask: Tensor, labels: Tensor | None) -> Tensor:
        """The positions whose logits count: the labelled tokens, or all real ones without labels."""
        return mask if labels is None else labels != IGNORED


@dataclass(frozen=True)
class Teacher:
    """A teacher in eval mode, and how its world maps onto the student's.

    Attributes:
        recorder: Records the layers that the student's layers are matched with.
        pieces: For each id of the student's vocabulary the teacher's; None if they are the same.
        classes: For each class of the student the teacher's; None for a bare encoder.
    """

    recorder: Recorder
    pieces: Tensor | None
    classes: Tensor | None

    @torch.inference_mode()
    def targets(self, input_ids: Tensor, attention_mask: Tensor) -> Targets:
        """What the teacher says of a batch that the student's tokenizer made."""
        ids = input_ids if self.pieces is None else self.pieces[input_ids]
        output, record = self.recorder(input_ids=ids, attention_mask=attention_mask)
        if self.classes is None:
            return Targets(record, None, self.recorder.centred)
        return Targets(record, output.logits[..., self.classes], self.recorder.centred)


class DistillationTrainer(TermTrainer):
    """Trains a DistillationModel on its teacher's targets."""

    def __init__(self, *, teacher: Teacher, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.teacher = teacher

    @property
    def trained_model(self) -> PreTrainedModel:
        return self.accelerator.unwrap_model(self.model).student

    def loss_terms(self, model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        targets = self.teacher.targets(inputs["input_ids"], inputs["attention_mask"])
        return model(**inputs, targets=targets)


@dataclass(frozen=True)
class Student:
    """A student before training.

    Attributes:
        layers: Which of the teacher's layers (1-based) its layers stand for.
        start: Where its weights come from, for the record.
        basis: The basis of its hidden states in the teacher's, if it was calibrated to be narrower.
        calibration: How it was calibrated, for the record.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layers: tuple[int, ...]
    start: str
    training_languages: tuple[str, ...]
    basis: Tensor | None = None
    calibration: dict[str, Any] | None = None


def prepare_student(
    config: DistillConfig,
    teacher: Source,
    tokenizer: PreTrainedTokenizerBase,
    data: TaskData,
    progress: Progress,
) -> Student:
    """Load the student that --student names, or make the one that --init asks for.

    Args:
        data: What it will be distilled on; --init calibrated reads its texts.

    Raises:
        ShapeError: No such student can be cut, or its layers cannot be mapped to the teacher's.
        ModelError: The student, the base or its tokenizer does not fit the teacher.
    """
    depth = teacher.config["num_hidden_layers"]
    if config.student is not None:
        source = find_model(config.student, config)
        if source.task != teacher.task:
            if teacher.task is None:
                raise ModelError(
                    f"{source.name} has a head, and the teacher {teacher.name} has none."
                )
            require_task(source, teacher.task)
        layers = _layers_of(source, config, depth)
        return Student(
            load_weights(source, config, teacher.task),
            load_tokenizer(source, config),
            layers,
            f"from {source.name}",
            tuple(source.training_languages),
            _fitting_basis(source, teacher),
        )
    shape = replace(config, layers=_default_layers(config, depth))
    init = config.init or "from-teacher"
    calibrated = init == "calibrated"
    plan = plan_for(teacher, shape, calibrated=calibrated)
    layers = tuple(plan.layers)
    if init == "from-scratch":
        student_config = AutoConfig.for_model(**plan.config)
        model = new_model(student_config, teacher.task, config.seed)
        return Student(model, tokenizer, layers, init, ())
    from_base = init == "from-base"
    origin = _base_of(config, teacher, tokenizer) if from_base else teacher
    report = None
    with tempfile.TemporaryDirectory() as folder:
        shrink_source(origin, shape, Path(folder), init="calibrated" if calibrated else "copy")
        if calibrated:
            report = calibrate_student(teacher, Path(folder), plan, data, config, progress=progress)
        shrunk = find_model(folder, config)
        model = load_weights(shrunk, config, None if from_base else teacher.task)
    if from_base and teacher.task is not None:
        model = with_new_head(model, teacher.task, teacher.labels, config.seed)
    languages = tuple(origin.training_languages)
    if report is None:
        return Student(model, tokenizer, layers, init, languages)
    facts = {**report.to_dict(), "basis": None}  # the file stays with what shrink writes
    return Student(model, tokenizer, layers, init, languages, report.basis, facts)


def _fitting_basis(student: Source, teacher: Source) -> Tensor | None:
    """The basis that was recorded with a student, if it is one of this teacher's width."""
    basis = read_basis(student)
    widths = (teacher.config["hidden_size"], student.config["hidden_size"])
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


def _layers_of(source: Source, config: DistillConfig, depth: int) -> tuple[int, ...]:
    """The teacher's layers of a given student: --layer-map, its record, or uniform."""
    own = source.config.get("num_hidden_layers")
    record = source.record or {}
    if config.layer_map is None and record.get("layers") and record.get("of_layers") == depth:
        return tuple(record["layers"])
    return tuple(choose_layers(depth, own, config.layer_map))


def _base_of(config: DistillConfig, teacher: Source, tokenizer: PreTrainedTokenizerBase) -> Source:
    name = config.base or (teacher.record or {}).get("base")
    if not name:
        raise UsageError(
            f"--init from-base: nothing says which model {teacher.name} was fine-tuned from.\n"
            "Name it with --base."
        )
    base = find_model(name, config)
    if load_tokenizer(base, config).get_vocab() != tokenizer.get_vocab():
        raise ModelError(
            f"--base {name}: its tokenizer is not that of the teacher {teacher.name}.\n"
            "Give the base that the teacher was fine-tuned from, with the same vocabulary."
        )
    return base


def map_pieces(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, data: TaskData
) -> Tensor | None:
    """The teacher's id for each of the student's pieces; None where the tokenizers are the same.

    A student's vocabulary may be a part of the teacher's if it splits the data's texts alike.

    Raises:
        ModelError: The tokenizers do not fit.
    """
    if student.backend_tokenizer.to_str() == teacher.backend_tokenizer.to_str():
        return None
    theirs = teacher.get_vocab()
    pieces = student.get_vocab()
    missing = [piece for piece in pieces if piece not in theirs]
    advice = "Distil with a student made from this teacher, or whose vocabulary was cut from its."
    if missing:
        raise ModelError(
            f"The student has {len(missing)} pieces that the teacher does not have, such as "
            f"{', '.join(map(repr, missing[:5]))}.\n{advice}"
        )
    table = torch.zeros(max(pieces.values()) + 1, dtype=torch.int64)
    for piece, index in pieces.items():
        table[index] = theirs[piece]
    options: Any = {"is_split_into_words": data.task == "token"}
    for split in data.splits.values():
        for batch in split.select_columns(["text"]).iter(1000):
            own = student(batch["text"], **options)["input_ids"]
            other = teacher(batch["text"], **options)["input_ids"]
            for text, ids, expected in zip(batch["text"], own, other, strict=True):
                if table[torch.tensor(ids)].tolist() != expected:
                    raise ModelError(
                        f"Teacher and student split this text differently: {str(text)[:80]!r}.\n{advice}"
                    )
    return table


def match_classes(student: PreTrainedModel, teacher: PreTrainedModel) -> Tensor:
    """For each class of the student the teacher's id of the same name.

    Raises:
        ModelError: They have different classes.
    """
    theirs = {name: i for i, name in enumerate(class_names(teacher))}
    mine = class_names(student)
    if set(mine) != set(theirs):
        raise ModelError(
            "Teacher and student have different classes.\n"
            f"The student's: {', '.join(mine)}.\nThe teacher's: {', '.join(theirs)}."
        )
    return torch.tensor([theirs[name] for name in mine])


def _default_name(config: DistillConfig) -> str:
    if config.student is not None:
        return f"{Path(config.student).name}-distilled"
    name = f"{Path(config.teacher.partition('@')[0]).name}-{config.init or 'from-teacher'}"
    if config.layers is not None:
        name += f"-{config.layers}l"
    if config.hidden_size is not None:
        name += f"-{config.hidden_size}h"
    return name


def _check_terms(config: DistillConfig, teacher: Source) -> None:
    possible = LOSS_TERMS if teacher.task else ("embedding", "hidden", "attention")
    if not any(config.weight(term) for term in possible):
        raise UsageError(
            "--weight: every term that this teacher can teach has weight 0, so there is nothing to learn.\n"
            f"Give one of {', '.join(possible)} a weight."
        )


def _ready_teacher(
    config: DistillConfig,
    model: PreTrainedModel,
    student: Student,
    tokenizer: PreTrainedTokenizerBase,
    data: TaskData,
    device: torch.device,
) -> Teacher:
    if student.model.config.num_hidden_layers != len(student.layers):
        raise ShapeError(
            f"--layer-map names {len(student.layers)} layers, and the student has "
            f"{student.model.config.num_hidden_layers}."
        )
    pieces = map_pieces(student.tokenizer, tokenizer, data)
    classes = None
    if hasattr(model, "classifier"):
        classes = match_classes(student.model, model).to(device)
    recorder = _recorder(model, student.layers, config)
    return Teacher(recorder, None if pieces is None else pieces.to(device), classes)


def _recorder(model: PreTrainedModel, layers: Sequence[int], config: DistillConfig) -> Recorder:
    return Recorder(
        model,
        layers,
        hidden=config.weight("hidden") > 0,
        attention=config.attention_target if config.weight("attention") else None,
        embedding=config.weight("embedding") > 0,
    )


@dataclass(frozen=True)
class LossEvaluator:
    """Scores a student where there are no labels: by the objective itself, its sign turned.

    Attributes:
        table, encoded: The development set, and the same tokenised.
        learner: Holds the student that is scored.
    """

    table: Dataset
    encoded: Dataset
    learner: DistillationModel
    teacher: Teacher
    collate: Collator
    batch_size: int
    device: torch.device

    @torch.no_grad()
    def score(self, model: PreTrainedModel) -> EvalResult:
        assert model is self.learner.student
        training = self.learner.training
        self.learner.eval()
        began = time.perf_counter()
        codes, languages = language_codes(self.table)
        scores = {}
        for code, language in enumerate(languages):
            rows = np.flatnonzero(codes == code)
            order = rows[np.argsort(np.asarray(self.encoded["length"])[rows], kind="stable")]
            total = 0.0
            for start in range(0, len(order), self.batch_size):
                chosen = order[start : start + self.batch_size]
                batch = self.collate(self.encoded.__getitems__(chosen.tolist()))
                batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
                targets = self.teacher.targets(batch["input_ids"], batch["attention_mask"])
                terms = self.learner(**batch, targets=targets)
                objective = self.learner.objective
                loss = sum(float(value) * objective.weight(name) for name, value in terms.items())
                total += loss * len(chosen)
            scores[language] = LanguageScore(-total / len(rows), len(rows))
        self.learner.train(training)
        examples = len(self.table)
        return EvalResult(
            metric="negative_loss",
            score=sum(row.score * row.examples for row in scores.values()) / examples,
            details={},
            mean_over_languages=float(np.mean([row.score for row in scores.values()])),
            per_language=scores,
            examples=examples,
            examples_per_second=examples / (time.perf_counter() - began),
        )


class Comparison:
    """Scores of the teacher, the untrained student and the distilled one on the test split."""

    def __init__(
        self,
        config: DistillConfig,
        data: TaskData,
        teacher: Loaded,
        student: Loaded,
        device: torch.device,
    ) -> None:
        everything = replace(config, languages=("all",))
        test = load_data(everything, ("test",), purpose="evaluate", token=config.token)
        options: Any = {
            "max_length": config.max_length,
            "batch_size": 2 * config.batch_size,
            "device": device,
        }
        self._evaluators = {
            "teacher": make_evaluator(test, "test", teacher, **options),
            "student": make_evaluator(test, "test", student, **options),
        }
        present = language_codes(test.splits["test"])[1]
        trained = {language_of(name) for name in data.languages}
        self._groups = {
            "seen": [name for name in present if language_of(name) in trained],
            "unseen": [name for name in present if language_of(name) not in trained],
        }
        self._models: dict[str, Any] = {}

    def add(self, name: str, model: PreTrainedModel, progress: Progress) -> None:
        """Score a model; any name but "teacher" is one of the student's."""
        evaluator = self._evaluators["teacher" if name == "teacher" else "student"]
        scores = {
            group: evaluator.part(languages).score(model, progress).to_dict() if languages else None
            for group, languages in self._groups.items()
        }
        self._models[name] = {"parameters": model.num_parameters(), **scores}

    def to_dict(self) -> dict[str, Any]:
        scores = self._models["teacher"]
        metric = (scores["seen"] or scores["unseen"])["metric"]
        return {"metric": metric, "models": self._models}


def distill(config: DistillConfig, progress: Progress | None = None) -> TrainResult:
    """Distil a teacher into a smaller student of its own weights, of its base's, or of none.

    Raises:
        KdshrinkError: As `errors` lists.
    """
    progress = progress or silent
    source = find_model(config.teacher, config)
    output_dir = config.output_dir or Path(_default_name(config))
    check_output(output_dir, overwrite=config.overwrite, resume=config.resume)
    if done := finished_result(output_dir, config):
        return done
    device = pick_device(config.device)
    _check_terms(config, source)
    tokenizer = load_tokenizer(source, config)
    data = load_data(
        config,
        ("train", "validation"),
        purpose="train",
        labels_required=config.weight("task") > 0 and source.task is not None,
        token=config.token,
    )
    if source.task is not None:
        require_task(source, data.task)
        if data.labels is not None:
            match_labels(data.labels, source.labels)

    set_seed(config.seed)
    student = prepare_student(config, source, tokenizer, data, progress)
    teacher_model = to_device(load_weights(source, config, source.task), device).eval()
    teacher = _ready_teacher(config, teacher_model, student, tokenizer, data, device)
    set_seed(config.seed)
    learner = DistillationModel(
        student.model,
        _recorder(student.model, range(1, len(student.layers) + 1), config),
        config,
        teacher_model.config.hidden_size,
        source.task,
        student.basis,
    ).to(device)
    length = fitting_length(config.max_length, student.tokenizer, student.model.config.to_dict())
    labelled = data if source.task is not None else replace(data, labels=None)
    encoded = encode_splits(
        labelled, ("train", "validation"), student.tokenizer, length, class_names(student.model)
    )
    collate = Collator(int(student.tokenizer.pad_token_id))
    evaluator: Evaluator | LossEvaluator
    if labelled.labels is None:
        evaluator = LossEvaluator(
            data.splits["validation"],
            encoded["validation"],
            learner,
            teacher,
            collate,
            2 * config.batch_size,
            device,
        )
    else:
        evaluator = development_evaluator(data, encoded, student.model, collate, config, device)

    comparison = None
    if config.compare or (config.compare is None and config.data == "sample" and labelled.labels):
        student_source = replace(
            source, config={**source.config, "id2label": student.model.config.id2label}
        )
        comparison = Comparison(
            config,
            data,
            Loaded(teacher_model, tokenizer, source),
            Loaded(student.model, student.tokenizer, student_source),
            device,
        )
        comparison.add("teacher", teacher_model, progress)
        comparison.add("untrained student", student.model, progress)

    resume_from = start_run(config, output_dir)
    trainer = DistillationTrainer(
        teacher=teacher,
        weights={term: config.weight(term) for term in LOSS_TERMS},
        evaluator=evaluator,
        output_dir=output_dir,
        progress=progress,
        what="distill",
        patience=config.early_stopping_patience,
        model=learner,
        args=training_arguments(config, output_dir, device, len(encoded["train"])),
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        data_collator=collate,
    )
    run = run_training(trainer, resume_from)
    if comparison is not None:
        comparison.add("distilled student", load_best(run, student.model), progress)
    record = make_record(
        "distill",
        config,
        device,
        teacher=source.describe(),
        student=config.student,
        start=student.start,
        **({} if student.calibration is None else {"calibration": student.calibration}),
        base=(source.record or {}).get("base"),
        data=data.source,
        task=source.task,
        layers=list(student.layers),
        of_layers=source.config["num_hidden_layers"],
        # What an encoder without a task saw is pretraining, and leaves a language unseen for any task.
        training_languages=(
            sorted({*student.training_languages, *data.languages}) if source.task else []
        ),
    )
    return save_result(
        output_dir,
        run,
        student.tokenizer,
        record,
        None if comparison is None else comparison.to_dict(),
    )
