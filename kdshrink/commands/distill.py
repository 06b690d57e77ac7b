"""`kdshrink distill`: a student learns from its teacher's layers, its logits and the labels."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainingArguments, set_seed

from ..calibration.texts import CalibrationData
from ..config.commands import DistillConfig
from ..config.fields import LOSS_TERMS
from ..data.batching import steps_per_epoch
from ..data.labels import read_label_map
from ..data.load import TaskData, load_data
from ..data.request import DataRequest
from ..distillation.comparison import Comparison
from ..distillation.loss_evaluator import LossEvaluator
from ..distillation.matching import map_tokens
from ..distillation.objective import Objective
from ..distillation.pair import Pair, load_pair
from ..distillation.student import (
    KEPT,
    Student,
    check_base,
    given_student,
    keep_calibrated,
    kept_calibrated,
    make_student,
)
from ..distillation.targets import TargetSource, open_cache
from ..distillation.trainer import DistillationTrainer
from ..distributed import is_first, require_processes
from ..errors import UnlabelledError, UsageError
from ..evaluation.evaluator import Evaluator, check_labels
from ..models.architectures import family_of
from ..models.devices import describe_device, to_device
from ..models.loading import (
    fitting_length,
    load_tokenizer,
    model_sizes,
    prefix_words,
    require_task,
)
from ..models.sharding import shard
from ..models.source import Source, find_classifier, find_model
from ..models.whole import check_whole
from ..output import CHECKPOINTS
from ..progress import Progress
from ..record import Record
from ..shrinking.plan import Shape
from ..training.checkpoints import Identity, Start, last_checkpoint
from ..training.result import TrainResult, effective, load_best
from ..training.run import run_training
from ..training.setup import development_evaluator, encode_splits
from .inputs import data_request
from .options import access_of, record_of
from .training import TrainingCommand

_SPLITS = ("train", "validation")


def distill(config: DistillConfig, progress: Progress | None = None) -> TrainResult:
    """Distil a teacher into a smaller student of its own weights, of its base's, or of none.

    Raises:
        KdshrinkError: As `errors` lists.
    """
    output_dir = config.output_dir or Path(_default_name(config))
    with TrainingCommand.open("distill", config, output_dir, progress) as command:
        return _distill(command)


def _default_name(config: DistillConfig) -> str:
    if config.student is not None:
        return f"{Path(config.student).name}-distilled"
    name = f"{Path(config.teacher.partition('@')[0]).name}-{config.init or 'from-teacher'}"
    if config.layers is not None:
        name += f"-{config.layers}l"
    if config.hidden_size is not None:
        name += f"-{config.hidden_size}h"
    return name


@dataclass(frozen=True)
class _Models:
    """The models that a distillation starts from.

    Attributes:
        tokenizer: The teacher's.
        base: What --init from-base cuts, if that is asked for and known by now.
    """

    teacher: Source
    tokenizer: PreTrainedTokenizerBase
    student: Source | None
    base: Source | None


@dataclass(frozen=True)
class _Prepared:
    """What stands before the training loop.

    Attributes:
        encoded: The splits as the student reads them.
        length: Tokens that a text is cut to.
    """

    student: Student
    encoded: dict[str, Any]
    length: int
    comparison: Comparison | None
    start: Start
    pair: Pair


Command = TrainingCommand[DistillConfig]


def _distill(command: Command) -> TrainResult:
    config = command.config
    request = data_request(config)
    models = _find_models(config)
    teacher = models.teacher
    named = {"teacher": teacher, "student": models.student}
    if config.base is not None:
        named["base"] = models.base
    identity = command.identify({role: one for role, one in named.items() if one is not None})
    data = _load_data(config, request, teacher)
    identity = identity.with_data(data.source)
    if done := command.finished(identity):
        return done
    arguments = command.arguments()
    if config.shard_teacher:
        require_processes()
    prepared = _prepare(command, models, data, identity, arguments)
    trainer = _make_trainer(command, teacher, data, prepared, arguments)
    run = run_training(trainer, prepared.start.checkpoint)
    compared = None
    if prepared.comparison is not None:
        prepared.comparison.add_distilled(load_best(run, prepared.pair.learner.student))
        trainer.accelerator.wait_for_everyone()  # the first one removes the checkpoints next
        compared = prepared.comparison.to_dict()
    record = _record(command, teacher, data, prepared, arguments)
    return command.save(run, prepared.student.tokenizer, record, compared)


def _find_models(config: DistillConfig) -> _Models:
    renamed = read_label_map(config.label_map)
    teacher = find_classifier(config.teacher, access_of(config), renamed)
    family_of(teacher.config, "distilled")
    if config.student is None:
        family_of(teacher.config, "calibrated" if config.init == "calibrated" else "shrunk")
    _check_terms(config, teacher)
    check_whole(teacher, teacher.task)
    tokenizer = load_tokenizer(teacher)
    student = base = None
    if config.student is not None:
        student = find_model(config.student, teacher.access).renamed(renamed)
    if config.init == "from-base":
        base = find_model(_name_of_base(config, teacher), teacher.access)
        check_base(base, teacher, tokenizer)
    return _Models(teacher, tokenizer, student, base)


def _check_terms(config: DistillConfig, teacher: Source) -> None:
    possible = LOSS_TERMS if teacher.task else ("embedding", "hidden", "attention")
    if not any(config.weight(term) for term in possible):
        raise UsageError(
            "--weight: every term that this teacher can teach has weight 0, so there is nothing to learn.\n"
            f"Give one of {', '.join(possible)} a weight."
        )


def _name_of_base(config: DistillConfig, teacher: Source) -> str:
    name = config.base or teacher.record.base
    if not name:
        raise UsageError(
            f"--init from-base: nothing says which model {teacher.name} was fine-tuned from.\n"
            "Name it with --base."
        )
    return str(name)


def _load_data(config: DistillConfig, request: DataRequest, teacher: Source) -> TaskData:
    """What the student is trained on: with labels, unless nothing is learned from them.

    Raises:
        DataError: The teacher is for another task or other labels.
    """
    labelled = config.weight("task") > 0 and teacher.task is not None
    try:
        data = load_data(
            request,
            _SPLITS,
            purpose="train",
            labels="required" if labelled else "optional",
            token=config.token,
        )
    except UnlabelledError as error:
        raise UnlabelledError(
            f"{error}\nTo distil without labels, switch off their term: --weight task=0."
        ) from error
    if teacher.task is not None:
        require_task(teacher, data.task)
        if data.labels is not None:
            check_labels(data, teacher)
    return data


def _prepare(
    command: Command,
    models: _Models,
    data: TaskData,
    identity: Identity,
    arguments: TrainingArguments,
) -> _Prepared:
    """Find or make the student, encode the data, and load both models."""
    config, device = command.config, command.device
    teacher, tokenizer = models.teacher, models.tokenizer
    if data.task == "token":
        prefix_words(tokenizer)
    labelled = data if teacher.task is not None else replace(data, labels=None)
    objective = Objective(
        {term: config.weight(term) for term in LOSS_TERMS},
        config.attention_target,
        config.prediction_loss,
        config.temperature,
    )
    with tempfile.TemporaryDirectory() as folder:
        student = _student(command, models, data, Path(folder))
        teacher_ids = map_tokens(student.tokenizer, tokenizer, data)
        length = fitting_length(config.max_length, student.tokenizer, student.source.config)
        encoded = encode_splits(labelled, _SPLITS, student.tokenizer, length, student.labels)
        comparison = None
        if _comparing(config) and labelled.labels is not None:
            comparison = _comparison(command, data, models, student)
        with arguments.main_process_first(local=False):
            start = command.start(identity)
            if student.calibration is not None and is_first():
                keep_calibrated(student, command.output_dir / CHECKPOINTS / KEPT, teacher)
            set_seed(config.seed)
            pair = load_pair(
                teacher,
                student,
                encoded,
                teacher_ids,
                objective,
                command.output_dir,
                device,
                dropout=config.dropout,
                seed=config.seed,
            )
    teacher_model = pair.teacher.recorder.model
    if arguments.bf16 and device.type == "cuda":
        teacher_model.bfloat16()
    (shard if config.shard_teacher else to_device)(teacher_model, device)
    return _Prepared(student, encoded, length, comparison, start, pair)


def _student(
    command: Command,
    models: _Models,
    data: TaskData,
    folder: Path,
) -> Student:
    config, teacher, tokenizer = command.config, models.teacher, models.tokenizer
    if models.student is not None:
        return given_student(models.student, teacher, tokenizer, data.task, config.layer_map)
    calibration = None
    if config.init == "calibrated":
        if config.resume and last_checkpoint(command.output_dir) is not None:
            kept = kept_calibrated(command.output_dir / CHECKPOINTS / KEPT, teacher, tokenizer)
            if kept is not None:
                return kept
        calibration = CalibrationData.sample(
            data,
            config.calibration_samples,
            max_length=config.max_length,
            copies=config.calibration_copies,
        )
    return make_student(
        teacher,
        models.base or teacher,
        tokenizer,
        Shape(config.layers, config.layer_map, config.hidden_size, config.intermediate_size),
        config.init or "from-teacher",
        folder,
        seed=config.seed,
        calibration=calibration,
        device=command.device,
        progress=command.progress,
    )


def _comparing(config: DistillConfig) -> bool:
    if config.compare is None:
        return config.data == "sample" and not config.shard_teacher
    return config.compare


def _comparison(
    command: Command,
    data: TaskData,
    models: _Models,
    student: Student,
) -> Comparison:
    config = command.config
    everything = data_request(config, languages=("all",))
    return Comparison(
        load_data(everything, ("test",), purpose="evaluate", token=config.token),
        data.languages,
        models.teacher,
        models.tokenizer,
        student,
        command.device,
        command.progress,
        max_length=config.max_length,
        seed=config.seed,
    )


def _make_trainer(
    command: Command,
    teacher: Source,
    data: TaskData,
    prepared: _Prepared,
    arguments: TrainingArguments,
) -> DistillationTrainer:
    config, encoded, pair = command.config, prepared.encoded, prepared.pair
    batches = command.batches(arguments, encoded["train"])
    steps = steps_per_epoch(batches, config.gradient_accumulation_steps)
    epochs = config.num_train_epochs if config.max_steps is None else config.max_steps / steps
    with arguments.main_process_first(local=False):
        cache = open_cache(
            config.cache_teacher,
            pair.teacher,
            teacher.directory,
            encoded["train"],
            command.output_dir / CHECKPOINTS,
            token_logits=teacher.task == "token",
            epochs=epochs,
        )
    return DistillationTrainer(
        targets=TargetSource(pair.teacher, encoded["train"], batches, pair.collate, cache),
        texts=data.splits["train"],
        weights=pair.learner.objective.weights,
        batches=batches,
        table=pair.table,
        evaluator=_evaluator(command, teacher, data, prepared),
        output_dir=command.output_dir,
        progress=command.progress,
        what="distill",
        patience=config.early_stopping_patience,
        model=pair.learner,
        args=arguments,
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        data_collator=command.collator(pair.learner.student, pair.collate, batches),
    )


def _evaluator(
    command: Command,
    teacher: Source,
    data: TaskData,
    prepared: _Prepared,
) -> Evaluator | LossEvaluator:
    """What scores the development set: by its labels where a classifier is taught, else by the loss."""
    encoded, pair = prepared.encoded, prepared.pair
    if teacher.task is not None and data.labels is not None:
        labels = prepared.student.labels
        return development_evaluator(data, encoded, labels, pair.collate, command.device)
    return LossEvaluator(
        data.splits["validation"],
        encoded["validation"],
        pair.learner,
        pair.teacher,
        pair.collate,
        2 * command.config.batch_size,
        command.device,
    )


def _record(
    command: Command,
    teacher: Source,
    data: TaskData,
    prepared: _Prepared,
    arguments: TrainingArguments,
) -> Record:
    config, student, pair = command.config, prepared.student, prepared.pair
    # What an encoder without a task saw is pretraining, and leaves a language unseen for any task.
    languages = {*student.training_languages, *data.languages} if teacher.task else set()
    return record_of(
        "distill",
        config,
        describe_device(command.device),
        [teacher, *student.sources],
        data.source,
        teacher=teacher.describe(),
        sizes={
            "the teacher": model_sizes(pair.teacher.recorder.model),
            "this model": model_sizes(pair.learner.student),
        },
        student=config.student,
        start=student.start,
        **({} if student.calibration is None else {"calibration": student.calibration}),
        base=teacher.record.base,
        data=data.source,
        task=teacher.task,
        layers=list(student.layers),
        of_layers=teacher.depth,
        heads=student.heads,
        training_languages=sorted(languages),
        **effective(prepared.start, arguments, prepared.length),
    )
