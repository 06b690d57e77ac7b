"""A plan: a graph of kdshrink runs, each named by a hash of what determines its result."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .. import __version__

_TRAINING = ("finetune", "distill")
_SCORING = ("eval", "zero-shot")


@dataclass(frozen=True)
class Run:
    """A kdshrink command that writes one directory.

    Attributes:
        label: A readable description, the first part of its name.
        command: `finetune`, `shrink`, `distill`, `eval` or `zero-shot`.
        arguments: Its arguments, without -o. A `Run` is replaced by its directory. A `Path` is not part of
            the name, since `facts` identify its content.
        facts: Fingerprints or revisions of the data and models that it reads, except those of other runs.
    """

    label: str
    command: str
    arguments: Words
    facts: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[Run, ...]:
        return tuple(argument for argument in self.arguments if isinstance(argument, Run))

    @property
    def makes_model(self) -> bool:
        return self.command not in _SCORING

    @property
    def trains(self) -> bool:
        return self.command in _TRAINING

    @cached_property
    def name(self) -> str:
        """The name of its directory: its label, and a hash of all that determines its result."""
        words = [
            {"run": argument.name}
            if isinstance(argument, Run)
            else {"path": True}
            if isinstance(argument, Path)
            else argument
            for argument in self.arguments
        ]
        decisive = json.dumps([self.command, words, self.facts, __version__])
        return f"{self.label}-{hashlib.sha256(decisive.encode()).hexdigest()[:10]}"

    def words(self, folder: Path, extra: Sequence[str] = ()) -> list[str]:
        """The command line after `kdshrink`; running it again resumes the run, or repeats it."""
        typed = [
            str(folder / argument.name) if isinstance(argument, Run) else str(argument)
            for argument in self.arguments
        ]
        again = "--resume" if self.trains else "--overwrite"
        return [self.command, *typed, *extra, "-o", str(folder / self.name), again]

    def is_finished(self, folder: Path) -> bool:
        """Whether its directory holds a complete result: the file that is written last."""
        last = "config.json" if self.makes_model else "kdshrink.json"
        return (folder / self.name / last).is_file()


Words = tuple[str | Path | Run, ...]


@dataclass(frozen=True)
class Plan:
    """Runs, each once and after those that it needs.

    Attributes:
        folder: The directory of their directories.
        extra: Arguments for every command that do not change its result, such as --device.
    """

    runs: tuple[Run, ...]
    folder: Path
    extra: tuple[str, ...] = ()

    @classmethod
    def of(cls, wanted: Iterable[Run], folder: Path, extra: tuple[str, ...] = ()) -> Plan:
        """The plan of the wanted runs and those that they need.

        graphlib is not used because it orders by levels: here a wanted run directly follows its inputs, so
        that the first results are there before the last teacher is trained.
        """
        ordered: dict[str, Run] = {}
        for run in wanted:
            for needed in _with_inputs(run):
                ordered.setdefault(needed.name, needed)
        return cls(tuple(ordered.values()), folder, extra)

    def listed(self) -> list[dict[str, Any]]:
        """The runs for JSON: their names, commands, and the directories that they read and write."""
        return [
            {
                "name": run.name,
                "command": run.words(self.folder, self.extra),
                "inputs": [str(self.folder / needed.name) for needed in run.inputs],
                "output": str(self.folder / run.name),
            }
            for run in self.runs
        ]

    def as_shell(self) -> str:
        """One line per run, for `bash -e` or a scheduler."""
        return "".join(
            shlex.join(["kdshrink", *run.words(self.folder, self.extra)]) + "\n"
            for run in self.runs
        )


def _with_inputs(run: Run) -> Iterator[Run]:
    for needed in run.inputs:
        yield from _with_inputs(needed)
    yield run
