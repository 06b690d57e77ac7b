"""Callbacks of a training run: signals, evaluation before the first step, weight decay, progress."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..models.devices import HostCopies, to_device_soon
from ..models.embeddings import DecayCounter
from ..progress import Progress
from ..signals import caught_signals


class Signals(TrainerCallback):
    """Ends a run with a checkpoint, after the current step, on SIGTERM or Ctrl-C.

    The processes of a distributed run end after the same step, even if only one got the signal or each in
    another step: the received signals are summed with the counts of every step (`message`), and the sum
    is read one step later, when the device has computed it.

    Attributes:
        received: The signal that this process received.
    """

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self.received: int | None = None
        self._agreed: int | None = None
        self._sums: HostCopies | None = None

    def message(self, device: torch.device) -> Tensor:
        """(2,) whether a signal was received, and its number; to be summed over the processes."""
        number = self.received or 0
        return to_device_soon(torch.tensor([float(number > 0), float(number)]), device)

    def read(self, sums: Tensor) -> None:
        """Read the sums of the step before, and keep this step's sums for the next."""
        if self._sums is not None:
            senders, numbers = self._sums.read()[0].tolist()
            self._agreed = int(numbers / senders) if senders else None
        self._sums = HostCopies([sums])

    @property
    def ending(self) -> int | None:
        """The signal on which all processes end."""
        return self.received if self.processes == 1 else self._agreed

    def _receive(self, number: int) -> None:
        self.received = number

    def caught(self) -> AbstractContextManager[None]:
        """Catch SIGINT and SIGTERM; a second signal interrupts at once."""
        return caught_signals(self._receive)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.ending is not None:
            control.should_save = True
            control.should_evaluate = False  # FirstEvaluation does it when the run is resumed
            control.should_training_stop = True


class FirstEvaluation(TrainerCallback):
    """Does the evaluation that is due before the first step of a session.

    It is that of the model before training, or the one that was due when a signal ended the run that is
    resumed.

    Args:
        of_start: Whether the model before training is scored.
    """

    def __init__(self, trainer: Trainer, *, of_start: bool) -> None:
        self.trainer = trainer
        self.of_start = of_start

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        scored = {entry["step"] for entry in state.log_history if "score" in entry}
        step = state.global_step
        due = step % (args.eval_steps or 1) == 0 if step > 0 else self.of_start
        if due and step not in scored:
            self.trainer.evaluate()


class Decay(TrainerCallback):
    """Counts the weight decay of the embedding rows that the compacted table leaves out."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **held: Any
    ) -> None:
        self._counter = DecayCounter(held["model"], held["optimizer"])

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._counter.count()


class Ticker(TrainerCallback):
    """Reports the progress at every step, so that a rate can be shown between logs."""

    def __init__(self, progress: Progress, what: str) -> None:
        self.progress = progress
        self.what = what

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.is_world_process_zero:
            self.progress(self.what, state.global_step, state.max_steps, {})
