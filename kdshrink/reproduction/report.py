"""Writes the report of an experiment: report.md, results.csv, results.json and figures."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import ModelError, OutputError, UsageError
from ..files import read_json, write_json, write_text
from ..training.log import read_curve
from .experiments import Experiment
from .paper import contradictions, read_paper
from .plots import draw_bars, draw_curves, draw_lines, require_matplotlib
from .results import Measured

logger = logging.getLogger(__name__)

REPORT = "report.md"
RESULTS = "results.json"


@dataclass(frozen=True)
class Report:
    """The content of a report, in order.

    Attributes:
        title: Its title, with the tables of the paper.
        set_up: Lines on what differs from the paper.
        rows: The measured cells.
        notes: What to know when reading it.
        folder: The directory of the runs, for the learning curves.
    """

    experiment: Experiment
    title: str
    set_up: tuple[str, ...]
    rows: Sequence[Measured]
    folder: Path

    def write(self, output_dir: Path) -> None:
        """Write its files, each atomically. Without matplotlib there are no figures."""
        output_dir.mkdir(parents=True, exist_ok=True)
        figures = self._draw(output_dir)
        write_text(output_dir / REPORT, self.as_markdown(figures))
        write_text(output_dir / "results.csv", as_csv([row.to_dict() for row in self.rows]))
        write_json(output_dir / RESULTS, self._as_json())

    def _as_json(self) -> dict[str, Any]:
        return {
            "experiment": self.experiment.name,
            "kdshrink_version": __version__,
            "paper_tables": list(self.experiment.tables),
            "set_up": list(self.set_up),
            "rows": [row.to_dict() for row in self.rows],
        }

    def as_markdown(self, figures: Sequence[str] = ()) -> str:
        lines = [f"# {self.title}", "", *(f"- {line}" for line in self.set_up), ""]
        lines += [_legend(self.experiment, self.rows), "", *_table(self.rows), ""]
        for figure in figures:
            lines += [f"![{figure.removesuffix('.png')}]({figure})", ""]
        if self.experiment.columns == "start":
            lines += [*_examples(self.rows), ""]
        if notes := [*self._contradictions(), *self._paper_notes()]:
            lines += ["## The paper's own figures", "", *(f"- {note}" for note in notes), ""]
        if missing := [*_missing(self.rows)]:
            lines += ["## Not run", "", *(f"- {line}" for line in missing), ""]
        return "\n".join(lines)

    def _contradictions(self) -> Iterator[str]:
        """Lines on the cells of this experiment for which the paper's tables differ."""
        for figures in contradictions():
            if not {one["table"] for one in figures} & {*self.experiment.tables}:
                continue
            one = figures[0]
            kd = " + KD" if one["kd"] else ""
            which = "average" if one["data"] == "average" else f"{one['model']}, {one['data']}"
            shown = ", ".join(f"{same['score']:.2f} (Table {same['table']})" for same in figures)
            yield f"{which}, {one['start']}{kd} at {one['width']}: {shown}."

    def _paper_notes(self) -> Iterator[str]:
        about = {
            "Table 8": "8" in self.experiment.tables,
            "Table 2": "2" in self.experiment.tables,
            "Table 4": "4" in self.experiment.tables,
            "Figures 2 and 3": not self.experiment.tables,
        }
        for note in read_paper()["notes"]:
            if any(wanted and note.startswith(what) for what, wanted in about.items()):
                yield note

    def _draw(self, output_dir: Path) -> list[str]:
        """Draw the figures, and return their file names."""
        try:
            require_matplotlib()
        except UsageError as error:
            logger.warning("%s", error)
            return []
        name = f"{self.experiment.name}.png"
        if not any(row.values for row in self.rows):
            return []
        if self.experiment.name == "learning-speed":
            draw_curves(self._curves(), output_dir / name)
        elif self.experiment.name == "data-size":
            draw_lines(self._lines(), output_dir / name, "training data, %", "score × 100")
        else:
            draw_bars(self._bars(), output_dir / name)
        return [name]

    def _curves(self) -> Mapping[str, Mapping[str, Any]]:
        """The learning curves of the first seed, by share of the data and start."""
        panels: dict[str, dict[str, Any]] = {}
        for row in self.rows:
            for seed in [*row.values][:1]:
                run = (row.cell.runs or {})[seed]
                panel = panels.setdefault(f"{row.cell.case.fraction:.0%} of the data", {})
                panel[row.cell.column] = read_curve(self.folder / run.name)
        return panels

    def _lines(self) -> Mapping[str, Sequence[tuple[float, float, float]]]:
        lines: dict[str, list[tuple[float, float, float]]] = {}
        for row in self.rows:
            if row.mean is not None:
                point = (100 * row.cell.case.fraction, row.mean, row.deviation or 0.0)
                lines.setdefault(row.cell.column, []).append(point)
        return lines

    def _bars(self) -> Mapping[str, Sequence[tuple[str, float | None, float, float | None]]]:
        columns: dict[str, list[tuple[str, float | None, float, float | None]]] = {}
        shown = {row.cell.column for row in self.rows if row.values}
        for row in self.rows:
            if row.cell.column in shown:
                paper = row.cell.paper[0]["score"] if row.cell.paper else None
                bar = (row.cell.row, row.mean, row.deviation or 0.0, paper)
                columns.setdefault(row.cell.column, []).append(bar)
        return columns


def check_place(output_dir: Path, name: str) -> None:
    """Check, before the work, that only an older report of this experiment would be replaced.

    Raises:
        OutputError: Other files have the names of the report's.
    """
    names = (REPORT, "results.csv", RESULTS, f"{name}.png")
    there = [one for one in names if os.path.lexists(output_dir / one)]
    try:
        former = read_json(output_dir / RESULTS) or {}
    except ModelError:
        former = {}
    if there and former.get("experiment") != name:
        raise OutputError(
            f"{output_dir} holds {', '.join(there)}, but not a report of {name} by kdshrink.\n"
            "Move it away, or give another directory with -o."
        )


def _legend(experiment: Experiment, rows: Sequence[Measured]) -> str:
    if experiment.name == "learning-speed":
        return "The training loss, as last logged before that step."
    legend = "Scores × 100"
    if any(row.deviation is not None for row in rows):
        legend += ", mean ± standard deviation over the seeds"
    if len(experiment.tables) == 1:
        legend += f"; in brackets the figure of the paper's Table {experiment.tables[0]}, and this run's difference from it"
    elif experiment.tables:
        legend += (
            "; in brackets the paper's figure, of the first of its Tables "
            f"{', '.join(experiment.tables)} that has one, and this run's difference from it"
        )
    return legend + "."


def _number(value: float, experiment_loss: bool) -> str:
    return f"{value:.4f}" if experiment_loss else f"{value:.2f}"


def _shown(row: Measured) -> str:
    """A cell of the table: `81.20 ± 0.30 (81.63, −0.43)`."""
    paper = row.cell.paper[0]["score"] if row.cell.paper else None
    if row.mean is None:
        return "not run" if paper is None else f"not run ({paper:.2f})"
    text = _number(row.mean, row.cell.case.measure == "loss")
    if row.deviation is not None:
        text += f" ± {_number(row.deviation, row.cell.case.measure == 'loss')}"
    if row.missing:
        text += "*"
    if row.difference is not None:
        text += f" ({paper:.2f}, {row.difference:+.2f})".replace("-", "−")
    return text


def _table(rows: Sequence[Measured]) -> list[str]:
    """The Markdown table, with rows and columns in order of their first cell."""
    columns = [*dict.fromkeys(row.cell.column for row in rows)]
    labels = [*dict.fromkeys(row.cell.row for row in rows)]
    cells = {(row.cell.row, row.cell.column): _shown(row) for row in rows}
    lines = [["", *columns], ["---"] * (len(columns) + 1)]
    lines += [[label, *(cells.get((label, name), "–") for name in columns)] for label in labels]
    return [f"| {' | '.join(line)} |" for line in lines]


def _examples(rows: Sequence[Measured]) -> Iterator[str]:
    """Lines on the number of examples of each share of the data."""
    counts = {
        (row.cell.model, row.cell.data, row.cell.case.fraction): row.train_examples
        for row in rows
        if row.train_examples
    }
    for (model, data, fraction), examples in counts.items():
        yield f"- {fraction:.0%} of {data} for {model}: {examples:,} examples."


def _missing(rows: Sequence[Measured]) -> Iterator[str]:
    """Lines on what was not run and why, with the rows of a column and reason joined."""
    groups: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.missing:
            groups.setdefault((row.cell.column, row.missing), []).append(row.cell.row)
    every = {column: len([r for r in rows if r.cell.column == column]) for column, _ in groups}
    for (column, reason), labels in groups.items():
        which = "all rows" if len(labels) == every[column] > 1 else "; ".join(labels)
        yield f"{column}: {which}: {reason}"


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per row; lists and objects are joined in one field, as in `44=81.2;55=80.9`."""
    text = io.StringIO()
    if not rows:
        return ""
    writer = csv.DictWriter(text, [*rows[0]], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _field(value) for name, value in row.items()})
    return text.getvalue()


def _field(value: Any) -> Any:
    if isinstance(value, Mapping):
        return ";".join(f"{key}={one}" for key, one in value.items())
    if isinstance(value, list):
        return ";".join(
            f"{one['table']}={one['score']}" if isinstance(one, Mapping) else str(one)
            for one in value
        )
    return value
