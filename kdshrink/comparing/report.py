"""Writes the report of a comparison: one HTML file, or Markdown with its charts beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import __version__
from ..files import write_text
from .charts import draw_charts
from .results import CompareResult
from .sheets import Sheet, language_sheet, notes, score_sheet, short_names, size_sheet, speed_sheet

_TEMPLATE = Path(__file__).with_name("report.html")
_CHARTS = ("size", "latency")


def report_files(path: Path) -> list[Path]:
    """The files of a report: itself, and beside Markdown its charts."""
    if path.suffix == ".html":
        return [path]
    return [path, *(path.with_name(f"{path.stem}-{name}.svg") for name in _CHARTS)]


def write_report(result: CompareResult, path: Path) -> None:
    """Write the report, as its ending says; each file atomically, the report itself last.

    Raises:
        UsageError: matplotlib is not installed.
    """
    content = result.to_dict()
    charts = draw_charts(content)
    if path.suffix == ".html":
        write_text(path, as_html(content, [charts[name] for name in _CHARTS]))
        return
    files = report_files(path)
    for file, name in zip(files[1:], _CHARTS, strict=True):
        write_text(file, charts[name])
    write_text(path, as_markdown(content, [file.name for file in files[1:]]))


def as_html(content: Mapping[str, Any], charts: Sequence[str]) -> str:
    """A page that needs no other file and no network."""
    from jinja2 import Environment  # torch requires it
    from markupsafe import Markup

    template = Environment(autoescape=True).from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        title=_title(content),
        summary=_summary(content),
        sheets=_model_sheets(content),
        languages=language_sheet(content),
        charts=[Markup(svg) for svg in charts],
        notes=notes(content),
        command=content["command"],
        version=__version__,
    )


def as_markdown(content: Mapping[str, Any], charts: Sequence[str]) -> str:
    """The same as Markdown, with links to its charts."""
    lines = [f"# {_title(content)}", "", *(f"- {one}" for one in _summary(content)), ""]
    for sheet in _model_sheets(content):
        lines += _markdown(sheet)
    for name, chart in zip(_CHARTS, charts, strict=True):
        lines += [f"![score against {name}]({chart.replace(' ', '%20')})", ""]
    lines += _markdown(language_sheet(content))
    lines += ["## How this was measured", "", *(f"- {note}" for note in notes(content)), ""]
    lines += ["```console", f"$ {content['command']}", "```", ""]
    return "\n".join(lines)


def _markdown(sheet: Sheet) -> list[str]:
    rows = [sheet.columns, ["---"] * len(sheet.columns), *sheet.rows]
    table = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return [f"## {sheet.title}", "", *table, ""]


def _model_sheets(content: Mapping[str, Any]) -> list[Sheet]:
    """The tables of models, with their numbers in the charts."""
    return [
        replace(
            sheet,
            rows=[(f"{number}  {row[0]}", *row[1:]) for number, row in enumerate(sheet.rows, 1)],
        )
        for sheet in (score_sheet(content), size_sheet(content), speed_sheet(content))
    ]


def _title(content: Mapping[str, Any]) -> str:
    return f"{len(content['models'])} models on {Path(content['data']).name}"


def _summary(content: Mapping[str, Any]) -> list[str]:
    """A sentence on each model that is not the baseline."""
    names = short_names(content["models"])
    sentences = []
    for name, model in content["models"].items():
        if name == content["baseline"]:
            continue
        difference, one = model["difference"], model["latency"]["one_text"]
        points = f"{100 * abs(difference['value']):.1f} points"
        if not difference["more_than_chance"]:
            told = "is within chance of the baseline's score"
        else:
            told = (
                f"scores {points} {'more' if difference['value'] > 0 else 'less'} than the baseline"
            )
        worst = model["worst_language"]
        kept = f", keeps {worst['share']:.0%} in {worst['language']}" if worst else ""
        sentences.append(
            f"{names[name]} {told}{kept}, takes {model['bytes'] / 1e6:,.1f} MB and is "
            f"{one['times_as_fast']:.1f} times as fast for one text."
        )
    return sentences
