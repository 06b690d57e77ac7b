"""Training: transformers' Trainer with a loss of named terms, and finetune()."""

from __future__ import annotations

import json
import logging
import math
import resource
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback

from .batching import Batches, make_batches, steps_per_epoch
from .card import model_card
from .checkpoint import (
    CHECKPOINTS,
    RECORD,
    check_output,
    disk_errors,
    final_files,
    find_model,
    make_record,
    write_json,
)
from .compaction import TABLE, WholeTable, compact_ids, count_decay, reachable_ids
from .config import FinetuneConfig, TrainingOptions
from .data import IGNORED, Collator, TaskData, encode, load_data, match_labels, token_counts
from .errors import Interrupted, TrainingError
from .evaluation import EvalResult, Evaluator
from .hub import PushResult, check_push, pushed
from .loading import (
    describe_device,
    fitting_length,
    load_tokenizer,
    load_with_head,
    model_sizes,
    pick_device,
    to_device,
)
from .losses import task_cross_entropy
from .processes import is_first
from .progress import Progress, silent

logger = logging.getLogger(__name__)

LOG = "train_log.jsonl"
_BEST = "best"
_BEST_SCORE = "score.json"


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


class _Signals(TrainerCallback):
    """Lets a run end after the step under way when SIGTERM or Ctrl-C comes, with a checkpoint."""

    def __init__(self) -> None:
        self.received: int | None = None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Catch the two signals; a second one interrupts at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former = {n: signal.signal(n, self._receive) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.received is not None:
            control.should_save = True
            control.should_evaluate = False  # made up for at the next start, see _Resumer
            control.should_training_stop = True


class _Resumer(TrainerCallback):
    """Makes up for an evaluation that was due when a signal ended the run that is resumed."""

    def __init__(self, trainer: TermTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        scored = {entry["step"] for entry in state.log_history if "score" in entry}
        due = state.global_step > 0 and state.global_step % (args.eval_steps or 1) == 0
        if due and state.global_step not in scored:
            self.trainer.evaluate()


class TermTrainer(Trainer):
    """A Trainer whose loss is a weighted sum of named terms.

    Subclasses override `loss_terms`. The terms' means over the logged steps go to the log; the first
    step at which a term was not finite is noted on the device and read where the run reads the loss
    anyway and before anything is saved. Evaluation is kdshrink's own; the model of the best score is
    kept apart from the checkpoints that a run resumes from, with its whole embedding table.

    A step over several batches, accumulated or on several devices, has the loss of one batch of all
    their examples: each term is a mean over what `term_units` says, and a batch counts by its share.

    Args:
        table: The trained model's embedding table, which it holds a part of.
    """

    def __init__(
        self,
        *,
        weights: Mapping[str, float],
        evaluator: Evaluator,
        batches: Batches,
        table: WholeTable,
        output_dir: Path,
        progress: Progress,
        what: str,
        patience: int | None,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self.remove_callback(PrinterCallback)
        self.loss_is_scaled_for_ga = True
        self.term_weights = dict(weights)
        self.evaluator = evaluator
        self.batches = batches
        self.table = table
        self.result_dir = output_dir
        self.progress = progress
        self.what = what
        self.patience = patience
        terms = len(self.term_weights)
        self._sums = torch.zeros(terms, device=self.args.device)
        self._scale = torch.tensor(list(self.term_weights.values()), device=self.args.device)
        self._steps = 0
        self._first_bad = torch.full((terms,), -1, dtype=torch.int64, device=self.args.device)
        self.seen_examples = 0

    @property
    def trained_model(self) -> PreTrainedModel:
        """The model that evaluation scores and the result holds."""
        return self.accelerator.unwrap_model(self.model)

    def loss_terms(self, model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The terms of the loss of a batch, scalars, one for each of the weights."""
        labels = inputs.pop("labels")
        return {"task": task_cross_entropy(model(**inputs).logits, labels).mean}

    def term_units(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """How many things each term of a batch is a mean over, scalars."""
        return {"task": (inputs["labels"] != IGNORED).sum()}

    def get_train_dataloader(self) -> DataLoader[Any]:
        loader = DataLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        # The batches are this process's own already.
        return prepare_data_loader(
            loader,
            self.args.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            non_blocking=True,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The batches of a step, each with its terms' shares in the step's loss."""
        samples = list(islice(epoch_iterator, num_batches))
        self._steps += 1
        if len(samples) > 1 or self.args.world_size > 1:
            counts = torch.stack([self._unit_counts(batch) for batch in samples])
            total = self.accelerator.reduce(counts.sum(0), "sum").clamp_min(1)
            # Gradients of several processes are averaged.
            shares = counts * (self.args.world_size / total)
            for batch, share in zip(samples, shares, strict=True):
                batch["shares"] = share
        return samples, None

    def _unit_counts(self, batch: dict[str, Tensor]) -> Tensor:
        units = self.term_units(batch)
        return torch.stack([units[name] for name in self.term_weights]).float()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        self.seen_examples += len(inputs["input_ids"])
        shares = inputs.pop("shares", None)
        terms = self.loss_terms(model, inputs)
        values = torch.stack([terms[name].float() for name in self.term_weights])
        if shares is not None:
            values = values * shares
        with torch.no_grad():
            self._sums += values
            step = self.state.global_step + 1
            newly_bad = ~torch.isfinite(values) & (self._first_bad < 0)
            self._first_bad.masked_fill_(newly_bad, step)
        return (values * self._scale).sum()

    def _check_finite(self) -> None:
        first_bad = self._first_bad.tolist()
        if max(first_bad) < 0:
            return
        step, term = min(
            (s, t) for s, t in zip(first_bad, self.term_weights, strict=True) if s >= 0
        )
        last = last_checkpoint(self.result_dir)
        kept = (
            f"The last good checkpoint is {last}." if last else "There is no checkpoint before it."
        )
        advice = "Lower --learning-rate, add --warmup-steps" + (
            ", or train without --bf16." if self.args.bf16 else "."
        )
        raise TrainingError(
            f"The {term} term of the loss was not finite at step {step}.\n{kept}\n{advice}"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self._check_finite()
        if "loss" in logs and self._steps:
            sums = self.accelerator.reduce(self._sums.clone(), "mean")
            means = (sums / self._steps).tolist()
            logs = {**logs, **dict(zip(self.term_weights, means, strict=True))}
            self._sums.zero_()
            self._steps = 0
        if self.state.epoch is not None:
            logs["epoch"] = self.state.epoch
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)
        if not self.is_world_process_zero():
            return
        kept = ("loss", "grad_norm", "learning_rate", "metric", "score", "mean_over_languages")
        names = [*kept, *self.term_weights]
        line = {"step": self.state.global_step, "epoch": self.state.epoch}
        line |= {name: logs[name] for name in names if name in logs}
        if "loss" in line or "score" in line:
            with (
                disk_errors(self.result_dir),
                (self.result_dir / CHECKPOINTS / LOG).open("a") as log,
            ):
                log.write(json.dumps(line) + "\n")
        figures = {str(name): logs[name] for name in ("loss", "score") if name in logs}
        self.progress(self.what, self.state.global_step, self.state.max_steps, figures)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Score the model on the development set, and keep it if it is the best so far."""
        self._check_finite()
        result = self.evaluator.score(self.trained_model)
        former = [entry["score"] for entry in self.state.log_history if "score" in entry]
        self.log(
            {
                "metric": result.metric,  # type: ignore[dict-item]
                "score": result.score,
                "mean_over_languages": result.mean_over_languages,
            }
        )
        if result.score > max(former, default=-math.inf) and self.is_world_process_zero():
            self._keep_best(result)
        scores = [*former, result.score]
        if (
            self.patience is not None
            and len(scores) - 1 - scores.index(max(scores)) >= self.patience
        ):
            self.control.should_training_stop = True
        metrics = {"eval_score": result.score}
        # Without this the control flags go on asking, and an epoch's end evaluates once more.
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _keep_best(self, result: EvalResult) -> None:
        best = self.result_dir / CHECKPOINTS / _BEST
        staging = best.with_suffix(".part")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        with disk_errors(staging):
            self.table.save_whole(self.trained_model, staging)
            scored = {"step": self.state.global_step, "development": result.to_dict()}
            write_json(staging / _BEST_SCORE, scored)
        shutil.rmtree(best, ignore_errors=True)
        staging.rename(best)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._check_finite()
        with disk_errors(self.result_dir):
            super()._save_checkpoint(model, trial)


class _DecayCounter(TrainerCallback):
    """Keeps account of the weight decay of embedding rows that are not held."""

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **held: Any
    ) -> None:
        count_decay(held["model"], held["optimizer"])


class _Ticker(TrainerCallback):
    """Tells the progress of every step, so that a rate can be shown between two logs."""

    def __init__(self, progress: Progress, what: str) -> None:
        self.progress = progress
        self.what = what

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.is_world_process_zero:
            self.progress(self.what, state.global_step, state.max_steps, {})


def last_checkpoint(output_dir: Path) -> Path | None:
    """The newest checkpoint that was written to its end: trainer_state.json comes last in one."""
    found = []
    for path in (output_dir / CHECKPOINTS).glob("checkpoint-*"):
        try:
            json.loads((path / "trainer_state.json").read_text())
            found.append((int(path.name.split("-")[1]), path))
        except (OSError, ValueError):
            continue
    return max(found)[1] if found else None


def training_arguments(
    config: TrainingOptions, output_dir: Path, device: torch.device
) -> TrainingArguments:
    """transformers' own arguments for a run of ours: AdamW, linear schedule, its defaults."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    arguments = TrainingArguments(
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
        report_to=config.report_to,
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        disable_tqdm=True,
    )
    # Several GPUs in one process would mean nn.DataParallel, which cannot return named terms.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


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


def start_run(config: TrainingOptions, output_dir: Path) -> Path | None:
    """Make the place for checkpoints and find the one to resume from.

    A fresh run clears the checkpoints of an older one.
    """
    checkpoints = output_dir / CHECKPOINTS
    last = last_checkpoint(output_dir) if config.resume else None
    if not is_first():
        return last
    if last is None:
        shutil.rmtree(checkpoints, ignore_errors=True)
    checkpoints.mkdir(parents=True, exist_ok=True)
    _cut_log(checkpoints / LOG, last)
    return last


def _cut_log(log: Path, last: Path | None) -> None:
    """Drop the lines behind the checkpoint: those steps are done again."""
    if last is None or not log.exists():
        return
    step = int(last.name.split("-")[1])
    lines = [line for line in log.read_text().splitlines() if json.loads(line)["step"] <= step]
    log.write_text("".join(line + "\n" for line in lines))


def finished_result(output_dir: Path, config: Any) -> TrainResult | None:
    """The result of a run that ended, for --resume of a finished directory."""
    record = output_dir / RECORD
    if not (config.resume and (output_dir / "config.json").exists() and record.exists()):
        return None
    results = json.loads(record.read_text())["results"]
    logger.info("%s is finished already: there is nothing to resume", output_dir)
    development = EvalResult.from_dict(results["development"])
    return TrainResult(
        output_dir=output_dir,
        development=development,
        comparison=results.get("comparison"),
        **{
            name: results[name]
            for name in (
                "steps",
                "train_seconds",
                "examples_per_second",
                "peak_memory_bytes",
                "best_step",
            )
        },
    )


@dataclass(frozen=True)
class Run:
    """What a training loop did, before its result is saved."""

    steps: int
    seconds: float
    examples_per_second: float
    peak_memory_bytes: int
    best_step: int
    best_dir: Path
    development: EvalResult


def run_training(trainer: TermTrainer, resume_from: Path | None) -> Run:
    """Train to the end and leave the best model in checkpoints/best.

    Raises:
        Interrupted: A signal came; a checkpoint was saved.
        TrainingError: The loss was not finite.
    """
    signals = _Signals()
    trainer.add_callback(signals)
    trainer.add_callback(_Resumer(trainer))
    trainer.add_callback(_DecayCounter())
    trainer.add_callback(_Ticker(trainer.progress, trainer.what))
    if trainer.args.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    with signals.caught(), disk_errors(trainer.result_dir):
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    seconds = time.perf_counter() - began
    trainer._check_finite()
    if signals.received is not None:
        raise Interrupted(
            f"Stopped by {signal.Signals(signals.received).name} after step "
            f"{trainer.state.global_step}; the last checkpoint is "
            f"{last_checkpoint(trainer.result_dir)}.\nGo on with the same command and --resume.",
            128 + signals.received,
        )
    scored_steps = [entry["step"] for entry in trainer.state.log_history if "score" in entry]
    if trainer.state.global_step not in scored_steps:
        trainer.evaluate()
    trainer.accelerator.wait_for_everyone()
    best_dir = trainer.result_dir / CHECKPOINTS / _BEST
    scored = json.loads((best_dir / _BEST_SCORE).read_text())
    return Run(
        steps=trainer.state.global_step,
        seconds=seconds,
        examples_per_second=trainer.seen_examples * trainer.args.world_size / seconds,
        peak_memory_bytes=peak_memory(trainer.args.device),
        best_step=scored["step"],
        best_dir=best_dir,
        development=EvalResult.from_dict(scored["development"]),
    )


def peak_memory(device: torch.device) -> int:
    """Bytes: on CUDA the allocator's peak, else the process's peak resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


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
            if path.name != _BEST_SCORE:
                shutil.copy2(path, folder)
        # As it was loaded: whether it was called since is for the cache of encoded texts to decide.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.save_pretrained(folder)
        write_json(folder / RECORD, record)
        (folder / "README.md").write_text(
            model_card(output_dir.absolute().name, record), encoding="utf-8"
        )
        shutil.copy2(output_dir / CHECKPOINTS / LOG, folder)
    shutil.rmtree(output_dir / CHECKPOINTS)
    return result


def load_best(run: Run, like: PreTrainedModel) -> PreTrainedModel:
    """The model of the best score, on the device of the one that was trained."""
    best = type(like).from_pretrained(run.best_dir, dtype=torch.float32)
    return to_device(best, like.device)


def development_evaluator(
    data: TaskData,
    encoded: Mapping[str, Any],
    model_labels: Sequence[str],
    collate: Collator,
    config: TrainingOptions,
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
        batch_size=2 * config.batch_size,
        device=device,
    )


def encode_splits(
    data: TaskData,
    splits: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    model_labels: Sequence[str],
) -> dict[str, Any]:
    """Tokenise splits, with labels as the model's ids."""
    ids = None if data.labels is None else match_labels(data.labels, model_labels)
    return {
        split: encode(
            data.splits[split], tokenizer, task=data.task, max_length=max_length, label_ids=ids
        )
        for split in splits
    }


def finetune(config: FinetuneConfig, progress: Progress | None = None) -> TrainResult:
    """Fine-tune an encoder as a classifier, on all languages of the data jointly.

    The best checkpoint by the development set's score (macro-F1, or entity F1) is kept.

    Raises:
        KdshrinkError: As `errors` lists.
    """
    output_dir = config.output_dir or Path(
        f"{Path(config.model).name}-{Path(str(config.data)).stem}"
    )
    if is_first():
        check_output(output_dir, overwrite=config.overwrite, resume=config.resume)
    repo_id = check_push(config, output_dir)
    if done := finished_result(output_dir, config):
        return pushed(done, repo_id, config)
    device = pick_device(config.device)
    source = find_model(config.model, config)
    tokenizer = load_tokenizer(source, config)
    data = load_data(config, ("train", "validation"), purpose="train", token=config.token)
    assert data.labels is not None

    own_head = source.task == data.task and sorted(source.labels) == sorted(data.labels)
    labels = source.labels if own_head else data.labels
    length = fitting_length(config.max_length, tokenizer, source.config)
    encoded = encode_splits(data, ("train", "validation"), tokenizer, length, labels)
    kept = reachable_ids(tokenizer, list(encoded.values()), source.config["vocab_size"])
    model = load_with_head(source, config, data.task, labels, config.seed, kept)
    arguments = training_arguments(config, output_dir, device)
    with arguments.main_process_first(local=False):
        resume_from = start_run(config, output_dir)
        table = WholeTable.keep(output_dir / CHECKPOINTS / TABLE, source.directory, model, kept)
    collate = Collator(int(tokenizer.pad_token_id), compact_ids(kept, source.config["vocab_size"]))
    set_seed(config.seed)
    trainer = TermTrainer(
        weights={"task": 1.0},
        batches=plan_batches(config, arguments, encoded["train"]),
        table=table,
        evaluator=development_evaluator(data, encoded, labels, collate, config, device),
        output_dir=output_dir,
        progress=progress or silent,
        what="finetune",
        patience=config.early_stopping_patience,
        model=model,
        args=arguments,
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        data_collator=collate,
    )
    run = run_training(trainer, resume_from)
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
    )
    return pushed(save_result(output_dir, run, tokenizer, record), repo_id, config)
