"""Callbacks of a training run: signals, an evaluation made up for, weight decay, progress."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..models.embeddings import count_decay
from ..progress import Progress
from ..signals import caught_signals


class Signals(TrainerCallback):
    """Lets a run end after a step when SIGTERM or Ctrl-C comes, with a checkpoint.

    Several processes end after the same step, though the signal may come to one of them alone or to each
    in another step: what each received is summed with the numbers of every step (`words`), and read a step
    later, when no device is waited for any more.

    Attributes:
        received: The signal that came to this process.
    """

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self.received: int | None = None
        self._agreed: int | None = None
        self._sums: Tensor | None = None

    def words(self, device: torch.device) -> Tensor:
        """(2,) to be summed over the processes: whether a signal was received, and its number."""
        number = self.received or 0
        return torch.tensor([float(number > 0), float(number)], device=device)

    def read(self, sums: Tensor) -> None:
        """Learn what the processes agreed on a step before, and keep this step's sums for the next."""
        if self._sums is not None:
            senders, numbers = self._sums.tolist()
            self._agreed = int(numbers / senders) if senders else None
        self._sums = sums

    @property
    def ending(self) -> int | None:
        """The signal that all processes end by."""
        return self.received if self.processes == 1 else self._agreed

    def _receive(self, number: int) -> None:
        self.received = number

    def caught(self) -> AbstractContextManager[None]:
        """Catch the two signals; a second one interrupts at once."""
        return caught_signals(self._receive)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.ending is not None:
            control.should_save = True
            control.should_evaluate = False  # made up for at the next start, see Resumer
            control.should_training_stop = True


class Resumer(TrainerCallback):
    """Makes up for an evaluation that was due when a signal ended the run that is resumed."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        scored = {entry["step"] for entry in state.log_history if "score" in entry}
        due = state.global_step > 0 and state.global_step % (args.eval_steps or 1) == 0
        if due and state.global_step not in scored:
            self.trainer.evaluate()


class DecayCounter(TrainerCallback):
    """Keeps account of the weight decay of embedding rows that are not held."""

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **held: Any
    ) -> None:
        count_decay(held["model"], held["optimizer"])


class Ticker(TrainerCallback):
    """Tells the progress of every step, so that a rate can be shown between two logs."""

    def __init__(self, progress: Progress, what: str) -> None:
        self.progress = progress
        self.what = what

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.is_world_process_zero:
            self.progress(self.what, state.global_step, state.max_steps, {})
