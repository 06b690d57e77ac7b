"""Draws figures with matplotlib, if it is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..files import atomic_file

if TYPE_CHECKING:
    from ..training.log import Point


_PANELS_A_ROW = 3


def require_matplotlib() -> Any:
    """matplotlib's Figure class, without a window.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            "Figures need matplotlib, which is not installed.\n"
            "Install it with pip install 'kdshrink[plots]'."
        ) from error
    return Figure


def _save(figure: Any, path: Path) -> None:
    """Save a figure atomically, with bytes that depend only on its content."""
    kind = path.suffix.lstrip(".")
    undated: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
    with atomic_file(path) as partial:
        figure.savefig(partial, format=kind, dpi=120, metadata=undated)


def _literal(name: str) -> str:
    """Escape a name for a legend: matplotlib reads $ as mathematics, and hides names that begin with _."""
    return ("\u2009" if name.startswith("_") else "") + name.replace("$", r"\$")


def draw_curves(
    panels: Mapping[str, Mapping[str, Sequence[Point]]], path: Path, term: str = "loss"
) -> None:
    """Draw curves by step, with one panel per title.

    Raises:
        UsageError: matplotlib is not installed.
    """
    columns = min(len(panels), _PANELS_A_ROW)
    rows = -(-len(panels) // columns)
    figure = require_matplotlib()(figsize=(5 * columns, 3.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis, (title, curves) in zip(axes, panels.items(), strict=False):
        for name, curve in curves.items():
            axis.plot(
                [point.step for point in curve],
                [point.value for point in curve],
                label=_literal(name),
            )
        axis.set(title=title, xlabel="step", ylabel=term)
        axis.legend(fontsize="small")
    for axis in [*axes][len(panels) :]:
        axis.set_visible(False)
    _save(figure, path)


def draw_lines(
    lines: Mapping[str, Sequence[tuple[float, float, float]]], path: Path, x: str, y: str
) -> None:
    """Draw lines of (x, y, standard deviation of y), with x on a logarithmic scale.

    Raises:
        UsageError: matplotlib is not installed.
    """
    figure = require_matplotlib()(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for name, points in lines.items():
        places, values, deviations = zip(*points, strict=True)
        axis.errorbar(places, values, yerr=deviations, marker="o", capsize=3, label=_literal(name))
    ticks = sorted({place for points in lines.values() for place, _, _ in points})
    axis.set(xscale="log", xlabel=x, ylabel=y)
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axis.legend(fontsize="small")
    _save(figure, path)


def draw_bars(
    columns: Mapping[str, Sequence[tuple[str, float | None, float, float | None]]], path: Path
) -> None:
    """Draw bars of (label, value, standard deviation, the paper's value), with one panel per title.

    Raises:
        UsageError: matplotlib is not installed.
    """
    longest = max(len(bar[0]) for bars in columns.values() for bar in bars)
    size = (4 * len(columns) + 0.08 * longest, 0.32 * max(map(len, columns.values())) + 1.2)
    figure = require_matplotlib()(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
    for axis, (title, bars) in zip(panels, columns.items(), strict=True):
        places = range(len(bars))
        axis.barh(
            places, [bar[1] or 0 for bar in bars], xerr=[bar[2] for bar in bars], label="this run"
        )
        marked = [(place, bar[3]) for place, bar in zip(places, bars, strict=True) if bar[3]]
        if marked:
            axis.plot(
                [score for _, score in marked],
                [place for place, _ in marked],
                "k|",
                markersize=12,
                label="the paper",
            )
        axis.set(title=title, xlim=(0, 100))
        axis.set_yticks(places, [bar[0] for bar in bars])
        axis.margins(y=0.02)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower right", ncols=2, fontsize="small")
    panels[0].invert_yaxis()
    _save(figure, path)
