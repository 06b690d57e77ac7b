"""The tables of a comparison, as text: for the terminal and for the reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

_METRICS = {"macro_f1": "macro-F1", "entity_f1": "entity F1"}
_NONE = "–"


@dataclass(frozen=True)
class Sheet:
    """A table: its columns, of which the first names the row, and the cells of each row."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Names by the models as given: the last part of a path, or more of it where two would be the same."""
    parts = {name: PurePath(name).parts or (name,) for name in names}
    taken = dict.fromkeys(parts, 1)
    while True:
        shown = {name: "/".join(parts[name][-taken[name] :]) for name in parts}
        same = [name for name in parts if [*shown.values()].count(shown[name]) > 1]
        longer = [name for name in same if taken[name] < len(parts[name])]
        if not longer:
            return shown
        for name in longer:
            taken[name] += 1


def metric_name(result: Mapping[str, Any]) -> str:
    return _METRICS[result["metric"]]


def score_sheet(result: Mapping[str, Any]) -> Sheet:
    """What the models score, and what of the difference may be chance."""
    columns = (
        *("model", metric_name(result), "seen", "unseen", "worst language kept"),
        f"points [{result['confidence']:.0%} interval]",
        *("more than chance", "agreement"),
    )
    names = short_names(result["models"])
    rows = []
    for name, model in result["models"].items():
        difference, worst = model["difference"], model["worst_language"]
        compared = (_NONE,) * 4
        if name != result["baseline"]:
            compared = (
                _NONE if worst is None else f"{worst['language']}, {worst['share']:.1%}",
                _interval(difference),
                _verdict(difference),
                f"{model['agreement']:.1%}",
            )
        groups = (_NONE if model[g] is None else _score(model[g]["score"]) for g in _GROUPS)
        rows.append((names[name], _score(model["score"]), *groups, *compared))
    title = f"Scores on {result['examples']:,} texts; the baseline is {names[result['baseline']]}"
    return Sheet(title, columns, rows)


_GROUPS = ("seen", "unseen")


def size_sheet(result: Mapping[str, Any]) -> Sheet:
    """What the models take of disk and memory."""
    names = short_names(result["models"])
    rows = []
    for name, model in result["models"].items():
        memory = model["model_memory_bytes"]
        sizes = (model["bytes"], memory)
        cells = (_NONE if size is None else f"{size / 1e6:,.1f}" for size in sizes)
        parameters = f"{model['parameters'] / 1e6:,.1f} M"
        rows.append((names[name], model["file"], parameters, *cells))
    return Sheet("Size", ("model", "file", "parameters", "MB on disk", "MB of memory"), rows)


def speed_sheet(result: Mapping[str, Any]) -> Sheet:
    """How long the models take, and how many times as fast as the baseline they are."""
    names = short_names(result["models"])
    rows = []
    for name, model in result["models"].items():
        latency = [
            cell
            for one in model["latency"].values()
            for cell in (
                f"{one['median_ms']:.1f} ({one['p95_ms']:.1f})",
                f"{one['times_as_fast']:.1f}×",
            )
        ]
        rows.append((names[name], *latency, f"{model['texts_per_second']:,.0f}"))
    columns = (
        *("model", "1 text, ms (95th)", "speed, 1 text", "32 texts, ms (95th)"),
        *("speed, 32 texts", "texts/s"),
    )
    threads = f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"
    return Sheet(f"Speed, on {result['device']}, {threads}", columns, rows)


def language_sheet(result: Mapping[str, Any]) -> Sheet:
    """The scores by language; a mark where the difference from the baseline is more than chance."""
    names = short_names(result["models"])
    first = next(iter(result["models"].values()))
    rows = []
    for language, row in first["per_language"].items():
        cells = [
            _score(model["per_language"][language]["score"])
            + _mark(model["per_language"][language]["difference"])
            for model in result["models"].values()
        ]
        rows.append((_with_group(language, result), f"{row['examples']:,}", *cells))
    title = f"{metric_name(result)} by language (▲ ▼ more than chance above or below the baseline)"
    return Sheet(title, ("language", "texts", *names.values()), rows)


def notes(result: Mapping[str, Any]) -> list[str]:
    """How the figures came about."""
    where = "" if result["split"] == "all" else f", the {result['split']} split"
    interval = f"{result['confidence']:.0%}"
    lines = [
        f"Data: {result['data']}{where}; {result['examples']:,} texts.",
        f"Points: of 100, above or below the baseline; the {interval} interval is from {result['resamples']:,} paired "
        f"resamples of the texts within each language, seed {result['seed']}. More than chance: the interval "
        "leaves out 0. Of many languages some leave it out by chance.",
        "Worst language kept: the one that keeps the least of the baseline's score. Agreement: the share of labels "
        "that are the baseline's.",
        "Time: from texts to labels, tokenising (by one thread) included; the models take turns call by call. "
        "Median, and in brackets the 95th percentile; speed is how many times as fast as the baseline a model is, the "
        "median over the calls.",
        "Memory: what loading the model and 32 texts in one batch add, at the peak, to a process with the "
        "libraries loaded.",
    ]
    if result["seen_from"]:
        lines.insert(1, f"Seen and unseen languages: by {result['seen_from']}, for the baseline.")
    return lines


def _with_group(language: str, result: Mapping[str, Any]) -> str:
    group = next((g for g in _GROUPS if language in (result[f"{g}_languages"] or ())), None)
    return language if group is None else f"{language} ({group})"


def _score(score: float) -> str:
    return f"{score:.4f}"


def _interval(difference: Mapping[str, Any]) -> str:
    low, high = difference["interval"]
    return f"{_signed(difference['value'])} [{_signed(low)}, {_signed(high)}]"


def _signed(value: float) -> str:
    return f"{100 * value:+.2f}".replace("-", "−")


def _verdict(difference: Mapping[str, Any]) -> str:
    if not difference["more_than_chance"]:
        return "no"
    return "yes, better" if difference["value"] > 0 else "yes, worse"


def _mark(difference: Mapping[str, Any]) -> str:
    if not difference["more_than_chance"]:
        return ""
    return " ▲" if difference["value"] > 0 else " ▼"
