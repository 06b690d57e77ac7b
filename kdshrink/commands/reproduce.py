"""`kdshrink reproduce`: run the paper's experiments and compare with its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config.command_line import command_line
from ..config.commands import ReproduceConfig
from ..errors import TrainingError
from ..output import check_makable
from ..progress import Board, unseen
from ..reproduction.data_tables import report_data
from ..reproduction.executor import execute, interrupted, visible_gpus
from ..reproduction.experiments import EXPERIMENTS
from ..reproduction.grid import Choice, Grid, make_grid
from ..reproduction.plan import Plan
from ..reproduction.report import REPORT, Report, check_place
from ..reproduction.results import Cell, Measured, measure
from ..reproduction.scales import SCALES
from .plan import Plan as DryRun

RUNS = "runs"


@dataclass(frozen=True)
class ReproduceResult:
    """The result of `reproduce`.

    Attributes:
        report: The path of the report; None with --plan.
        rows: The rows of results.json.
        done, found: Names of the runs that this call did, and of those that were finished before.
        plan: The runs, each after the runs that it needs.
        shell: The plan as shell commands; empty without --plan.
    """

    name: str
    output_dir: Path
    report: Path | None
    rows: Sequence[Mapping[str, Any]] = ()
    done: Sequence[str] = ()
    found: Sequence[str] = ()
    plan: Sequence[Mapping[str, Any]] = ()
    shell: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The keys of --json."""
        return {
            "name": self.name,
            "output_dir": str(self.output_dir),
            "report": None if self.report is None else str(self.report),
            "rows": list(self.rows),
            "runs": {"done": list(self.done), "found": list(self.found)},
            "plan": list(self.plan),
            "shell": self.shell,
        }


def reproduce(config: ReproduceConfig, board: Board | None = None) -> ReproduceResult:
    """Do the runs of one of the paper's experiments that are not done yet, and write its report.

    Raises:
        TrainingError: Runs failed; the report covers the others.
        Interrupted: A signal came; the runs that had ended are kept and reported.
        KdshrinkError: As `errors` lists.
    """
    output_dir = _output_dir(config)
    place = output_dir / config.name
    again = command_line("reproduce", replace(config, plan=False))
    if config.name == "data":
        if config.plan:
            return ReproduceResult(config.name, output_dir, None, shell=f"{again}\n")
        rows = report_data(place, config.scale, config.data, config.data_dirs)
        return ReproduceResult(config.name, output_dir, place / REPORT, rows)
    grid = grid_of(config)
    cells = grid.cells()
    plan = _runs_of(config, cells)
    listed = plan.listed()
    if config.plan:
        shell = f"{plan.as_shell()}{again}\n"
        return ReproduceResult(config.name, output_dir, None, plan=listed, shell=shell)
    check_place(place, config.name)
    check_makable(place)
    outcome = execute(plan, config.jobs, visible_gpus(config.device), board or unseen)
    measured = measure(cells, plan.folder, outcome.reasons)
    _report(grid, measured, plan.folder).write(place)
    if outcome.signal is not None:
        raise interrupted(outcome, again)
    if outcome.reasons:
        roots = [name for name in outcome.reasons if name not in outcome.blocked]
        first = roots[0]
        raise TrainingError(
            f"{len(roots)} of {len(plan.runs)} runs failed, and {len(outcome.blocked)} needed them: "
            f"{', '.join(roots)}.\n{outcome.reasons[first]}; see {plan.folder / first}.log\n"
            f"The rows of the others are in {place / REPORT}; the same command tries these again."
        )
    return ReproduceResult(
        config.name,
        output_dir,
        place / REPORT,
        [row.to_dict() for row in measured],
        outcome.done,
        outcome.found,
        listed,
    )


def plan_reproduce(config: ReproduceConfig, board: Board | None = None) -> DryRun:
    """What `reproduce` would do; its errors before the first run are raised too."""
    output_dir = _output_dir(config)
    place = output_dir / config.name
    plan = Plan((), output_dir / RUNS)
    if config.name != "data":
        plan = _runs_of(config, grid_of(config).cells())
    check_place(place, config.name)
    check_makable(place)
    runs = [
        {**row, "finished": run.is_finished(plan.folder)}
        for row, run in zip(plan.listed(), plan.runs, strict=True)
    ]
    return DryRun(
        "reproduce",
        output_dir,
        runs=runs,
        notes=("Memory, disk and time are those of the runs, each of which takes --dry-run too.",),
    )


def _output_dir(config: ReproduceConfig) -> Path:
    return config.output_dir or Path(f"reproduction-{config.scale}")


def _runs_of(config: ReproduceConfig, cells: Sequence[Cell]) -> Plan:
    """The runs that the cells of a grid need."""
    wanted = [run for cell in cells for run in (cell.runs or {}).values()]
    extra = () if config.device == "auto" else ("--device", config.device)
    return Plan.of(wanted, _output_dir(config) / RUNS, extra)


def grid_of(config: ReproduceConfig) -> Grid:
    """The grid of the experiment that a config asks for, on the models and data that are available."""
    choice = Choice(
        config.models,
        config.data,
        config.data_dirs,
        config.seeds,
        config.attention_target,
        config.own_rows,
        config.plan,
    )
    scale = SCALES[config.scale].with_steps(config.teacher_steps, config.max_steps)
    return make_grid(EXPERIMENTS[config.name], scale, choice)


def _report(grid: Grid, measured: Sequence[Measured], folder: Path) -> Report:
    experiment = grid.experiment
    tables = f" (the paper's Table{'s' if len(experiment.tables) > 1 else ''} {', '.join(experiment.tables)})"
    figure = {"data-size": " (the paper's Figure 2)", "learning-speed": " (the paper's Figure 3)"}
    source = tables if experiment.tables else figure[experiment.name]
    title = f"{experiment.title}{source}"
    return Report(experiment, title, tuple(grid.set_up()), measured, folder)
