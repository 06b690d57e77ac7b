"""`kdshrink finetune`: an encoder becomes a classifier."""

from __future__ import annotations

from pathlib import Path

from transformers import set_seed

from ..config.commands import FinetuneConfig, input_paths
from ..data.encoding import Collator
from ..data.labels import read_label_map
from ..data.load import load_data
from ..models.devices import describe_device, pick_device
from ..models.embeddings import TABLE, WholeTable, compact_ids, reachable_ids
from ..models.loading import (
    fitting_length,
    load_tokenizer,
    load_with_head,
    model_sizes,
    prefix_words,
)
from ..models.source import find_model, require_classes, require_plain
from ..models.whole import check_whole
from ..output import CHECKPOINTS, open_output
from ..progress import Progress, silent
from ..publishing.push import check_push, pushed
from ..publishing.record import make_record
from ..training.checkpoints import Identity, check_resume, start_run
from ..training.result import TrainResult, effective, finished_result, save_result
from ..training.run import run_training
from ..training.setup import (
    development_evaluator,
    encode_splits,
    plan_batches,
    set_dropout,
    trained_collator,
    training_arguments,
)
from ..training.trackers import require_trackers
from ..training.trainer import TermTrainer
from .inputs import data_request


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
    request = data_request(config)
    data = load_data(request, ("train", "validation"), purpose="train", token=config.token)
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
