"""What a command would do: the result of a dry run."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import existing
from ..models.source import Source, tokenizer_files
from ..models.tensors import TensorReader

if TYPE_CHECKING:  # a plain copy imports neither torch nor datasets
    from ..data.load import TaskData


@dataclass(frozen=True)
class PlannedModel:
    """A model that is read or made.

    Attributes:
        role: What it is to the command, such as "teacher".
        bytes: Of its tensors.
    """

    role: str
    name: str
    layers: int
    hidden_size: int
    vocabulary: int
    parameters: int
    bytes: int

    @classmethod
    def of(cls, role: str, name: str, sizes: Mapping[str, int]) -> PlannedModel:
        """One of these `model_sizes`."""
        return cls(role, name, **sizes)

    @classmethod
    def stored(cls, role: str, source: Source) -> PlannedModel:
        """One that is read from its files, with the tensors that are there."""
        with TensorReader(source.directory) as reader:
            specs = [spec for spec in reader.specs.values() if spec.is_floating_point]
        return cls(
            role,
            source.name,
            source.depth,
            source.width,
            source.vocabulary,
            sum(spec.parameters for spec in specs),
            sum(spec.bytes for spec in specs),
        )


@dataclass(frozen=True)
class PlannedData:
    """Data that is read.

    Attributes:
        option: The option that names it.
        examples: The number of examples by split.
    """

    option: str
    name: str
    task: str
    languages: Sequence[str]
    examples: Mapping[str, int]

    @classmethod
    def of(cls, option: str, data: TaskData) -> PlannedData:
        examples = {split: len(table) for split, table in data.splits.items()}
        return cls(option, data.name, data.task, data.languages, examples)


@dataclass(frozen=True)
class PlannedTraining:
    """A training run.

    Attributes:
        steps: Optimizer steps at most, those before `resumed_from` included.
        steps_per_epoch: Of all processes together.
        batch_size: Examples of a batch on each device; None where `tokens_per_batch` says it.
        resumed_from: The step of the checkpoint that it goes on from.
    """

    steps: int
    epochs: float
    steps_per_epoch: int
    batch_size: int | None
    tokens_per_batch: int | None
    gradient_accumulation_steps: int
    processes: int
    learning_rate: float
    warmup_steps: int
    resumed_from: int | None


@dataclass(frozen=True)
class Estimate:
    """An amount that was estimated: bytes, or seconds.

    Attributes:
        of: What it is an estimate of, and what is not in it.
        parts: What it consists of, by name.
        least: What it is at least, as was measured.
    """

    of: str
    parts: Mapping[str, float]
    least: float = 0

    @property
    def total(self) -> float:
        return max(sum(self.parts.values()), self.least)

    def to_dict(self) -> dict[str, Any]:
        return {"total": self.total, "parts": dict(self.parts), "estimate_of": self.of}


@dataclass(frozen=True)
class Plan:
    """What a command would do.

    Attributes:
        output_dir: None where nothing is written.
        memory, disk: Bytes; None where they are not known.
        seconds: How long it takes; None where that is not known.
        runs: The commands that it would run, for `reproduce`.
        notes: What else there is to know, such as what is not known.
    """

    command: str
    output_dir: Path | None
    models: Sequence[PlannedModel] = ()
    data: Sequence[PlannedData] = ()
    training: PlannedTraining | None = None
    memory: Estimate | None = None
    disk: Estimate | None = None
    seconds: Estimate | None = None
    runs: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = field(default=())

    @classmethod
    def nothing(cls, command: str, output_dir: Path, notes: Sequence[str] = ()) -> Plan:
        """The plan of a run whose training --resume finds finished; `notes` tell what is left."""
        done = "It is trained already: there is nothing to resume."
        return cls(command, output_dir, notes=(done, *notes))

    def to_dict(self) -> dict[str, Any]:
        """The keys of --json."""
        free = None
        if self.output_dir is not None:
            free = shutil.disk_usage(existing(self.output_dir)).free
        return {
            "dry_run": True,
            "command": self.command,
            "output_dir": None if self.output_dir is None else str(self.output_dir),
            "models": [asdict(model) for model in self.models],
            "data": [asdict(data) for data in self.data],
            "training": None if self.training is None else asdict(self.training),
            "memory_bytes": None if self.memory is None else self.memory.to_dict(),
            "disk_bytes": None if self.disk is None else {**self.disk.to_dict(), "free": free},
            "seconds": None if self.seconds is None else self.seconds.to_dict(),
            "runs": [dict(run) for run in self.runs],
            "notes": list(self.notes),
        }


def tokenizer_bytes(source: Source) -> int:
    """Bytes of a model's tokenizer files."""
    return sum(path.stat().st_size for path in tokenizer_files(source))
