"""`kdshrink curves`: compare the training curves of several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.commands import CurvesConfig
from ..output import check_file
from ..progress import Progress
from ..training.log import Point, read_curve


@dataclass(frozen=True)
class CurvesResult:
    """The curves by directory, and the file that they were drawn to, if any."""

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
    """Read the training curves of runs, and draw them if an output file is given.

    Raises:
        KdshrinkError: As `errors` lists.
    """
    if config.output_file is not None:
        check_file(config.output_file, "-o", overwrite=config.overwrite)
    found = {str(path): read_curve(path, config.term) for path in config.directories}
    if config.output_file is not None:
        from ..reproduction.plots import draw_curves

        draw_curves({"": found}, config.output_file, config.term)
    return CurvesResult(config.term, found, config.output_file)
