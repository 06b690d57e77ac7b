"""`kdshrink distill`: train a student on its teacher's hidden states, attention and logits, and the labels."""

from __future__ import annotations

import logging
import math
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase, TrainingArguments, set_seed

from ..calibration.texts import CalibrationData
from ..config.commands import DistillConfig
from ..config.fields import LOSS_TERMS
from ..config.recipes import RECIPES, Init
from ..data.batching import steps_per_epoch
from ..data.encoding import as_words, with_unlabelled
from ..data.labels import read_label_map
from ..data.load import TaskData, load_data
from ..data.registry import Task
from ..data.request import ColumnChoice, DataRequest, Sampling
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
from ..distillation.targets import check_cache_mode, open_cache, target_loader
from ..distillation.timing import seconds_per_step
from ..distillation.trainer import DistillationTrainer
from ..distributed import is_first, require_processes
from ..errors import DataError, UnlabelledError, UsageError
from ..evaluation.evaluator import Evaluator, check_labels
from ..models.architectures import can_be, family_of
from ..models.compilation import compile_in_place
from ..models.devices import describe_device, execution_on, to_device
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
from ..training.memory import batch_memory
from ..training.result import TrainResult, effective, load_best
from ..training.run import run_training
from ..training.setup import development_evaluator, encode_splits
from .inputs import data_request
from .options import access_of, record_of
from .training import TrainingCommand

logger = logging.getLogger(__name__)

_SPLITS = ("train", "validation")


def distill(config: DistillConfig, progress: Progress | None = None) -> TrainResult:
    """Distil a teacher into a smaller student, which starts as `config.student` or `config.init` says.

    Raises:
        KdshrinkError: As `errors` lists.
    """
    output_dir = config.output_dir or Path(_default_name(config))
    with TrainingCommand.open("distill", config, output_dir, progress) as command:
        return _distill(command)


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
class _Models:
    """The models that a distillation reads.

    Attributes:
        tokenizer: The teacher's tokenizer.
        init: How the student is initialized; of no use where one is given.
        base: The model that --init from-base copies weights from; None if none is needed.
    """

    teacher: Source
    tokenizer: PreTrainedTokenizerBase
    student: Source | None
    init: Init
    base: Source | None


@dataclass(frozen=True)
class _Prepared:
    """What is ready before the training loop starts.

    Attributes:
        texts: All texts to train on, with and without labels.
        encoded: The splits, tokenised for the student; the unlabelled texts are in the training split.
        length: The maximum number of tokens of a text.
    """

    student: Student
    texts: Dataset
    encoded: dict[str, Any]
    length: int
    comparison: Comparison | None
    start: Start
    pair: Pair


Command = TrainingCommand[DistillConfig]


def _distill(command: Command) -> TrainResult:
    config = command.config
    request = data_request(config)
    models = _find_models(config, is_over=command.is_over)
    teacher = models.teacher
    named = {"teacher": teacher, "student": models.student}
    if config.base is not None:
        named["base"] = models.base
    identity = command.identify({role: one for role, one in named.items() if one is not None})
    data = _load_data(config, request, teacher)
    unlabelled = _load_unlabelled(config, data.task)
    identity = identity.with_data(
        data.reference, None if unlabelled is None else unlabelled.reference
    )
    if done := command.finished(identity):
        return done
    # Without a term its projection, the head or a pooler may have no part in the loss.
    trains_all = teacher.task is not None and all(config.weight(term) > 0 for term in LOSS_TERMS)
    arguments = command.arguments(trains_all=trains_all)
    check_cache_mode(config.cache_teacher)
    if config.shard_teacher:
        require_processes()
    prepared = _prepare(command, models, data, unlabelled, identity, arguments)
    trainer = _make_trainer(command, teacher, data, prepared, arguments)
    run = run_training(trainer, prepared.start.checkpoint)
    compared = None
    if prepared.comparison is not None:
        prepared.comparison.add_distilled(load_best(run, prepared.pair.learner.student))
        trainer.accelerator.wait_for_everyone()  # then rank 0 removes the checkpoints
        compared = prepared.comparison.to_dict()
    record = _record(command, teacher, data, unlabelled, prepared, arguments)
    return command.save(run, prepared.student.tokenizer, record, compared)


def _find_models(config: DistillConfig, *, is_over: bool) -> _Models:
    """Find the models, but not the recorded base of a run that is over: no identity has it."""
    renamed = read_label_map(config.label_map)
    teacher = find_classifier(config.teacher, access_of(config), renamed)
    family_of(teacher.config, "distilled")
    init = config.init or _usual_init(config, teacher)
    if config.student is None:
        family_of(teacher.config, "calibrated" if init == "calibrated" else "shrunk")
    _check_terms(config, teacher)
    check_whole(teacher, teacher.task)
    tokenizer = load_tokenizer(teacher)
    student = base = None
    if config.student is not None:
        student = find_model(config.student, teacher.access).renamed(renamed)
    if config.init == "from-base" and (config.base is not None or not is_over):
        base = find_model(_name_of_base(config, teacher), teacher.access)
        check_base(base, teacher, tokenizer)
    return _Models(teacher, tokenizer, student, init, base)


def _usual_init(config: DistillConfig, teacher: Source) -> Init:
    """What the student is made from where --init does not say: as the recipe has it, if that is possible."""
    init = RECIPES[config.recipe].init
    if init != "calibrated" or config.student is not None:
        return init
    reason = None
    if config.shard_teacher:
        reason = "a teacher that is spread over processes"
    elif not can_be(teacher.config, "calibrated"):
        reason = f"a model of type {teacher.config.get('model_type')!r}"
    if reason is None:
        return init
    logger.warning("%s cannot be calibrated: the student starts as a copy", reason)
    return "from-teacher"


def _check_terms(config: DistillConfig, teacher: Source) -> None:
    possible = LOSS_TERMS if teacher.task else ("embedding", "hidden", "attention")
    if not any(config.weight(term) for term in possible):
        raise UsageError(
            "--weight: every term of the loss that this teacher has targets for has weight 0.\n"
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
    """The training and validation data; labels are required unless the task term has weight 0.

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


def _load_unlabelled(config: DistillConfig, task: Task) -> TaskData | None:
    """The texts of --unlabelled, as words for a token task."""
    if config.unlabelled is None:
        return None
    same = config.unlabelled == config.data
    request = replace(
        data_request(
            config, data=config.unlabelled, languages=config.unlabelled_languages or ("all",)
        ),
        data_dir=config.data_dir if same else None,
        columns=ColumnChoice(text=config.text_column if same else None),
        sampling=Sampling(),
    )
    data = load_data(request, ("train",), purpose="train", labels="unused", token=config.token)
    if data.task == task:
        return data
    if task == "sequence":
        raise DataError(
            f"--unlabelled {config.unlabelled}: its texts are lists of words, and those of --data are not.\n"
            "Give texts as strings."
        )
    return replace(data, task=task, splits={"train": as_words(data.splits["train"])})


def _prepare(
    command: Command,
    models: _Models,
    data: TaskData,
    unlabelled: TaskData | None,
    identity: Identity,
    arguments: TrainingArguments,
) -> _Prepared:
    """Find or make the student, encode the data, and load both models."""
    config, device = command.config, command.device
    recipe = RECIPES[config.recipe]
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
        texts = data.splits["train"].select_columns(["text", "language"])
        if unlabelled is not None:
            more = encode_splits(unlabelled, ("train",), student.tokenizer, length, ())["train"]
            encoded["train"] = with_unlabelled(encoded["train"], more)
            texts = concatenate_datasets(
                [texts, unlabelled.splits["train"].select_columns(["text", "language"])]
            )
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
                dropout=recipe.dropout if config.dropout is None else config.dropout,
                seed=config.seed,
            )
    teacher_model = pair.teacher.recorder.model
    if arguments.bf16 and device.type == "cuda":
        teacher_model.bfloat16()
    (shard if config.shard_teacher else to_device)(teacher_model, device)
    return _Prepared(student, texts, encoded, length, comparison, start, pair)


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
    if models.init == "calibrated":
        if config.resume and last_checkpoint(command.output_dir) is not None:
            kept = kept_calibrated(command.output_dir / CHECKPOINTS / KEPT, teacher, tokenizer)
            if kept is not None:
                return kept
        calibration = CalibrationData.sample(
            data,
            config.calibration_samples,
            max_length=config.max_length,
            copies=config.calibration_copies,
            multilingual=config.calibration_multilingual,
        )
    return make_student(
        teacher,
        models.base or teacher,
        tokenizer,
        Shape(config.layers, config.layer_map, config.hidden_size, config.intermediate_size),
        models.init,
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
    per_epoch = steps_per_epoch(batches, config.gradient_accumulation_steps)
    _schedule(config, arguments, per_epoch, pair.learner.student.config.hidden_size)
    memory = None
    if not config.shard_teacher:  # the processes' forward passes of it are one, and parts differ
        forward = partial(pair.forward, bf16=arguments.bf16)
        memory = batch_memory(forward, pair.learner, batches, command.device)
    seconds = seconds_per_step(
        pair.learner,
        pair.teacher,
        encoded["train"],
        batches,
        pair.collate,
        config.gradient_accumulation_steps,
        memory,
        bf16=arguments.bf16,
    )
    logger.info("that takes about %s", _duration(seconds * arguments.max_steps))
    with arguments.main_process_first(local=False):
        cache = open_cache(
            config.cache_teacher,
            pair.teacher,
            teacher.directory,
            encoded["train"],
            command.output_dir / CHECKPOINTS,
            token_logits=teacher.task == "token",
            epochs=arguments.max_steps / per_epoch,
        )
    examples = command.examples(pair.learner.student, encoded["train"], pair.collate)
    if config.torch_compile:
        _compile_the_rest(pair, command.device, shards=config.shard_teacher)
    return DistillationTrainer(
        targets=target_loader(pair.teacher, batches, examples, cache),
        texts=prepared.texts,
        weights=pair.learner.objective.weights,
        batches=batches,
        table=pair.table,
        evaluator=_evaluator(command, teacher, data, prepared),
        output_dir=command.output_dir,
        progress=command.progress,
        what="distill",
        patience=config.early_stopping_patience,
        memory=memory,
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


def _duration(seconds: float) -> str:
    """Two figures of it, in the largest unit of which there is one."""
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.0f} seconds"


def _evaluator(
    command: Command,
    teacher: Source,
    data: TaskData,
    prepared: _Prepared,
) -> Evaluator | LossEvaluator:
    """The evaluator of the development set: by its labels if the student is a classifier, else by the loss."""
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
    unlabelled: TaskData | None,
    prepared: _Prepared,
    arguments: TrainingArguments,
) -> Record:
    config, student, pair = command.config, prepared.student, prepared.pair
    # An encoder without a task was only pretrained on its languages: they are unseen for the task.
    languages = {*student.training_languages, *data.languages} if teacher.task else set()
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
        task=teacher.task,
        layers=list(student.layers),
        of_layers=teacher.depth,
        heads=student.heads,
        training_languages=sorted(languages),
        **effective(prepared.start, arguments, prepared.length),
    )
