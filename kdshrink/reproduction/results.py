"""The results of an experiment's runs, read from their records, with the paper's figures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ModelError
from ..record import RECORD, Record, Results, read_record
from ..training.log import read_curve
from .experiments import Case, Experiment
from .paper import paper_figures
from .plan import Run

PAPER_WIDTHS = {"full": 768, "half": 384}


@dataclass(frozen=True)
class Cell:
    """A cell of an experiment's table: a case of one model and data set.

    Attributes:
        model, data: Labels of the model and the data set.
        paper: The paper's figures for it, that of the main table first.
        runs: By seed, the run whose record has the result; None if it is not run.
        missing: Why it is not run.
    """

    case: Case
    model: str
    data: str
    row: str
    column: str
    paper: tuple[Mapping[str, Any], ...] = ()
    runs: Mapping[int, Run] | None = None
    missing: str | None = None


@dataclass(frozen=True)
class Measured:
    """A cell with the results of its runs.

    Attributes:
        values: By seed: scores and accuracies × 100, losses unscaled.
        parameters: The parameters of the model, if recorded.
        train_examples: The number of examples of its last training; None for a copy.
        missing: Why there are no results, or not for all seeds.
    """

    cell: Cell
    values: Mapping[int, float]
    parameters: int | None
    train_examples: int | None
    missing: str | None

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values.values()) if self.values else None

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation (n − 1) over the seeds."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None

    @property
    def difference(self) -> float | None:
        """The mean minus the first of the paper's figures."""
        mean, paper = self.mean, self.cell.paper
        return None if mean is None or not paper else mean - paper[0]["score"]

    def to_dict(self) -> dict[str, Any]:
        """A row of results.json."""
        cell, case = self.cell, self.cell.case
        return {
            "row": cell.row,
            "column": cell.column,
            "model": cell.model,
            "data": cell.data,
            "start": case.start,
            "kd": case.kd,
            "width": case.width,
            "trained_on": case.trained_on,
            "train_fraction": case.fraction,
            "measure": case.measure
            if case.at is None
            else f"loss after {case.at:.0%} of the steps",
            "own": case.own,
            "mean": self.mean,
            "standard_deviation": self.deviation,
            "values": {str(seed): value for seed, value in self.values.items()},
            "paper": [{"table": one["table"], "score": one["score"]} for one in cell.paper],
            "difference": self.difference,
            "parameters": self.parameters,
            "train_examples": self.train_examples,
            "runs": {str(seed): run.name for seed, run in (cell.runs or {}).items()},
            "not_run": self.missing,
        }


def figures_of(
    experiment: Experiment, case: Case, model: str | None, data: str
) -> tuple[Mapping[str, Any], ...]:
    """The paper's figures for a case; empty for added cases and those that the paper only plots."""
    if case.own or not experiment.tables:
        return ()
    found = paper_figures(
        experiment.tables,
        model=model,
        data=data,
        start=case.start,
        width=PAPER_WIDTHS[case.width],
        kd=case.kd,
        trained_on=case.trained_on,
        measure=case.measure,
    )
    return tuple(found)


def _lacking(directory: Path, field: str) -> ModelError:
    return ModelError(
        f"{directory / RECORD} lacks {field}.\nRemove the directory, and the run will be done again."
    )


def read_results(directory: Path) -> Results:
    """The results of a finished run.

    Raises:
        ModelError: Its record lacks them.
    """
    record = read_record(directory)
    if record is None or record.results is None:
        raise _lacking(directory, "results")
    return record.results


def score_of(results: Results) -> float | None:
    """The score of a run; of zero-shot, that on the unseen languages."""
    return results.score if results.unseen is None else results.unseen.score


def read_value(case: Case, run: Run, folder: Path) -> float:
    """The figure that is reported of a case, from the record or log of its run."""
    results = read_results(folder / run.name)
    if case.measure == "loss":
        assert case.at is not None
        curve = read_curve(folder / run.name)
        if results.steps is None:
            raise _lacking(folder / run.name, "its steps")
        reached = [point.value for point in curve if point.step <= case.at * results.steps]
        return (reached or [curve[0].value])[-1]
    if case.start == "random":
        by_accuracy = case.measure == "majority accuracy"
        value = results.majority_accuracy if by_accuracy else results.random_score
    else:
        value = score_of(results)
    if value is None:
        raise _lacking(folder / run.name, "a score")
    return 100 * value


def model_sizes(run: Run, folder: Path) -> tuple[int | None, int | None]:
    """The number of parameters of the model that a run made or scored, and of its training examples."""
    made = run if run.makes_model else run.inputs[0]
    if made.command == "shrink":
        return read_results(folder / made.name).parameters_after, None
    record = read_record(folder / made.name) or Record()
    if "this model" not in record.sizes:
        raise _lacking(folder / made.name, "the model's size")
    examples = None if record.data is None else record.data.examples.get("train")
    return record.sizes["this model"].parameters, examples


def measure(cells: Sequence[Cell], folder: Path, reasons: Mapping[str, str]) -> list[Measured]:
    """Read the available results of the cells.

    Args:
        reasons: Why a run failed, by its name.
    """
    measured = []
    for cell in cells:
        runs = cell.runs or {}
        finished = {seed: run for seed, run in runs.items() if run.is_finished(folder)}
        missing = cell.missing
        if lacking := sorted(set(runs) - set(finished)):
            why = reasons.get(runs[lacking[0]].name, "not finished")
            seeds = ", ".join(map(str, lacking))
            missing = f"{why} (seed {seeds})" if finished or len(runs) > 1 else why
        sizes: tuple[int | None, int | None] = None, None
        if finished and cell.case.start != "random":
            sizes = model_sizes(next(iter(finished.values())), folder)
        values = {seed: read_value(cell.case, run, folder) for seed, run in finished.items()}
        measured.append(Measured(cell, values, *sizes, missing))
    return measured
