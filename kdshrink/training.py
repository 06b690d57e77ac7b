"""A training run around its loop: arguments, batches, checkpoints, results; and finetune()."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed

from .checkpoints import BEST_SCORE, Identity, Start, check_resume, is_finished, start_run
from .compaction import TABLE, WholeTable, compact_ids, reachable_ids
from .compiling import compile_in_place, length_buckets
from .config.commands import FinetuneConfig, input_paths
from .config.groups import TrainingOptions
from .data.batching import Batches, make_batches, steps_per_epoch
from .data.encoding import Collator, cut_off, encode, in_scheme_of, needs_own_scheme, token_counts
from .data.labels import match_labels, read_label_map
from .data.load import TaskData, load_data
from .distributed import is_first
from .errors import OutputError, UsageError
from .files import read_json, write_text
from .models.devices import describe_device, pick_device, to_device
from .models.loading import (
    fitting_length,
    load_tokenizer,
    load_with_head,
    model_sizes,
    prefix_words,
)
from .models.source import find_model, require_classes, require_plain
from .models.whole import check_whole
from .output import CHECKPOINTS, LOG, RECORD, final_files, name_of, open_output, remove_checkpoints
from .progress import Progress, silent
from .publishing.card import model_card
from .publishing.push import PushResult, check_push, pushed
from .publishing.record import make_record, write_record
from .scoring import EvalResult, Evaluator
from .trackers import require_trackers, tracker_names
from .trainer import Run, TermTrainer, run_training

logger = logging.getLogger(__name__)
_RECORDED = ("steps", "train_seconds", "examples_per_second", "peak_memory_bytes", "best_step")
"""Figures of a TrainResult that a record holds as they are."""


@dataclass(frozen=True)
class TrainResult:
    """What a training run gave; the score is the best checkpoint's on the development set."""

    output_dir: Path
    steps: int
    train_seconds: float
    examples_per_second: float
    peak_memory_bytes: int
    best_step: int
    development: EvalResult
    comparison: Mapping[str, Any] | None = None
    pushed: PushResult | None = None

    def to_dict(self) -> dict[str, Any]:
        """The keys of --json."""
        result = {
            "output_dir": str(self.output_dir),
            "steps": self.steps,
            "train_seconds": round(self.train_seconds, 3),
            "examples_per_second": round(self.examples_per_second, 3),
            "peak_memory_bytes": self.peak_memory_bytes,
            "metric": self.development.metric,
            "score": self.development.score,
            "best_step": self.best_step,
            "per_language": self.development.to_dict()["per_language"],
        }
        if self.comparison is not None:
            result["comparison"] = self.comparison
        if self.pushed is not None:
            result["hub"] = self.pushed.to_dict()
        return result


def training_arguments(
    config: TrainingOptions, output_dir: Path, device: torch.device
) -> TrainingArguments:
    """transformers' own arguments for a run of ours: AdamW, linear schedule, its defaults.

    Raises:
        UsageError: accelerate was told to shard what is trained, or this machine cannot do what is asked.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true"):
        raise UsageError(
            "ACCELERATE_USE_FSDP is set, and what is trained cannot be sharded: checkpoints need it whole.\n"
            "Start with torchrun; --shard-teacher spreads distill's teacher over the processes."
        )
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    try:
        arguments = _transformers_arguments(config, output_dir, device)
    except ValueError as error:  # bfloat16 on a GPU that has none, say
        said = str(error).partition("\n")[0]
        raise UsageError(f"transformers refuses these training options: {said}") from error
    # Several GPUs in one process would mean nn.DataParallel, which cannot return named terms.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _transformers_arguments(
    config: TrainingOptions, output_dir: Path, device: torch.device
) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(output_dir / CHECKPOINTS),
        use_cpu=device.type == "cpu",
        seed=config.seed,
        bf16=(device.type == "cuda") if config.bf16 is None else config.bf16,
        num_train_epochs=config.num_train_epochs,
        max_steps=-1 if config.max_steps is None else config.max_steps,
        learning_rate=config.learning_rate,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        eval_strategy="steps",
        save_strategy="steps",
        logging_steps=config.logging_steps,
        # It would wait for the device at every step; what is not finite is found by other means.
        logging_nan_inf_filter=False,
        save_total_limit=config.save_total_limit,
        report_to=tracker_names(config.report_to),
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        disable_tqdm=True,
    )


def plan_batches(
    config: TrainingOptions, arguments: TrainingArguments, encoded: Dataset
) -> Batches:
    """The run's batches; when to evaluate and to save, each epoch unless said, goes to `arguments`."""
    batches = make_batches(
        token_counts(encoded), config, rank=arguments.process_index, world=arguments.world_size
    )
    logger.info(
        "%d batches an epoch; %.1f %% of their positions are padding",
        len(batches),
        100 * batches.padding().share,
    )
    # An epoch is told in steps: transformers evaluates at an epoch's end after it saved there, so that
    # a run killed in between would resume without that evaluation.
    epoch = steps_per_epoch(batches, config.gradient_accumulation_steps)
    arguments.eval_steps = config.eval_steps or epoch
    arguments.save_steps = config.save_steps or epoch
    return batches


def set_dropout(model: nn.Module, rate: float | None, *, calibrated: bool) -> None:
    """Set all of a model's dropout for its training; its config stays.

    A calibrated model was fitted to inputs of which nothing is dropped, and the first steps with dropout
    take away what that gave.

    Args:
        rate: As --dropout: None for the model's own, or 0 if it is `calibrated`.
    """
    if rate is None and not calibrated:
        return
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate or 0.0


def trained_collator(
    model: PreTrainedModel,
    collate: Collator,
    batches: Batches,
    config: TrainingOptions,
    device: torch.device,
) -> Collator:
    """What makes the batches to train on: of few lengths, where the model is compiled, as it is here."""
    if not config.torch_compile:
        return collate
    compile_in_place(model, device)
    return replace(collate, buckets=length_buckets(batches.lengths))


def finished_result(
    output_dir: Path, config: TrainingOptions, identity: Identity
) -> TrainResult | None:
    """The result of a run that ended, for --resume of a finished directory.

    Raises:
        OutputError: It is of another run, or its record is damaged.
    """
    if not config.resume or not is_finished(output_dir):
        return None
    check_resume(output_dir, config, identity)
    logger.info("%s is finished already: there is nothing to resume", output_dir)
    try:
        results = (read_json(output_dir / RECORD) or {})["results"]
        result = TrainResult(
            output_dir=output_dir,
            development=EvalResult.from_dict(results["development"]),
            comparison=results.get("comparison"),
            **{name: results[name] for name in _RECORDED},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise OutputError(
            f"{output_dir / RECORD} is damaged: it does not tell the results of a training run.\n"
            "Start again with --overwrite in place of --resume."
        ) from error
    if is_first():
        remove_checkpoints(output_dir)
    return result


def save_result(
    output_dir: Path,
    run: Run,
    tokenizer: PreTrainedTokenizerBase,
    record: dict[str, Any],
    comparison: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Move the best model, its tokenizer, card, record and log into output_dir.

    Of several processes the first does so.
    """
    result = TrainResult(
        output_dir=output_dir,
        steps=run.steps,
        train_seconds=run.seconds,
        examples_per_second=run.examples_per_second,
        peak_memory_bytes=run.peak_memory_bytes,
        best_step=run.best_step,
        development=run.development,
        comparison=comparison,
    )
    if not is_first():
        return result
    results = result.to_dict()
    record["results"] = {
        **{name: value for name, value in results.items() if name != "output_dir"},
        "development": run.development.to_dict(),
    }
    with final_files(output_dir) as folder:
        for path in run.best_dir.iterdir():
            if path.name != BEST_SCORE:
                shutil.copy2(path, folder)
        # As it was loaded: whether it was called since is for the cache of encoded texts to decide.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.save_pretrained(folder)
        write_text(folder / "README.md", model_card(name_of(output_dir), record))
        shutil.copy2(output_dir / CHECKPOINTS / LOG, folder)
        write_record(folder, record)
    return result


def effective(start: Start, arguments: TrainingArguments, max_length: int) -> dict[str, Any]:
    """What a record says of how a run went, where its options do not tell."""
    return {
        "max_length": max_length,
        "bf16": bool(arguments.bf16),
        "processes": arguments.world_size,
        **start.describe(),
    }


def load_best(run: Run, like: PreTrainedModel) -> PreTrainedModel:
    """The model of the best score, on the device of the one that was trained."""
    best = type(like).from_pretrained(run.best_dir, dtype=torch.float32)
    return to_device(best, like.device)


def development_evaluator(
    data: TaskData,
    encoded: Mapping[str, Any],
    model_labels: Sequence[str],
    collate: Collator,
    device: torch.device,
) -> Evaluator:
    """What scores the development set during training."""
    assert data.labels is not None
    return Evaluator(
        data.splits["validation"],
        encoded["validation"],
        labels=data.labels,
        model_labels=model_labels,
        task=data.task,
        collate=collate,
        batch_size=None,
        device=device,
        tag_scheme=data.tag_scheme,
    )


def encode_splits(
    data: TaskData,
    splits: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    model_labels: Sequence[str],
) -> dict[str, Any]:
    """Tokenise splits, with labels as the model's ids, in the scheme of the model's tags."""
    tables = {split: data.splits[split] for split in splits}
    ids = None
    if data.labels is not None and needs_own_scheme(data.labels, model_labels):
        tables = {
            split: in_scheme_of(table, data.labels, model_labels) for split, table in tables.items()
        }
        ids = list(range(len(model_labels)))
    elif data.labels is not None:
        ids = match_labels(data.labels, model_labels)
    encoded = {
        split: encode(table, tokenizer, task=data.task, max_length=max_length, label_ids=ids)
        for split, table in tables.items()
    }
    for split, table in encoded.items():
        if cut := int((cut_off(table) > 0).sum()):
            logger.info(
                "%s: %d of %d examples are longer than %d tokens and are cut",
                *(split, cut, len(table), max_length),
            )
    return encoded


def finetune(config: FinetuneConfig, progress: Progress | None = None) -> TrainResult:
    """Fine-tune an encoder as a classifier, on all languages of the data jointly.

    The best checkpoint by the development set's score (macro-F1, or entity F1) is kept.

    Raises:
        KdshrinkError: As `errors` lists.
    """
    output_dir = config.output_dir or Path(
        f"{Path(config.model).name}-{Path(str(config.data)).stem}"
    )
    with open_output(
        output_dir,
        "finetune",
        overwrite=config.overwrite,
        resume=config.resume,
        inputs=input_paths(config),
    ):
        return _finetune(config, output_dir, progress or silent)


def _finetune(config: FinetuneConfig, output_dir: Path, progress: Progress) -> TrainResult:
    repo_id = check_push(config, output_dir)
    device = pick_device(config.device)
    require_trackers(config.report_to)
    source = find_model(config.model, config).renamed(read_label_map(config.label_map))
    require_plain(source)
    require_classes(source)
    tokenizer = load_tokenizer(source, config)
    identity = Identity.of("finetune", config, {"model": source})
    check_resume(output_dir, config, identity)
    data = load_data(config, ("train", "validation"), purpose="train", token=config.token)
    assert data.labels is not None
    identity = identity.with_data(data.source)
    if done := finished_result(output_dir, config, identity):
        return pushed(done, repo_id, config)

    check_whole(source, config, data.task, data.labels)
    if data.task == "token":
        prefix_words(tokenizer)
    own_head = source.task == data.task and sorted(source.labels) == sorted(data.labels)
    labels = source.labels if own_head else data.labels
    length = fitting_length(config.max_length, tokenizer, source.config)
    encoded = encode_splits(data, ("train", "validation"), tokenizer, length, labels)
    kept = reachable_ids(tokenizer, list(encoded.values()), source.vocabulary)
    model = load_with_head(source, config, data.task, labels, config.seed, kept)
    set_dropout(model, config.dropout, calibrated=source.is_calibrated)
    arguments = training_arguments(config, output_dir, device)
    with arguments.main_process_first(local=False):
        start = start_run(config, output_dir, identity)
        table = WholeTable.keep(output_dir / CHECKPOINTS / TABLE, source.directory, model, kept)
    collate = Collator(int(tokenizer.pad_token_id), compact_ids(kept, source.vocabulary))
    set_seed(config.seed)
    batches = plan_batches(config, arguments, encoded["train"])
    trainer = TermTrainer(
        weights={"task": 1.0},
        batches=batches,
        table=table,
        evaluator=development_evaluator(data, encoded, labels, collate, device),
        output_dir=output_dir,
        progress=progress,
        what="finetune",
        patience=config.early_stopping_patience,
        model=model,
        args=arguments,
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        data_collator=trained_collator(model, collate, batches, config, device),
    )
    run = run_training(trainer, start.checkpoint)
    record = make_record(
        "finetune",
        config,
        describe_device(device),
        [source],
        data.source,
        source=source.describe(),
        sizes={"this model": model_sizes(model)},
        base=source.name if source.task is None else (source.record or {}).get("base"),
        data=data.source,
        task=data.task,
        training_languages=sorted({*source.training_languages, *data.languages}),
        **effective(start, arguments, length),
    )
    return pushed(save_result(output_dir, run, tokenizer, record), repo_id, config)
