"""`kdshrink finetune`: train an encoder as a classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from ..config.commands import FinetuneConfig
from ..data.batching import Batches
from ..data.encoding import Collator
from ..data.labels import read_label_map
from ..data.load import TaskData, load_data
from ..models.activations import expanded_mask
from ..models.devices import describe_device, to_device
from ..models.embeddings import TABLE, WholeTable, compact_ids, reachable_ids
from ..models.loading import (
    fitting_length,
    load_tokenizer,
    load_with_head,
    model_sizes,
    prefix_words,
)
from ..models.source import Source, find_model, require_classes, require_plain
from ..models.whole import check_whole
from ..output import CHECKPOINTS
from ..progress import Progress
from ..training.memory import BatchMemory, batch_memory
from ..training.result import TrainResult, effective
from ..training.run import run_training
from ..training.setup import development_evaluator, encode_splits, set_dropout
from ..training.trainer import TermTrainer
from .inputs import data_request
from .options import access_of, record_of
from .training import TrainingCommand

_SPLITS = ("train", "validation")


def finetune(config: FinetuneConfig, progress: Progress | None = None) -> TrainResult:
    """Fine-tune an encoder as a classifier, on all languages of the data jointly.

    The best checkpoint by the development set's score (macro-F1, or entity F1) is kept.

    Raises:
        KdshrinkError: As `errors` lists.
    """
    output_dir = config.output_dir or Path(
        f"{Path(config.model).name}-{Path(str(config.data)).stem}"
    )
    with TrainingCommand.open("finetune", config, output_dir, progress) as command:
        return _finetune(command)


def _finetune(command: TrainingCommand[FinetuneConfig]) -> TrainResult:
    config = command.config
    renamed, request = read_label_map(config.label_map), data_request(config)
    source = find_model(config.model, access_of(config)).renamed(renamed)
    require_plain(source)
    require_classes(source)
    tokenizer = load_tokenizer(source)
    identity = command.identify({"model": source})
    data = load_data(request, _SPLITS, purpose="train", token=config.token)
    assert data.labels is not None
    identity = identity.with_data(data.reference)
    if done := command.finished(identity):
        return done

    check_whole(source, data.task, data.labels)
    if data.task == "token":
        prefix_words(tokenizer)
    own_head = source.task == data.task and sorted(source.labels) == sorted(data.labels)
    labels = source.labels if own_head else data.labels
    length = fitting_length(config.max_length, tokenizer, source.config)
    encoded = encode_splits(data, _SPLITS, tokenizer, length, labels)
    kept = reachable_ids(tokenizer, list(encoded.values()), source.vocabulary)
    model = load_with_head(source, data.task, labels, config.seed, kept)
    set_dropout(model, config.dropout, calibrated=source.is_calibrated)
    arguments = command.arguments()
    with arguments.main_process_first(local=False):
        start = command.start(identity)
        place = command.output_dir / CHECKPOINTS / TABLE
        table = WholeTable.keep(place, source.directory, model, kept)
    collate = Collator(int(tokenizer.pad_token_id), compact_ids(kept, source.vocabulary))
    set_seed(config.seed)
    batches = command.batches(arguments, encoded["train"])
    trainer = TermTrainer(
        weights={"task": 1.0},
        batches=batches,
        table=table,
        evaluator=development_evaluator(data, encoded, labels, collate, command.device),
        output_dir=command.output_dir,
        progress=command.progress,
        what="finetune",
        patience=config.early_stopping_patience,
        memory=_memory(command, model, batches, bf16=arguments.bf16),
        model=model,
        args=arguments,
        train_dataset=command.examples(model, encoded["train"], collate),
        eval_dataset=encoded["validation"],
    )
    run = run_training(trainer, start.checkpoint)
    record = record_of(
        "finetune",
        config,
        describe_device(command.device),
        [source],
        data.reference,
        **_origin(source, data, model),
        **effective(start, arguments, length),
    )
    return command.save(run, tokenizer, record)


def _memory(
    command: TrainingCommand[FinetuneConfig],
    model: PreTrainedModel,
    batches: Batches,
    *,
    bf16: bool,
) -> BatchMemory | None:
    """What the batches keep on the device, to which the model goes for that."""
    to_device(model, command.device)

    def forward(input_ids: Tensor, attention_mask: Tensor) -> list[Tensor]:
        mask = expanded_mask(model, attention_mask)
        with torch.autocast(command.device.type, torch.bfloat16, enabled=bf16):
            return [model(input_ids=input_ids, attention_mask=mask).logits]

    return batch_memory(forward, model, batches, command.device)


def _origin(source: Source, data: TaskData, model: PreTrainedModel) -> dict[str, Any]:
    """The fields of the record about the model and its training data."""
    return {
        "source": source.describe(),
        "sizes": {"this model": model_sizes(model)},
        "base": source.name if source.task is None else source.record.base,
        "data": data.reference,
        "task": data.task,
        "training_languages": sorted({*source.training_languages, *data.languages}),
    }
