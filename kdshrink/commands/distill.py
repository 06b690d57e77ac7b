"""`kdshrink distill`: a student learns from its teacher's layers, its logits and the labels."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from transformers import set_seed

from ..config.commands import DistillConfig, input_paths
from ..config.fields import LOSS_TERMS
from ..data.batching import steps_per_epoch
from ..data.labels import read_label_map
from ..data.load import TaskData, load_data
from ..distillation.comparison import Comparison
from ..distillation.loss_evaluator import LossEvaluator
from ..distillation.matching import map_pieces
from ..distillation.pair import load_pair
from ..distillation.student import prepare_student
from ..distillation.targets import TargetSource, open_cache
from ..distillation.trainer import DistillationTrainer
from ..distributed import require_processes
from ..errors import UnlabelledError, UsageError
from ..evaluation.evaluator import Evaluator, check_labels
from ..models.architectures import family_of
from ..models.devices import describe_device, pick_device, to_device
from ..models.loading import fitting_length, load_tokenizer, model_sizes, prefix_words, require_task
from ..models.sharding import shard
from ..models.source import Source, find_model, require_classes, require_plain, require_single_texts
from ..models.whole import check_whole
from ..output import CHECKPOINTS, open_output
from ..progress import Progress, silent
from ..publishing.push import check_push, pushed
from ..publishing.record import make_record
from ..training.checkpoints import Identity, check_resume, start_run
from ..training.result import TrainResult, effective, finished_result, load_best, save_result
from ..training.run import run_training
from ..training.setup import (
    development_evaluator,
    encode_splits,
    plan_batches,
    trained_collator,
    training_arguments,
)
from ..training.trackers import require_trackers


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


def _load_data(config: DistillConfig, source: Source) -> TaskData:
    labelled = config.weight("task") > 0 and source.task is not None
    try:
        return load_data(
            config,
            ("train", "validation"),
            purpose="train",
            labels="required" if labelled else "optional",
            token=config.token,
        )
    except UnlabelledError as error:
        raise UnlabelledError(
            f"{error}\nTo distil without labels, switch off their term: --weight task=0."
        ) from error


def distill(config: DistillConfig, progress: Progress | None = None) -> TrainResult:
    """Distil a teacher into a smaller student of its own weights, of its base's, or of none.

    Raises:
        KdshrinkError: As `errors` lists.
    """
    output_dir = config.output_dir or Path(_default_name(config))
    with open_output(
        output_dir,
        "distill",
        overwrite=config.overwrite,
        resume=config.resume,
        inputs=input_paths(config),
    ):
        return _distill(config, output_dir, progress or silent)


def _distill(config: DistillConfig, output_dir: Path, progress: Progress) -> TrainResult:
    repo_id = check_push(config, output_dir)
    device = pick_device(config.device)
    require_trackers(config.report_to)
    source = find_model(config.teacher, config).renamed(read_label_map(config.label_map))
    require_plain(source)
    require_classes(source)
    require_single_texts(source)
    family_of(source.config, "distilled")
    if config.student is None:
        family_of(source.config, "shrunk")
    _check_terms(config, source)
    check_whole(source, config, source.task)
    tokenizer = load_tokenizer(source, config)
    models = {"teacher": source}
    for role, name in (("student", config.student), ("base", config.base)):
        if name is not None:
            models[role] = find_model(name, config)
    identity = Identity.of("distill", config, models)
    check_resume(output_dir, config, identity)
    data = _load_data(config, source)
    if data.task == "token":
        prefix_words(tokenizer)
    if source.task is not None:
        require_task(source, data.task)
        if data.labels is not None:
            check_labels(data, source)

    identity = identity.with_data(data.source)
    if done := finished_result(output_dir, config, identity):
        return pushed(done, repo_id, config)
    labelled = data if source.task is not None else replace(data, labels=None)
    arguments = training_arguments(config, output_dir, device)
    if config.shard_teacher:
        require_processes()
    with tempfile.TemporaryDirectory() as folder:
        student = prepare_student(config, source, tokenizer, data, Path(folder), progress)
        pieces = map_pieces(student.tokenizer, tokenizer, data)
        length = fitting_length(config.max_length, student.tokenizer, student.source.config)
        encoded = encode_splits(
            labelled, ("train", "validation"), student.tokenizer, length, student.labels
        )
        comparing = config.compare
        if comparing is None:
            comparing = config.data == "sample" and not config.shard_teacher
        comparison = None
        if comparing and labelled.labels is not None:
            comparison = Comparison(config, data, source, tokenizer, student, device, progress)
        with arguments.main_process_first(local=False):
            start = start_run(config, output_dir, identity)
            set_seed(config.seed)
            pair = load_pair(config, source, student, encoded, pieces, output_dir, device)
    teacher_model = pair.teacher.recorder.model
    if arguments.bf16 and device.type == "cuda":
        teacher_model.bfloat16()
    (shard if config.shard_teacher else to_device)(teacher_model, device)
    batches = plan_batches(config, arguments, encoded["train"])
    steps = steps_per_epoch(batches, config.gradient_accumulation_steps)
    epochs = config.num_train_epochs if config.max_steps is None else config.max_steps / steps
    with arguments.main_process_first(local=False):
        cache = open_cache(
            config.cache_teacher,
            pair.teacher,
            source.directory,
            encoded["train"],
            output_dir / CHECKPOINTS,
            token_logits=source.task == "token",
            epochs=epochs,
        )
    evaluator: Evaluator | LossEvaluator
    if labelled.labels is None:
        evaluator = LossEvaluator(
            data.splits["validation"],
            encoded["validation"],
            pair.learner,
            pair.teacher,
            pair.collate,
            2 * config.batch_size,
            device,
        )
    else:
        evaluator = development_evaluator(data, encoded, student.labels, pair.collate, device)
    trainer = DistillationTrainer(
        targets=TargetSource(pair.teacher, encoded["train"], batches, pair.collate, cache),
        texts=data.splits["train"],
        weights={term: config.weight(term) for term in LOSS_TERMS},
        batches=batches,
        table=pair.table,
        evaluator=evaluator,
        output_dir=output_dir,
        progress=progress,
        what="distill",
        patience=config.early_stopping_patience,
        model=pair.learner,
        args=arguments,
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        data_collator=trained_collator(pair.learner.student, pair.collate, batches, config, device),
    )
    run = run_training(trainer, start.checkpoint)
    if comparison is not None:
        comparison.add_distilled(load_best(run, pair.learner.student))
        trainer.accelerator.wait_for_everyone()  # the first one removes the checkpoints next
    record = make_record(
        "distill",
        config,
        describe_device(device),
        [source, *student.sources],
        data.source,
        teacher=source.describe(),
        sizes={
            "the teacher": model_sizes(pair.teacher.recorder.model),
            "this model": model_sizes(pair.learner.student),
        },
        student=config.student,
        start=student.start,
        **({} if student.calibration is None else {"calibration": student.calibration}),
        base=(source.record or {}).get("base"),
        data=data.source,
        task=source.task,
        layers=list(student.layers),
        of_layers=source.depth,
        heads=student.heads,
        # What an encoder without a task saw is pretraining, and leaves a language unseen for any task.
        training_languages=(
            sorted({*student.training_languages, *data.languages}) if source.task else []
        ),
        **effective(start, arguments, length),
    )
    compared = None if comparison is None else comparison.to_dict()
    result = save_result(output_dir, run, student.tokenizer, record, compared)
    return pushed(result, repo_id, config)
