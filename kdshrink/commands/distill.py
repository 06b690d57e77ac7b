"""`kdshrink distill`: train a student on its teacher's hidden states, attention and logits, and the labels."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainingArguments, set_seed

from ..calibration.texts import CalibrationData, repeated_sentences
from ..config.commands import DistillConfig
from ..config.fields import LOSS_TERMS
from ..config.recipes import RECIPES
from ..data.batching import Batches, steps_per_epoch
from ..data.encoding import with_unlabelled
from ..data.load import TaskData
from ..distillation.cache import require_room
from ..distillation.comparison import Comparison
from ..distillation.loss_evaluator import LossEvaluator
from ..distillation.matching import map_tokens
from ..distillation.objective import Objective
from ..distillation.pair import Pair, load_pair
from ..distillation.student import (
    KEPT,
    Student,
    given_student,
    keep_calibrated,
    kept_calibrated,
    make_student,
)
from ..distillation.targets import (
    cache_bytes,
    check_cache_mode,
    held_bytes,
    open_cache,
    target_loader,
)
from ..distillation.timing import trial_of
from ..distillation.trainer import DistillationTrainer
from ..distributed import is_first, require_processes
from ..evaluation.evaluator import Evaluator
from ..models.compilation import compile_in_place
from ..models.devices import describe_device, execution_on, to_device
from ..models.embeddings import TABLE, WholeTable, table_bytes
from ..models.loading import fitting_length, model_sizes, prefix_words
from ..models.onednn import packed_bytes
from ..models.sharding import shard
from ..output import CHECKPOINTS
from ..progress import Progress, duration
from ..record import Record, read_record
from ..training.checkpoints import last_checkpoint
from ..training.memory import batch_memory
from ..training.result import TrainResult, effective, load_best
from ..training.run import run_training
from ..training.setup import development_evaluator, encode_splits
from ..training.trial import Trial, memory_in_use, tensor_bytes
from .distill_export import add_graphs
from .distill_inputs import SPLITS, Command, Inputs, read_inputs
from .export import disk_of_graphs, holds_export
from .options import record_of, shape_of
from .plan import Plan, PlannedData, PlannedModel, tokenizer_bytes

logger = logging.getLogger(__name__)


def distill(config: DistillConfig, progress: Progress | None = None) -> TrainResult:
    """Distil a teacher into a smaller student, which starts as `config.student` or `config.init` says.

    Raises:
        RefusedError: No scheme of fp16 or int8 passed the gate of --export; the directory holds the student and fp32.
        KdshrinkError: As `errors` lists.
    """
    with Command.open("distill", config, _output_dir(config), progress) as command:
        inputs = read_inputs(command)
        result = command.finished(inputs.identity) or _train(command, inputs)
        if config.export is not None:
            result = add_graphs(command, inputs, result)
        return command.push(result)


def plan_distill(config: DistillConfig, progress: Progress | None = None) -> Plan:
    """What `distill` would do; its errors before calibrating and training are raised too."""
    command = Command.rehearse("distill", config, _output_dir(config), progress)
    inputs = read_inputs(command)
    if command.finished(inputs.identity):
        record = read_record(command.output_dir) or Record()
        exported = holds_export(record, config.export or (), config.max_drop)
        notes = () if exported else _export_notes(config)
        return Plan.nothing(command.name, command.output_dir, notes)
    return _plan(command, inputs)


def _output_dir(config: DistillConfig) -> Path:
    return config.output_dir or Path(_default_name(config))


def _default_name(config: DistillConfig) -> str:
    if config.student is not None:
        return f"{Path(config.student).name}-distilled"
    name = f"{Path(config.teacher.partition('@')[0]).name}-{config.init or 'student'}"
    if config.layers is not None:
        name += f"-{config.layers}l"
    if config.hidden_size is not None:
        name += f"-{config.hidden_size}h"
    return name


@dataclass(frozen=True)
class _Prepared:
    """The student before training, and the data encoded for it.

    Attributes:
        texts: All texts to train on, with and without labels.
        encoded: The splits; the unlabelled texts are in the training split.
        teacher_ids: For each of the student's tokens the teacher's; None if the vocabularies are the same.
        length: The maximum number of tokens of a text.
    """

    student: Student
    texts: Dataset
    encoded: dict[str, Any]
    teacher_ids: Tensor | None
    length: int


@dataclass(frozen=True)
class _Steps:
    """The steps of the training loop.

    Attributes:
        per_epoch: Their number in an epoch.
        trial: One of them, to be tried before.
    """

    arguments: TrainingArguments
    batches: Batches
    per_epoch: int
    trial: Trial

    @property
    def epochs(self) -> float:
        return self.arguments.max_steps / self.per_epoch


def _train(command: Command, inputs: Inputs) -> TrainResult:
    arguments = _arguments(command, inputs)
    comparison = None
    with tempfile.TemporaryDirectory() as folder:
        calibration = _calibration_data(command.config, inputs)
        student = _student(command, inputs, Path(folder), calibration)
        prepared = _prepare(command, inputs, student)
        if inputs.test is not None:
            comparison = _comparison(command, inputs, inputs.test, student)
        checkpoints = command.output_dir / CHECKPOINTS
        with arguments.main_process_first(local=False):
            start = command.start(inputs.identity)
            if student.calibration is not None and is_first():
                keep_calibrated(student, checkpoints / KEPT, inputs.teacher)
            pair = _load_pair(command, inputs, prepared)
            table = WholeTable.keep(
                checkpoints / TABLE, student.source.directory, pair.learner.student, pair.kept
            )
    _place_teacher(command, pair, arguments)
    trainer = _make_trainer(command, inputs, prepared, pair, table, arguments)
    run = run_training(trainer, start.checkpoint)
    compared = None
    if comparison is not None:
        comparison.add_distilled(load_best(run, pair.learner.student))
        trainer.accelerator.wait_for_everyone()  # then rank 0 removes the checkpoints
        compared = comparison.to_dict()
    facts = effective(start, arguments, prepared.length)
    record = _record(command, inputs, prepared, pair, facts)
    return command.save(run, prepared.student.tokenizer, record, compared)


def _plan(command: Command, inputs: Inputs) -> Plan:
    """What `_train` would do: the steps are those of a student with copied weights in place of calibrated ones."""
    arguments = _arguments(command, inputs)
    process = memory_in_use(command.device)
    with tempfile.TemporaryDirectory() as folder:
        calibration = _calibration_data(command.config, inputs)
        student = _student(command, inputs, Path(folder), None)
        prepared = _prepare(command, inputs, student)
        pair = _load_pair(command, inputs, prepared)
        tokenizer = tokenizer_bytes(student.source)
    if student.calibration is not None:  # by the run that is resumed
        calibration = None
    _place_teacher(command, pair, arguments)
    steps = _plan_steps(command, prepared, pair, arguments)
    pair.learner.train()
    teacher = pair.teacher.recorder.model
    sizes = model_sizes(pair.learner.student)
    disk: dict[str, float] = {
        "embedding table": table_bytes(pair.learner.student),
        "tokenizer": tokenizer,
        **_plan_cache(command, inputs, prepared, pair, steps.epochs),
    }
    if calibration is not None:
        disk["calibrated start"] = sizes["bytes"]
    if (export := command.config.export) is not None:
        disk |= {"the exported model": sizes["bytes"], **disk_of_graphs(sizes["bytes"], export)}
    data = [PlannedData.of("--data", inputs.data)]
    if inputs.unlabelled is not None:
        data.append(PlannedData.of("--unlabelled", inputs.unlabelled))
    return command.plan(
        [
            PlannedModel.of("teacher", inputs.teacher.name, model_sizes(teacher)),
            PlannedModel.of("student", student.start, sizes),
        ],
        data,
        command.plan_training(arguments, steps.per_epoch),
        steps.trial,
        memory={
            "the process before": process,
            "teacher": tensor_bytes(teacher) + packed_bytes(teacher, command.device),
            "teacher's targets": held_bytes(pair.teacher, steps.batches),
        },
        disk=disk,
        notes=_notes(command, inputs, calibration),
    )


def _plan_cache(
    command: Command, inputs: Inputs, prepared: _Prepared, pair: Pair, epochs: float
) -> dict[str, float]:
    """The part of the disk that the teacher's targets take.

    Raises:
        OutputError: The disk has no room for them.
    """
    folder = command.output_dir / CHECKPOINTS
    size = cache_bytes(
        command.config.cache_teacher,
        pair.teacher,
        prepared.encoded["train"],
        folder,
        token_logits=inputs.teacher.task == "token",
        epochs=epochs,
    )
    if size is None:
        return {}
    require_room(folder, size)
    return {"teacher's targets": size}


def _notes(
    command: Command, inputs: Inputs, calibration: CalibrationData | None
) -> tuple[str, ...]:
    """What the run does besides training."""
    notes = []
    if calibration is not None:
        notes.append(
            f"It is calibrated first, on {sum(calibration.counts().values()):,} texts and "
            f"{len(calibration.sentences):,} shipped sentences; how long that takes was not measured."
        )
    if inputs.test is not None:
        notes.append(
            f"The models are compared on {len(inputs.test.splits['test']):,} test examples; "
            "how long that takes was not measured."
        )
    return (*notes, *_export_notes(command.config))


def _export_notes(config: DistillConfig) -> tuple[str, ...]:
    if config.export is None:
        return ()
    gated = {"fp16", "int8"} & {*config.export}
    gate = f", which may lose {config.max_drop:g} points" if gated else ""
    return (
        f"The student is exported to ONNX in {' and '.join(config.export)}{gate}; how long that takes was not "
        "measured.",
    )


def _arguments(command: Command, inputs: Inputs) -> TrainingArguments:
    config = command.config
    # Without a term its projection, the head or a pooler may have no part in the loss.
    weighted = all(config.weight(term) > 0 for term in LOSS_TERMS)
    arguments = command.arguments(trains_all=weighted and inputs.teacher.task is not None)
    check_cache_mode(config.cache_teacher)
    if config.shard_teacher:
        require_processes()
    return arguments


def _calibration_data(config: DistillConfig, inputs: Inputs) -> CalibrationData | None:
    """The texts that the student is calibrated on; None if it is not."""
    if inputs.models.student is not None or inputs.models.init != "calibrated":
        return None
    return CalibrationData.sample(
        inputs.data,
        config.calibration_samples,
        max_length=config.max_length,
        copies=config.calibration_copies,
        multilingual=config.calibration_multilingual,
        unlabelled=inputs.unlabelled,
    )


def _student(
    command: Command, inputs: Inputs, folder: Path, calibration: CalibrationData | None
) -> Student:
    """Find the student, or make it in an empty folder; without texts it is not calibrated, but copied."""
    config, models = command.config, inputs.models
    teacher, tokenizer = models.teacher, models.tokenizer
    if models.student is not None:
        return given_student(models.student, teacher, tokenizer, inputs.data.task, config.layer_map)
    if (
        models.init == "calibrated"
        and config.resume
        and last_checkpoint(command.output_dir) is not None
    ):
        kept = kept_calibrated(command.output_dir / CHECKPOINTS / KEPT, teacher, tokenizer)
        if kept is not None:
            return kept
    return make_student(
        teacher,
        models.base or teacher,
        tokenizer,
        shape_of(config),
        models.init,
        folder,
        seed=config.seed,
        calibration=calibration,
        device=command.device,
        progress=command.progress,
    )


def _prepare(command: Command, inputs: Inputs, student: Student) -> _Prepared:
    """Encode the data for the student."""
    teacher, tokenizer, data = inputs.teacher, inputs.models.tokenizer, inputs.data
    if data.task == "token":
        prefix_words(tokenizer)
    labelled = data if teacher.task is not None else replace(data, labels=None)
    teacher_ids = map_tokens(student.tokenizer, tokenizer, data)
    length = fitting_length(command.config.max_length, student.tokenizer, student.source.config)
    encoded = encode_splits(labelled, SPLITS, student.tokenizer, length, student.labels)
    texts = [data.splits["train"].select_columns(["text", "language"])]
    for table in _without_labels(command.config, inputs, student.tokenizer, length):
        bare = replace(data, labels=None, splits={"train": table})
        more = encode_splits(bare, ("train",), student.tokenizer, length, ())["train"]
        encoded["train"] = with_unlabelled(encoded["train"], more)
        texts.append(table)
    return _Prepared(student, concatenate_datasets(texts), encoded, teacher_ids, length)


def _without_labels(
    config: DistillConfig, inputs: Inputs, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Iterator[Dataset]:
    """Text and language of what is trained on without labels: --unlabelled, and shipped sentences."""
    data, unlabelled, recipe = inputs.data, inputs.unlabelled, RECIPES[config.recipe]
    languages = [*data.languages]
    if unlabelled is not None:
        yield unlabelled.splits["train"].select_columns(["text", "language"])
        languages += unlabelled.languages
    share = recipe.multilingual if config.multilingual is None else config.multilingual
    if count := round(share * len(data.splits["train"])):
        table = repeated_sentences(count, tokenizer, max_length, data.task, languages)
        if len(table):
            yield table


def _load_pair(command: Command, inputs: Inputs, prepared: _Prepared) -> Pair:
    """Load both models, the student to the device."""
    config, device = command.config, command.device
    recipe = RECIPES[config.recipe]
    objective = Objective(
        {term: config.weight(term) for term in LOSS_TERMS},
        config.attention_target,
        config.prediction_loss,
        config.temperature,
    )
    set_seed(config.seed)
    return load_pair(
        inputs.teacher,
        prepared.student,
        prepared.encoded,
        prepared.teacher_ids,
        objective,
        device,
        dropout=recipe.dropout if config.dropout is None else config.dropout,
        seed=config.seed,
    )


def _place_teacher(command: Command, pair: Pair, arguments: TrainingArguments) -> None:
    """Move the teacher to the device, or its parts to those of all processes, which must call this together."""
    model = pair.teacher.recorder.model
    if arguments.bf16 and command.device.type == "cuda":
        model.bfloat16()
    (shard if command.config.shard_teacher else to_device)(model, command.device)


def _comparison(command: Command, inputs: Inputs, test: TaskData, student: Student) -> Comparison:
    return Comparison(
        test,
        inputs.data.languages,
        inputs.teacher,
        inputs.models.tokenizer,
        student,
        command.device,
        command.progress,
        max_length=command.config.max_length,
        seed=command.config.seed,
    )


def _plan_steps(
    command: Command,
    prepared: _Prepared,
    pair: Pair,
    arguments: TrainingArguments,
) -> _Steps:
    config, encoded = command.config, prepared.encoded["train"]
    batches = command.batches(arguments, encoded)
    per_epoch = steps_per_epoch(batches, config.gradient_accumulation_steps)
    _schedule(config, arguments, per_epoch, pair.learner.student.config.hidden_size)
    bf16, memory = bool(arguments.bf16), None
    if not config.shard_teacher:  # the processes' forward passes of it are one, and parts differ
        kept = partial(pair.kept_by, bf16=bf16)
        memory = batch_memory(kept, pair.learner, batches, command.device)
    trial = trial_of(pair, encoded, batches, memory=memory, bf16=bf16)
    return _Steps(arguments, batches, per_epoch, trial)


def _make_trainer(
    command: Command,
    inputs: Inputs,
    prepared: _Prepared,
    pair: Pair,
    table: WholeTable,
    arguments: TrainingArguments,
) -> DistillationTrainer:
    config, encoded, teacher = command.config, prepared.encoded, inputs.teacher
    steps = _plan_steps(command, prepared, pair, arguments)
    seconds = steps.trial.seconds(config.gradient_accumulation_steps)
    logger.info("that takes about %s", duration(seconds * arguments.max_steps))
    with arguments.main_process_first(local=False):
        cache = open_cache(
            config.cache_teacher,
            pair.teacher,
            teacher.directory,
            encoded["train"],
            command.output_dir / CHECKPOINTS,
            token_logits=teacher.task == "token",
            epochs=steps.epochs,
        )
    examples = command.examples(pair.learner.student, encoded["train"], pair.collate)
    if config.torch_compile:
        _compile_the_rest(pair, command.device, shards=config.shard_teacher)
    return DistillationTrainer(
        targets=target_loader(pair.teacher, steps.batches, examples, cache),
        texts=prepared.texts,
        weights=pair.learner.objective.weights,
        batches=steps.batches,
        table=table,
        evaluator=_evaluator(command, inputs, prepared, pair),
        output_dir=command.output_dir,
        progress=command.progress,
        what="distill",
        patience=config.early_stopping_patience,
        scores_start=True,
        memory=steps.trial.memory,
        model=pair.learner,
        args=arguments,
        train_dataset=examples,
        eval_dataset=encoded["validation"],
    )


def _compile_the_rest(pair: Pair, device: torch.device, *, shards: bool) -> None:
    """Compile the losses, and the teacher where it runs on the student's batches, which have few shapes."""
    compile_in_place(pair.learner.terms, device)
    if not (execution_on(device).groups_targets or shards):
        compile_in_place(pair.teacher.recorder.model, device)


def _schedule(
    config: DistillConfig, arguments: TrainingArguments, per_epoch: int, width: int
) -> None:
    """Set the number of steps, the warm-up and the learning rate, by the recipe where no option does."""
    recipe = RECIPES[config.recipe]
    if config.max_steps is None and config.num_train_epochs is None:
        arguments.max_steps = recipe.steps(per_epoch)
    elif config.max_steps is None:
        arguments.max_steps = math.ceil(arguments.num_train_epochs * per_epoch)
    if config.warmup_steps is None:
        arguments.warmup_steps = round(recipe.warmup * arguments.max_steps)
    if config.learning_rate is None:
        arguments.learning_rate = recipe.learning_rate_of(width)
    logger.info(
        "%s steps (%.3g epochs), a learning rate of %.3g after %s steps of warm-up",
        f"{arguments.max_steps:,}",
        arguments.max_steps / per_epoch,
        arguments.learning_rate,
        f"{arguments.warmup_steps:,}",
    )


def _evaluator(
    command: Command, inputs: Inputs, prepared: _Prepared, pair: Pair
) -> Evaluator | LossEvaluator:
    """The evaluator of the development set: by its labels if the student is a classifier, else by the loss."""
    encoded, data = prepared.encoded, inputs.data
    if inputs.teacher.task is not None and data.labels is not None:
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
    inputs: Inputs,
    prepared: _Prepared,
    pair: Pair,
    facts: Mapping[str, Any],
) -> Record:
    config, student, teacher, data = command.config, prepared.student, inputs.teacher, inputs.data
    unlabelled = inputs.unlabelled
    # An encoder without a task was only pretrained on its languages: they are unseen for the task.
    languages = {*student.training_languages, *data.languages} if teacher.task else set()
    given = [data, *([] if unlabelled is None else [unlabelled])]
    return record_of(
        "distill",
        config,
        describe_device(command.device),
        [teacher, *student.sources],
        data.reference,
        teacher=teacher.describe(),
        sizes={
            "the teacher": model_sizes(pair.teacher.recorder.model),
            "this model": model_sizes(pair.learner.student),
        },
        student=config.student,
        start=student.start,
        **({} if student.calibration is None else {"calibration": student.calibration}),
        base=teacher.record.base,
        data=data.reference,
        **({} if unlabelled is None else {"unlabelled": unlabelled.reference}),
        multilingual_sentences=len(prepared.texts) - sum(len(one.splits["train"]) for one in given),
        task=teacher.task,
        layers=list(student.layers),
        of_layers=teacher.depth,
        heads=student.heads,
        training_languages=sorted(languages),
        **facts,
    )
