"""The result of a training run, and how it is saved."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from ..distributed import is_first
from ..errors import OutputError
from ..evaluation.results import EvalResult
from ..files import write_text
from ..models.devices import to_device
from ..output import CHECKPOINTS, LOG, final_files, name_of
from ..publishing.card import model_card
from ..publishing.push import PushResult
from ..publishing.record import write_record
from ..record import RECORD, Record, Results, read_record
from .checkpoints import BEST_SCORE, Start, is_finished
from .run import Run

_RECORDED = ("steps", "train_seconds", "examples_per_second", "peak_memory_bytes", "best_step")
"""The fields of a TrainResult that a record has under the same names."""


@dataclass(frozen=True)
class TrainResult:
    """The result of a training run; the score is that of the best checkpoint on the development set."""

    output_dir: Path
    steps: int
    train_seconds: float
    examples_per_second: float
    peak_memory_bytes: int
    best_step: int
    development: EvalResult
    comparison: Mapping[str, Any] | None = None
    export: Mapping[str, Any] | None = None
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
        if self.export is not None:
            result["export"] = self.export
        if self.pushed is not None:
            result["hub"] = self.pushed.to_dict()
        return result


def finished_result(output_dir: Path) -> TrainResult | None:
    """The result of a finished run, for --resume; None if the run is not finished.

    Raises:
        OutputError: Its record is damaged.
    """
    if not is_finished(output_dir):
        return None
    result = _recorded_result(output_dir)
    if result is None:
        raise OutputError(
            f"{output_dir / RECORD} is damaged: it lacks the results of a training run.\n"
            "Start anew with --overwrite instead of --resume."
        )
    return result


def _recorded_result(output_dir: Path) -> TrainResult | None:
    """The result in a directory's record; None if it is not there."""
    record = read_record(output_dir) or Record()
    results = record.results or Results()
    figures: dict[str, Any] = {name: getattr(results, name) for name in _RECORDED}
    if results.development is None or None in figures.values():
        return None
    try:
        development = EvalResult.from_dict(results.development.to_dict())
    except (KeyError, TypeError):
        return None
    return TrainResult(
        output_dir=output_dir,
        development=development,
        comparison=None if results.comparison is None else results.comparison.to_dict(),
        **figures,
    )


def save_result(
    output_dir: Path,
    run: Run,
    tokenizer: PreTrainedTokenizerBase,
    record: Record,
    comparison: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Move the best model, its tokenizer, card, record and log into output_dir.

    In a distributed run only the first process does so.
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
    del results["output_dir"]
    record = replace(
        record,
        results=Results.from_dict({**results, "development": run.development.to_dict()}),
    )
    with final_files(output_dir) as folder:
        for path in run.best_dir.iterdir():
            if path.name != BEST_SCORE:
                shutil.copy2(path, folder)
        # As it was loaded: calls since then may have changed it, depending on what the cache held.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.save_pretrained(folder)
        write_text(folder / "README.md", model_card(name_of(output_dir), record.to_dict()))
        shutil.copy2(output_dir / CHECKPOINTS / LOG, folder)
        write_record(folder, record)
    return result


def effective(start: Start, arguments: TrainingArguments, max_length: int) -> dict[str, Any]:
    """The fields of a record on how a run went that its options do not determine."""
    return {
        "max_length": max_length,
        "bf16": bool(arguments.bf16),
        "processes": arguments.world_size,
        **start.describe(),
    }


def load_best(run: Run, like: PreTrainedModel) -> PreTrainedModel:
    """Load the model with the best score, to the device of the trained model."""
    best = type(like).from_pretrained(run.best_dir, dtype=torch.float32)
    return to_device(best, like.device)
