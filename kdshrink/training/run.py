"""Runs a training loop from start to end, or to a signal."""

from __future__ import annotations

import json
import logging
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import Interrupted
from ..evaluation.results import EvalResult
from ..files import disk_errors
from ..models.devices import peak_memory
from ..output import CHECKPOINTS
from .callbacks import Decay, FirstEvaluation, Ticker
from .checkpoints import BEST, BEST_SCORE, last_checkpoint
from .trainer import TermTrainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """The outcome of a training loop, before its result is saved.

    Attributes:
        best_step: The step of the best score on the development set; 0 for the model before training.
    """

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
        TrainingError: The loss is not finite.
    """
    signals = trainer.signals
    trainer.add_callback(signals)
    trainer.add_callback(FirstEvaluation(trainer, of_start=trainer.scores_start))
    trainer.add_callback(Decay())
    trainer.add_callback(Ticker(trainer.progress, trainer.what))
    if trainer.args.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    with signals.caught(), disk_errors(trainer.result_dir):
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    seconds = time.perf_counter() - began
    trainer.check_finite()
    if signals.ending is not None:
        raise Interrupted(
            f"Stopped by {signal.Signals(signals.ending).name} after step "
            f"{trainer.state.global_step}; the last checkpoint is "
            f"{last_checkpoint(trainer.result_dir)}.\nContinue with the same command and --resume.",
            128 + signals.ending,
        )
    scored_steps = [entry["step"] for entry in trainer.state.log_history if "score" in entry]
    if trainer.state.global_step not in scored_steps:
        trainer.evaluate()
    trainer.accelerator.wait_for_everyone()
    best_dir = trainer.result_dir / CHECKPOINTS / BEST
    scored = json.loads((best_dir / BEST_SCORE).read_text())
    if scored["step"] == 0:
        logger.warning(
            "no step of training has a better development score than the model before it, which is kept"
        )
    return Run(
        steps=trainer.state.global_step,
        seconds=seconds,
        examples_per_second=trainer.seen_examples * trainer.args.world_size / seconds,
        peak_memory_bytes=peak_memory(trainer.args.device),
        best_step=scored["step"],
        best_dir=best_dir,
        development=EvalResult.from_dict(scored["development"]),
    )
