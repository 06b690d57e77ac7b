"""`kdshrink distill`: train a student on its teacher's hidden states, attention and logits, and the labels."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainingArguments, set_seed

from ..calibration.texts import CalibrationData
from ..config.command_line import command_line
from ..config.commands import DistillConfig, ExportConfig
from ..config.fields import LOSS_TERMS
from ..config.recipes import RECIPES, Init
from ..data.batching import Batches, steps_per_epoch
from ..data.encoding import as_words, with_unlabelled
from ..data.labels import read_label_map
from ..data.load import TaskData, load_data
from ..data.registry import Task
from ..data.request import ColumnChoice, DataRequest, Sampling
from ..distillation.cache import require_room
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
from ..distillation.targets import (
    cache_bytes,
    check_cache_mode,
    held_bytes,
    open_cache,
    target_loader,
)
from ..distillation.timing import trial_of
from ..distillation.trainer import DistillationTrainer
from ..distributed import is_first, part, require_processes
from ..errors import (
    DataError,
    Interrupted,
    KdshrinkError,
    Terminated,
    UnlabelledError,
    UsageError,
)
from ..evaluation.evaluator import Evaluator, check_labels
from ..exporting.libraries import require_onnx
from ..models.architectures import can_be, family_of
from ..models.devices import describe_device, to_device
from ..models.embeddings import TABLE, WholeTable, table_bytes
from ..models.loading import (
    fitting_length,
    load_tokenizer,
    model_sizes,
    prefix_words,
    require_task,
)
from ..models.onednn import packed_bytes
from ..models.sharding import shard
from ..models.source import Source, find_classifier, find_model
from ..models.whole import check_whole
from ..output import CHECKPOINTS, LOG
from ..progress import Progress, duration
from ..record import Record, read_record
from ..shrinking.plan import Shape
from ..training.checkpoints import Identity, last_checkpoint
from ..training.result import TrainResult, effective, load_best
from ..training.run import run_training
from ..training.setup import development_evaluator, encode_splits
from ..training.trial import Trial, memory_in_use, tensor_bytes
from .export import (
    ExportResult,
    check_exportable,
    disk_of_graphs,
    holds_export,
    refusal,
    with_export,
    write_export,
)
from .inputs import data_request
from .options import access_of, record_of
from .plan import Plan, PlannedData, PlannedModel, tokenizer_bytes
from .training import TrainingCommand

logger = logging.getLogger(__name__)

_SPLITS = ("train", "validation")
Command = TrainingCommand[DistillConfig]


def distill(config: DistillConfig, progress: Progress | None = None) -> TrainResult:
    """Distil a teacher into a smaller student, which starts as `config.student` or `config.init` says.

    Raises:
        RefusedError: No scheme of int8 passed the gate of --export; the directory holds the student and fp32.
        KdshrinkError: As `errors` lists.
    """
    with Command.open("distill", config, _output_dir(config), progress) as command:
        inputs = _read(command)
        result = command.finished(inputs.identity) or _train(command, inputs)
        if config.export is not None:
            result = _with_graphs(command, inputs, result)
        return command.push(result)


def plan_distill(config: DistillConfig, progress: Progress | None = None) -> Plan:
    """What `distill` would do; its errors before calibrating and training are raised too."""
    command = Command.rehearse("distill", config, _output_dir(config), progress)
    inputs = _read(command)
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
class _Inputs:
    """What a run reads.

    Attributes:
        unlabelled: The texts of --unlabelled.
        test: The test split in all its languages, for --compare.
    """

    models: _Models
    data: TaskData
    unlabelled: TaskData | None
    test: TaskData | None
    identity: Identity

    @property
    def teacher(self) -> Source:
        return self.models.teacher


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


def _read(command: Command) -> _Inputs:
    """Find the models and read the data."""
    config = command.config
    if config.export is not None:
        require_onnx()
    request = data_request(config)
    models = _find_models(config, is_over=command.is_over)
    named = {"teacher": models.teacher, "student": models.student}
    if config.base is not None:
        named["base"] = models.base
    identity = command.identify({role: one for role, one in named.items() if one is not None})
    data = _load_data(config, request, models.teacher)
    if config.export is not None:
        check_exportable(models.teacher)
        if data.labels is None:
            raise UnlabelledError(
                f"--export: {data.name} has no labels, so the predictions of int8 cannot be scored.\n"
                "Leave it out, and export the student with kdshrink export and labelled data."
            )
    unlabelled = _load_unlabelled(config, data.task)
    identity = identity.with_data(
        data.reference, None if unlabelled is None else unlabelled.reference
    )
    compares = _comparing(config) and models.teacher.task is not None and data.labels is not None
    test = _test_data(config) if compares and not command.is_over else None
    return _Inputs(models, data, unlabelled, test, identity)


def _train(command: Command, inputs: _Inputs) -> TrainResult:
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


def _plan(command: Command, inputs: _Inputs) -> Plan:
    """What `_train` would do: the steps are those of a student with copied weights in place of calibrated ones."""
    config, teacher = command.config, inputs.teacher
    arguments = _arguments(command, inputs)
    process = memory_in_use(command.device)
    with tempfile.TemporaryDirectory() as folder:
        calibration = _calibration_data(config, inputs)
        student = _student(command, inputs, Path(folder), None)
        prepared = _prepare(command, inputs, student)
        pair = _load_pair(command, inputs, prepared)
        tokenizer = tokenizer_bytes(student.source)
    _place_teacher(command, pair, arguments)
    steps = _plan_steps(command, prepared, pair, arguments)
    pair.learner.train()
    model, teacher_model = pair.learner.student, pair.teacher.recorder.model
    sizes = model_sizes(model)
    disk: dict[str, float] = {"embedding table": table_bytes(model), "tokenizer": tokenizer}
    notes = []
    if calibration is not None and student.calibration is None:
        disk["calibrated start"] = sizes["bytes"]
        notes.append(
            f"It is calibrated first, on {sum(calibration.counts().values()):,} texts and "
            f"{len(calibration.sentences):,} shipped sentences; how long that takes was not measured."
        )
    checkpoints = command.output_dir / CHECKPOINTS
    cache: dict[str, Any] = {"token_logits": teacher.task == "token", "epochs": steps.epochs}
    encoded = prepared.encoded["train"]
    if cached := cache_bytes(config.cache_teacher, pair.teacher, encoded, checkpoints, **cache):
        require_room(checkpoints, cached)
        disk["teacher's targets"] = cached
    if inputs.test is not None:
        notes.append(
            f"The models are compared on {len(inputs.test.splits['test']):,} test examples; "
            "how long that takes was not measured."
        )
    if config.export is not None:
        disk |= {"the exported model": sizes["bytes"], **disk_of_graphs(sizes["bytes"])}
    data = [PlannedData.of("--data", inputs.data)]
    if inputs.unlabelled is not None:
        data.append(PlannedData.of("--unlabelled", inputs.unlabelled))
    return command.plan(
        [
            PlannedModel.of("teacher", teacher.name, model_sizes(teacher_model)),
            PlannedModel.of("student", student.start, sizes),
        ],
        data,
        command.plan_training(arguments, steps.per_epoch),
        steps.trial,
        memory={
            "the process before": process,
            "teacher": tensor_bytes(teacher_model) + packed_bytes(teacher_model, command.device),
            "teacher's targets": held_bytes(pair.teacher, steps.batches),
        },
        disk=disk,
        notes=(*notes, *_export_notes(config)),
    )


def _export_notes(config: DistillConfig) -> tuple[str, ...]:
    if config.export is None:
        return ()
    precisions = " and ".join(config.export)
    gate = f", which may lose {config.max_drop:g} points" if "int8" in config.export else ""
    return (
        f"The student is exported to ONNX in {precisions}{gate}; how long that takes was not measured.",
    )


def _with_graphs(command: Command, inputs: _Inputs, result: TrainResult) -> TrainResult:
    """Add the student in ONNX to a finished directory, unless it is there as it is wanted now.

    The first process does so alone.

    Raises:
        RefusedError: int8 did not pass the gate.
    """
    part()
    config, output_dir = command.config, command.output_dir
    assert config.export is not None
    if not is_first():
        return result
    source = find_classifier(str(output_dir), access_of(config), {})
    if holds_export(source.record, config.export, config.max_drop):
        assert source.record.export is not None
        return replace(result, export=source.record.export.to_dict())
    wanted = ExportConfig(
        model=str(output_dir),
        data=config.data,
        precision=config.export,
        max_drop=config.max_drop,
        max_length=config.max_length,
    )
    log = output_dir / LOG
    with _student_is_kept(output_dir):
        exported = write_export(
            wanted,
            source,
            replace(inputs.data, whole_file=False),
            output_dir,
            partial(_record_with_graphs, config, source.record),
            command.progress,
            [log] if log.is_file() else [],
        )
    result = replace(result, export=exported.described())
    if not exported.passed:
        raise refusal(exported, str(output_dir), result)
    return result


def _record_with_graphs(config: DistillConfig, record: Record, exported: ExportResult) -> Record:
    """The student's record with its graphs, and with the options and the command that asked for them."""
    options = {"export": config.export, "max_drop": config.max_drop}
    *former, last = record.chain
    last = replace(last, command=command_line("distill", config))
    return with_export(
        replace(record, config={**record.config, **options}, chain=(*former, last)), exported
    )


@contextmanager
def _student_is_kept(output_dir: Path) -> Iterator[None]:
    """Say, where the export fails or is stopped, that the student is there and how to go on."""
    kept = f"{output_dir} holds the distilled student. The same command with --resume exports it"
    try:
        yield
    except Terminated:
        raise Interrupted(f"Stopped by SIGTERM during the export. {kept}.", 143) from None
    except KeyboardInterrupt:
        raise Interrupted(f"Stopped by Ctrl-C during the export. {kept}.", 130) from None
    except KdshrinkError:
        logger.warning("%s again.", kept)
        raise


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
        data_request(config, name="unlabelled", languages=config.unlabelled_languages or ("all",)),
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


def _test_data(config: DistillConfig) -> TaskData:
    """The test split in all its languages.

    Raises:
        DataError: The data is a single file, which has none.
    """
    everything = data_request(config, languages=("all",))
    test = load_data(everything, ("test",), purpose="evaluate", token=config.token)
    if test.whole_file:
        raise DataError(
            f"--compare: {test.name} is a single file, all of which is trained on.\n"
            "Give a directory with a test split, or compare after the run, with kdshrink zero-shot."
        )
    return test


def _arguments(command: Command, inputs: _Inputs) -> TrainingArguments:
    config = command.config
    # Without a term its projection, the head or a pooler may have no part in the loss.
    weighted = all(config.weight(term) > 0 for term in LOSS_TERMS)
    arguments = command.arguments(trains_all=weighted and inputs.teacher.task is not None)
    check_cache_mode(config.cache_teacher)
    if config.shard_teacher:
        require_processes()
    return arguments


def _calibration_data(config: DistillConfig, inputs: _Inputs) -> CalibrationData | None:
    """The texts that the student is calibrated on; None if it is not."""
    if inputs.models.student is not None or inputs.models.init != "calibrated":
        return None
    return CalibrationData.sample(
        inputs.data,
        config.calibration_samples,
        max_length=config.max_length,
        copies=config.calibration_copies,
        multilingual=config.calibration_multilingual,
    )


def _student(
    command: Command, inputs: _Inputs, folder: Path, calibration: CalibrationData | None
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
        Shape(config.layers, config.layer_map, config.hidden_size, config.intermediate_size),
        models.init,
        folder,
        seed=config.seed,
        calibration=calibration,
        device=command.device,
        progress=command.progress,
    )


def _prepare(command: Command, inputs: _Inputs, student: Student) -> _Prepared:
    """Encode the data for the student."""
    teacher, tokenizer, data = inputs.teacher, inputs.models.tokenizer, inputs.data
    if data.task == "token":
        prefix_words(tokenizer)
    labelled = data if teacher.task is not None else replace(data, labels=None)
    teacher_ids = map_tokens(student.tokenizer, tokenizer, data)
    length = fitting_length(command.config.max_length, student.tokenizer, student.source.config)
    encoded = encode_splits(labelled, _SPLITS, student.tokenizer, length, student.labels)
    texts = data.splits["train"].select_columns(["text", "language"])
    if (unlabelled := inputs.unlabelled) is not None:
        more = encode_splits(unlabelled, ("train",), student.tokenizer, length, ())["train"]
        encoded["train"] = with_unlabelled(encoded["train"], more)
        texts = concatenate_datasets(
            [texts, unlabelled.splits["train"].select_columns(["text", "language"])]
        )
    return _Prepared(student, texts, encoded, teacher_ids, length)


def _load_pair(command: Command, inputs: _Inputs, prepared: _Prepared) -> Pair:
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


def _comparing(config: DistillConfig) -> bool:
    if config.compare is None:
        return config.data == "sample" and not config.shard_teacher
    return config.compare


def _comparison(command: Command, inputs: _Inputs, test: TaskData, student: Student) -> Comparison:
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
    bf16 = bool(arguments.bf16)
    trial = trial_of(pair.learner, pair.teacher, encoded, batches, pair.collate, bf16=bf16)
    return _Steps(arguments, batches, per_epoch, trial)


def _make_trainer(
    command: Command,
    inputs: _Inputs,
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
        model=pair.learner,
        args=arguments,
        train_dataset=examples,
        eval_dataset=encoded["validation"],
    )


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
    command: Command, inputs: _Inputs, prepared: _Prepared, pair: Pair
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
    inputs: _Inputs,
    prepared: _Prepared,
    pair: Pair,
    facts: Mapping[str, Any],
) -> Record:
    config, student, teacher, data = command.config, prepared.student, inputs.teacher, inputs.data
    unlabelled = inputs.unlabelled
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
        **facts,
    )
