"""`kdshrink finetune`: train an encoder as a classifier."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed

from ..config.commands import FinetuneConfig
from ..data.batching import Batches, steps_per_epoch
from ..data.encoding import Collator
from ..data.labels import read_label_map
from ..data.load import TaskData, load_data
from ..models.activations import expanded_mask
from ..models.devices import describe_device, to_device
from ..models.embeddings import TABLE, WholeTable, compact_ids, reachable_ids, table_bytes
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
from ..training.checkpoints import Identity
from ..training.losses import task_loss
from ..training.memory import BatchMemory, batch_memory
from ..training.result import TrainResult, effective
from ..training.run import run_training
from ..training.setup import development_evaluator, encode_splits, set_dropout
from ..training.trainer import TermTrainer
from ..training.trial import Trial, memory_in_use, mixed
from .inputs import data_request
from .options import access_of, record_of
from .plan import Plan, PlannedData, PlannedModel, tokenizer_bytes
from .training import TrainingCommand

_SPLITS = ("train", "validation")
Command = TrainingCommand[FinetuneConfig]


def finetune(config: FinetuneConfig, progress: Progress | None = None) -> TrainResult:
    """Fine-tune an encoder as a classifier, on all languages of the data jointly.

    The best checkpoint by the development set's score (macro-F1, or entity F1) is kept.

    Raises:
        KdshrinkError: As `errors` lists.
    """
    with Command.open("finetune", config, _output_dir(config), progress) as command:
        inputs = _read(command)
        return command.push(command.finished(inputs.identity) or _train(command, inputs))


def plan_finetune(config: FinetuneConfig, progress: Progress | None = None) -> Plan:
    """What `finetune` would do; its errors before training are raised too."""
    command = Command.rehearse("finetune", config, _output_dir(config), progress)
    inputs = _read(command)
    if command.finished(inputs.identity):
        return Plan.nothing(command.name, command.output_dir)
    return _plan(command, inputs)


def _output_dir(config: FinetuneConfig) -> Path:
    return config.output_dir or Path(f"{Path(config.model).name}-{Path(str(config.data)).stem}")


@dataclass(frozen=True)
class _Inputs:
    """What a run reads."""

    source: Source
    tokenizer: PreTrainedTokenizerBase
    data: TaskData
    identity: Identity


@dataclass(frozen=True)
class _Prepared:
    """What is ready before the training loop starts.

    Attributes:
        labels: Names of the model's classes, by id.
        own_head: Whether the model had a head for them.
        length: The maximum number of tokens of a text.
        encoded: The splits, tokenised.
        kept: Ids of the rows of the embedding table that the model holds, (n,).
    """

    labels: tuple[str, ...]
    own_head: bool
    length: int
    encoded: dict[str, Any]
    kept: Tensor
    model: PreTrainedModel
    collate: Collator
    arguments: TrainingArguments
    batches: Batches


def _read(command: Command) -> _Inputs:
    """Find the model and read the data."""
    config = command.config
    renamed, request = read_label_map(config.label_map), data_request(config)
    source = find_model(config.model, access_of(config)).renamed(renamed)
    require_plain(source)
    require_classes(source)
    tokenizer = load_tokenizer(source)
    identity = command.identify({"model": source})
    data = load_data(request, _SPLITS, purpose="train", token=config.token)
    return _Inputs(source, tokenizer, data, identity.with_data(data.reference))


def _prepare(command: Command, inputs: _Inputs) -> _Prepared:
    """Encode the data, and load the model."""
    config, source, tokenizer, data = command.config, inputs.source, inputs.tokenizer, inputs.data
    assert data.labels is not None
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
    collate = Collator(int(tokenizer.pad_token_id), compact_ids(kept, source.vocabulary))
    arguments = command.arguments()
    batches = command.batches(arguments, encoded["train"])
    return _Prepared(labels, own_head, length, encoded, kept, model, collate, arguments, batches)


def _train(command: Command, inputs: _Inputs) -> TrainResult:
    config, source, data = command.config, inputs.source, inputs.data
    ready = _prepare(command, inputs)
    with ready.arguments.main_process_first(local=False):
        start = command.start(inputs.identity)
        place = command.output_dir / CHECKPOINTS / TABLE
        table = WholeTable.keep(place, source.directory, ready.model, ready.kept)
    set_seed(config.seed)
    trainer = TermTrainer(
        weights={"task": 1.0},
        batches=ready.batches,
        table=table,
        evaluator=development_evaluator(
            data, ready.encoded, ready.labels, ready.collate, command.device
        ),
        output_dir=command.output_dir,
        progress=command.progress,
        what="finetune",
        patience=config.early_stopping_patience,
        scores_start=ready.own_head,
        memory=_memory(command, ready),
        model=ready.model,
        args=ready.arguments,
        train_dataset=command.examples(ready.model, ready.encoded["train"], ready.collate),
        eval_dataset=ready.encoded["validation"],
    )
    run = run_training(trainer, start.checkpoint)
    record = record_of(
        "finetune",
        config,
        describe_device(command.device),
        [source],
        data.reference,
        **_origin(source, data, ready.model),
        **effective(start, ready.arguments, ready.length),
    )
    return command.save(run, inputs.tokenizer, record)


def _plan(command: Command, inputs: _Inputs) -> Plan:
    device, source = command.device, inputs.source
    process = memory_in_use(device)
    ready = _prepare(command, inputs)
    model = to_device(ready.model, device).train()
    per_epoch = steps_per_epoch(ready.batches, command.config.gradient_accumulation_steps)

    def loss(batch: dict[str, Tensor]) -> Tensor:
        with mixed(device, bool(ready.arguments.bf16)):
            return task_loss(model, model, batch)

    return command.plan(
        [PlannedModel.of("model", source.name, model_sizes(model))],
        [PlannedData.of("--data", inputs.data)],
        command.plan_training(ready.arguments, per_epoch),
        Trial(
            model,
            loss,
            ready.encoded["train"],
            ready.batches,
            ready.collate,
            device,
            _memory(command, ready),
        ),
        memory={"the process before": process},
        disk={"embedding table": table_bytes(model), "tokenizer": tokenizer_bytes(source)},
    )


def _memory(command: Command, ready: _Prepared) -> BatchMemory | None:
    """What the batches keep on the device, to which the model goes for that."""
    model, device = to_device(ready.model, command.device), command.device

    def forward(input_ids: Tensor, attention_mask: Tensor) -> list[Tensor]:
        mask = expanded_mask(model, attention_mask)
        with mixed(device, bool(ready.arguments.bf16)):
            return [model(input_ids=input_ids, attention_mask=mask).logits]

    return batch_memory(forward, model, ready.batches, device)


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
