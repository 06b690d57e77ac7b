"""The result of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..evaluation.groups import LanguageGroups
from .bootstrap import CONFIDENCE, RESAMPLES
from .candidates import Candidate
from .latency import Speed
from .memory import Memory
from .scores import ModelScores


@dataclass(frozen=True)
class ComparedModel:
    """All that was found of a model.

    Attributes:
        memory: None where it could not be measured.
    """

    candidate: Candidate
    scores: ModelScores
    speed: Speed
    memory: Memory | None

    def to_dict(self) -> dict[str, Any]:
        memory = {"peak_memory_bytes": None, "model_memory_bytes": None}
        return {
            "backend": self.candidate.backend,
            "file": self.candidate.file,
            "parameters": self.candidate.parameters,
            "bytes": self.candidate.bytes,
            **self.scores.to_dict(),
            **self.speed.to_dict(),
            **(memory if self.memory is None else self.memory.to_dict()),
        }


@dataclass(frozen=True)
class Conditions:
    """What was measured, and on what.

    Attributes:
        groups: Which languages are seen and unseen; None where that is not known.
        groups_from: Where that is known from, such as the baseline's kdshrink.json.
        threads: Of torch and of onnxruntime.
        command: The command line.
    """

    data: str
    split: str
    metric: str
    examples: int
    groups: LanguageGroups | None
    groups_from: str | None
    device: str
    threads: int
    seed: int
    command: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "data": self.data,
            "split": self.split,
            "metric": self.metric,
            "examples": self.examples,
            "seen_languages": None if self.groups is None else list(self.groups.seen),
            "unseen_languages": None if self.groups is None else list(self.groups.unseen),
            "seen_from": self.groups_from,
            "device": self.device,
            "threads": self.threads,
            "seed": self.seed,
            "resamples": RESAMPLES,
            "confidence": CONFIDENCE,
            "command": self.command,
        }


@dataclass(frozen=True)
class CompareResult:
    """The models by their names as given, the baseline among them.

    Attributes:
        files: The report, and the files that belong to it, if one was asked for.
    """

    baseline: str
    models: Mapping[str, ComparedModel]
    conditions: Conditions
    files: Sequence[Path] = ()

    def to_dict(self) -> dict[str, Any]:
        """The keys of --json."""
        return {
            "baseline": self.baseline,
            "models": {name: one.to_dict() for name, one in self.models.items()},
            **self.conditions.to_dict(),
            "report": str(self.files[0]) if self.files else None,
        }
