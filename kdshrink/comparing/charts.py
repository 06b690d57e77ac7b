"""Charts of score against what a model costs, as SVG whose points show their figures under the pointer."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from ..reproduction.plots import require_matplotlib
from .sheets import metric_name, short_names

_SVG = "http://www.w3.org/2000/svg"
_PREFIXES = {"": _SVG, "xlink": "http://www.w3.org/1999/xlink"}
"""Namespaces by the prefixes that HTML knows them by."""
_MARKERS = "osD^vPX*"
_BESIDE = ((10, 9), (10, -9), (-10, 9), (-10, -9))
"""Where a point's number stands, in points: models that are near each other are seldom on one side."""
SIZE, LATENCY = "size", "latency"


@dataclass(frozen=True)
class _Point:
    """A model in a chart: its place, and what its languages score."""

    name: str
    x: float
    score: float
    languages: Mapping[str, float]


def draw_charts(result: Mapping[str, Any]) -> dict[str, str]:
    """The SVG of `SIZE` and of `LATENCY`, with one point per model and a small one per language.

    Args:
        result: As `CompareResult.to_dict` gives it.

    Raises:
        UsageError: matplotlib is not installed.
    """
    return {
        SIZE: _chart(
            result, SIZE, "MB on disk", {n: m["bytes"] / 1e6 for n, m in result["models"].items()}
        ),
        LATENCY: _chart(
            result,
            LATENCY,
            "milliseconds for one text",
            {n: m["latency"]["one_text"]["median_ms"] for n, m in result["models"].items()},
        ),
    }


def _chart(result: Mapping[str, Any], name: str, x_label: str, places: Mapping[str, float]) -> str:
    names = short_names(places)
    points = [
        _Point(
            names[model],
            places[model],
            row["score"],
            {language: one["score"] for language, one in row["per_language"].items()},
        )
        for model, row in result["models"].items()
    ]
    figure = require_matplotlib()(figsize=(5.2, 3.9), layout="constrained")
    axis = figure.subplots()
    titles: dict[str, str] = {}
    for number, point in enumerate(points):
        titles |= _draw(axis, number, point, x_label, f"{name}-{number}")
    _set_scale(axis, [point.x for point in points])
    axis.set(xlabel=f"{x_label} (logarithmic)", ylabel=metric_name(result))
    axis.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=1 if len(points) < 4 else 2, fontsize="small")
    return _with_titles(_as_svg(figure, name), titles)


def _draw(axis: Any, number: int, point: _Point, x_label: str, gid: str) -> dict[str, str]:
    """Draw a model and its languages; the titles by the ids of their elements."""
    colour, marker = f"C{number % 10}", _MARKERS[number % len(_MARKERS)]
    titles = {gid: f"{point.name}: {point.score:.4f}, {point.x:,.1f} {x_label}"}
    for place, (language, score) in enumerate(point.languages.items()):
        titles[f"{gid}-{place}"] = f"{point.name}, {language}: {score:.4f}"
        axis.plot(
            [point.x],
            [score],
            marker=".",
            color=colour,
            alpha=0.35,
            linestyle="",
            gid=f"{gid}-{place}",
        )
    axis.plot(
        [point.x],
        [point.score],
        marker=marker,
        markersize=8,
        color=colour,
        markeredgecolor="black",
        linestyle="",
        label=f"{number + 1}  {point.name}".replace("$", r"\$"),
        gid=gid,
    )
    axis.annotate(
        str(number + 1),
        (point.x, point.score),
        xytext=_BESIDE[number % len(_BESIDE)],
        textcoords="offset points",
        ha="center",
        va="center",
        fontweight="bold",
    )
    return titles


def _set_scale(axis: Any, places: Sequence[float]) -> None:
    """A logarithmic axis with plain numbers, however narrow."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_xscale("log")
    axis.set_xlim(min(places) / 1.5, max(places) * 1.5)
    narrow = max(places) < 8 * min(places)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if not narrow else (1, 1.5, 2, 3, 5, 7)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _as_svg(figure: Any, name: str) -> ElementTree.Element:
    """A figure as SVG that depends on its content alone, with text as text, and ids that no other chart has."""
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "svg.id": name}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return ElementTree.fromstring(file.getvalue())


def _with_titles(svg: ElementTree.Element, titles: Mapping[str, str]) -> str:
    """The SVG as wide as there is room, without metadata, with a title in each named element."""
    for prefix, namespace in _PREFIXES.items():
        ElementTree.register_namespace(prefix, namespace)
    for extra in svg.findall(f"{{{_SVG}}}metadata"):
        svg.remove(extra)
    for element in svg.iter(f"{{{_SVG}}}g"):
        # A group's id is of no use to the chart, and matplotlib gives the same ones in every chart.
        if (title := titles.get(element.attrib.pop("id", ""))) is not None:
            shown = ElementTree.Element(f"{{{_SVG}}}title")
            shown.text = title
            element.insert(0, shown)
    for size in ("width", "height"):
        svg.attrib.pop(size, None)
    return ElementTree.tostring(svg, encoding="unicode")
