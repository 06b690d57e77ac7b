"""transformers' Trainer with a loss of named, weighted terms and kdshrink's evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PrinterCallback, Trainer

from ..data.batching import Batches
from ..data.encoding import IGNORED
from ..errors import TrainingError
from ..evaluation.evaluator import Evaluator
from ..evaluation.results import EvalResult
from ..files import atomic_directory, disk_errors, to_json, write_json
from ..models.embeddings import WholeTable
from ..output import CHECKPOINTS, LOG
from ..progress import Progress
from .callbacks import Signals
from .checkpoints import BEST, BEST_SCORE, last_checkpoint
from .losses import task_loss
from .memory import BatchMemory

_MOST_UNREAD = 1024
"""Batches whose terms are kept on the device, at most."""


def _whole(batch: Any) -> Any:
    """What collates the batches of `EncodedArrays`, which come whole."""
    return batch


@contextmanager
def _own_forward(model: nn.Module) -> Iterator[None]:
    """Let a model compute as it will for its users: accelerate's forward, put over its own, is in bfloat16."""
    patched = vars(model).pop("forward", None)
    try:
        yield
    finally:
        if patched is not None:
            model.forward = patched


class TermTrainer(Trainer):
    """A Trainer whose loss is a weighted sum of named terms.

    Subclasses override `loss_terms`. The log has each term's mean over the logged steps. The terms stay on
    the device until the loss is read anyway, or a checkpoint is saved; then a term that was not finite ends
    the run with its first step. Evaluation is kdshrink's own; the model with the best score is kept apart from the
    checkpoints for --resume, with its full embedding table.

    A step over several batches, accumulated or on several devices, has the loss of one batch of all
    their examples: each term is a mean over the units that `term_units` counts, and a batch is weighted
    by its share of them. So has a batch that is computed in parts, since it would not fit on its device.

    Args:
        table: The full embedding table; the trained model has only the rows in use.
        patience: Evaluations in a row without a better score after which training ends, not counting that
            of the model before training; None trains to the end.
        scores_start: Whether the model before training is scored too, and kept if training does not
            better it.
        memory: What a batch keeps; None computes each as a whole.
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
        scores_start: bool,
        memory: BatchMemory | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self.remove_callback(PrinterCallback)
        self.term_weights = dict(weights)
        self.evaluator = evaluator
        self.batches = batches
        self.table = table
        self.result_dir = output_dir
        self.progress = progress
        self.what = what
        self.patience = patience
        self.scores_start = scores_start
        self.memory = memory
        self.signals = Signals(self.args.world_size)
        self._scale = torch.tensor(list(self.term_weights.values()), device=self.args.device)
        self._sums = torch.zeros(len(self.term_weights))
        self._steps = 0
        self._unread: list[tuple[int, Tensor]] = []
        self._first_bad: tuple[int, str] | None = None
        self.seen_examples = 0

    @property
    def trained_model(self) -> PreTrainedModel:
        """The model that is evaluated and saved."""
        return self.accelerator.unwrap_model(self.model)

    def loss_terms(self, model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The terms of a batch's loss, scalars, one for each weight."""
        return {"task": task_loss(model, self.trained_model, inputs)}

    def term_units(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The number of units (such as tokens) that each term of a batch is a mean over, scalars."""
        return {"task": (inputs["labels"] != IGNORED).sum()}

    def get_train_dataloader(self) -> DataLoader[Any]:
        loader = DataLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_sampler=self.batches,
            collate_fn=_whole,
            pin_memory=self.args.dataloader_pin_memory,
        )
        # The sampler gives this process's batches only, so accelerate must not split them.
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
        """The batches of a step, each with the weights of its terms in the step's loss."""
        samples = list(islice(epoch_iterator, num_batches))
        self._steps += 1
        if len(samples) > 1 or self.args.world_size > 1:
            counts = torch.stack([self._unit_counts(batch) for batch in samples])
            own = torch.cat([counts.sum(0), self.signals.message(counts.device)])
            total, message = self.accelerator.reduce(own, "sum").tensor_split([-2])
            self.signals.read(message)
            # DDP averages the gradients of the processes.
            shares = counts * (self.args.world_size / total.clamp_min(1))
            for batch, share in zip(samples, shares, strict=True):
                batch["shares"] = share
        return samples, None

    def _unit_counts(self, batch: dict[str, Tensor]) -> Tensor:
        units = self.term_units(batch)
        return torch.stack([units[name] for name in self.term_weights]).float()

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Trainer's scheduler; what is the same in each step is done here, once."""
        # accelerate's wrapper serves other precisions and devices, and searches for a package at each step.
        if isinstance(self.optimizer, AcceleratedOptimizer):
            self.optimizer = self.optimizer.optimizer
        model: Any = self.model
        model.train()  # and evaluations restore it
        self._trained = list(model.parameters())
        return super().create_scheduler(num_training_steps, optimizer)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Trainer's step for batches that are on the device, and a model in train mode."""
        *parts, last = self._parts(inputs)
        losses = []
        for part in parts:
            with self.accelerator.no_sync(model):
                losses.append(self._backward(model, part))
        losses.append(self._backward(model, last))
        return torch.stack(losses).sum() if parts else losses[0]

    def _backward(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Add the gradient of a batch's loss; gives the loss."""
        loss: Tensor = self.compute_loss(model, inputs)
        loss.backward()
        return loss.detach()

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        """The norm of the gradient, which is scaled down to the largest one."""
        return nn.utils.clip_grad_norm_(self._trained, self.args.max_grad_norm)

    def _parts(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        """A batch in parts that fit on the device, with the weights of their terms in the step's loss."""
        examples, tokens = inputs["input_ids"].shape
        fitting = examples if self.memory is None else self.memory.examples(tokens)
        if examples <= fitting:
            return [inputs]
        count = math.ceil(examples / fitting)
        bounds = [examples * number // count for number in range(count + 1)]
        parts = [self.part(inputs, slice(*ends)) for ends in pairwise(bounds)]
        shares = inputs.get("shares", 1.0) / self._unit_counts(inputs).clamp_min(1)
        for part in parts:
            part["shares"] = self._unit_counts(part) * shares
        return parts

    def part(self, inputs: dict[str, Any], rows: slice) -> dict[str, Any]:
        """These examples of a batch."""
        return {
            name: inputs[name][rows]
            for name in ("input_ids", "attention_mask", "labels")
            if name in inputs
        }

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
        self._unread.append((self.state.global_step + 1, values.detach()))
        if len(self._unread) == _MOST_UNREAD:
            self._read_terms()
        return (values * self._scale).sum()

    def _read_terms(self) -> None:
        """Add what was not read yet to the sums of the terms, and look for the first that is not finite."""
        unread, self._unread = self._unread, []
        if not unread:
            return
        for (step, _), values in zip(
            unread, torch.stack([v for _, v in unread]).cpu(), strict=True
        ):
            self._sums += values
            bad = [n for n, v in zip(self.term_weights, values, strict=True) if not v.isfinite()]
            if bad and self._first_bad is None:
                self._first_bad = step, min(bad)

    def check_finite(self) -> None:
        self._read_terms()
        if self._first_bad is None:
            return
        step, term = self._first_bad
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
        self.check_finite()
        if "loss" in logs and self._steps:
            sums = self.accelerator.reduce(self._sums.clone().to(self.args.device), "mean")
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
                (self.result_dir / CHECKPOINTS / LOG).open("a", encoding="utf-8") as log,
            ):
                log.write(to_json(line) + "\n")
        figures = {str(name): logs[name] for name in ("loss", "score") if name in logs}
        self.progress(self.what, self.state.global_step, self.state.max_steps, figures)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Score the model on the development set, and save it if it is the best so far."""
        self.check_finite()
        model = self.trained_model
        # Its batches have too many shapes to compile.
        with torch.compiler.set_stance("force_eager"), _own_forward(model):
            result = self.evaluator.score(model)
        if not math.isfinite(result.score):
            raise TrainingError(
                f"The development score was not finite at step {self.state.global_step}.\n"
                "Lower --learning-rate, or add --warmup-steps."
            )
        former = {
            entry["step"]: entry["score"] for entry in self.state.log_history if "score" in entry
        }
        self.log(
            {
                "metric": result.metric,  # type: ignore[dict-item]
                "score": result.score,
                "mean_over_languages": result.mean_over_languages,
            }
        )
        if result.score > max(former.values(), default=-math.inf) and self.is_world_process_zero():
            self._keep_best(result)
        if self.patience is not None and self.state.global_step > 0:
            # A good start may lose at first what training brings later.
            trained = [score for step, score in former.items() if step > 0] + [result.score]
            if len(trained) - 1 - trained.index(max(trained)) >= self.patience:
                self.control.should_training_stop = True
        metrics = {"eval_score": result.score}
        # Otherwise the flag stays set, and an epoch's end evaluates once more.
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _keep_best(self, result: EvalResult) -> None:
        with atomic_directory(self.result_dir / CHECKPOINTS / BEST) as folder:
            self.table.save_whole(self.trained_model, folder)
            scored = {"step": self.state.global_step, "development": result.to_dict()}
            write_json(folder / BEST_SCORE, scored)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.check_finite()
        with disk_errors(self.result_dir):
            super()._save_checkpoint(model, trial)
