"""A training run before its loop: arguments, batches, dropout, encoded splits, evaluation."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from ..config.groups import TrainingOptions
from ..data.batching import Batches, make_batches, steps_per_epoch
from ..data.encoding import Collator, cut_off, encode, in_scheme_of, needs_own_scheme, token_counts
from ..data.labels import match_labels
from ..data.load import TaskData
from ..errors import UsageError
from ..evaluation.evaluator import Evaluator
from ..models.compilation import compile_in_place, length_buckets
from ..output import CHECKPOINTS
from .trackers import tracker_names

logger = logging.getLogger(__name__)


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
    _use_one_gpu(arguments)
    return arguments


def _use_one_gpu(arguments: TrainingArguments) -> None:
    """Keep transformers from nn.DataParallel over this process's GPUs: it cannot return named terms."""
    arguments._n_gpu = min(arguments.n_gpu, 1)


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
