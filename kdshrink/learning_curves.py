"""Learning curves: the training loss by step, out of train_log.jsonl alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import CurvesConfig
from .errors import DataError
from .output import CHECKPOINTS, LOG, check_file
from .progress import Progress


@dataclass(frozen=True)
class Point:
    step: int
    value: float


def _entries(directory: Path) -> list[dict[str, Any]] | None:
    """The logged lines of a run that ended or is under way; None without a log."""
    for log in (directory / LOG, directory / CHECKPOINTS / LOG):
        try:
            lines = log.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            continue
        # A run that is under way may have written half a line; its objects are flat.
        return [json.loads(line) for line in lines if line.endswith("}")]
    return None


def last_entry(directory: Path) -> dict[str, Any]:
    """The last logged line of a run, with the last loss and score before it; empty without one."""
    merged: dict[str, Any] = {}
    for entry in _entries(directory) or ():
        merged |= entry
    return merged


def read_curve(directory: Path, term: str = "loss") -> list[Point]:
    """A logged figure by step, of a run that ended or is under way.

    Raises:
        DataError: There is no log, or it has no such figure.
    """
    entries = _entries(directory)
    if entries is None:
        raise DataError(
            f"{directory}: there is no {LOG} here.\nGive a directory that finetune or distill wrote."
        )
    curve = [Point(entry["step"], entry[term]) for entry in entries if term in entry]
    if not curve:
        known = sorted({name for entry in entries for name in entry} - {"step", "metric"})
        raise DataError(f"{directory / LOG}: it has no {term!r}.\nIt has: {', '.join(known)}.")
    return curve


@dataclass(frozen=True)
class CurvesResult:
    """Curves by directory, and the image that was drawn of them."""

    term: str
    curves: Mapping[str, Sequence[Point]]
    output: Path | None

    def to_dict(self) -> dict[str, Any]:
        """The keys of --json."""
        return {
            "term": self.term,
            "curves": {
                name: [[point.step, point.value] for point in curve]
                for name, curve in self.curves.items()
            },
            "output": None if self.output is None else str(self.output),
        }


def curves(config: CurvesConfig, progress: Progress | None = None) -> CurvesResult:
    """Read the learning curves of runs, and draw them if a file is named.

    Raises:
        KdshrinkError: As `errors` lists.
    """
    if config.output_file is not None:
        check_file(config.output_file, "-o", overwrite=config.overwrite)
    found = {str(path): read_curve(path, config.term) for path in config.directories}
    if config.output_file is not None:
        from .plots import draw_curves

        draw_curves({"": found}, config.output_file, config.term)
    return CurvesResult(config.term, found, config.output_file)
