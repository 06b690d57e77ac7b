"""Turns the fields of a config into parameters of the command line."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..config.fields import refuse_empty

_FIRST = (
    *("teacher", "student", "recipe", "init", "layers", "hidden_size", "vocab_from"),
    *("scale", "models", "baseline", "data", "languages", "split"),
    *("num_train_epochs", "max_steps", "batch_size", "learning_rate"),
    *("export", "precision", "max_drop", "backend", "threads"),
    *("predictions", "per_class", "seeds", "plan", "term", "output_dir", "output_file"),
)
"""The options that most runs need: --help shows these first, in this order, and the rest in panels."""
_OWN = "More options"
# In the order of --help.
_PANELS = {
    _OWN: _OWN,
    "DataOptions": "Data",
    "ShapeOptions": "Shape of the student",
    "CalibrationOptions": "Shape of the student",
    "ObjectiveOptions": "Objective",
    "GateOptions": _OWN,
    "TrainingOptions": "Training",
    "ScoringOptions": "Run",
    "EvaluationOptions": "Run",
    "DeviceOptions": "Run",
    "OutputOptions": "Output",
    "TokenOptions": "Hub",
    "SourceOptions": "Hub",
    "HubTarget": "Hub",
    "HubOptions": "Hub",
}


def _complete_data(incomplete: str) -> list[str]:
    from ..data.registry import NAMED

    return [name for name in NAMED if name.startswith(incomplete)]


def _complete_model(incomplete: str) -> list[str]:
    from ..models.source import SAMPLES

    return [name for name in SAMPLES if name.startswith(incomplete)]


def _complete_languages(ctx: typer.Context, incomplete: str) -> list[str]:
    from ..data.languages import GROUPS
    from ..data.registry import NAMED

    named = NAMED.get(ctx.params.get("data") or ctx.params.get("vocab_from") or "")
    names = [*GROUPS, *([unit.name for unit in named.units] if named else [])]
    before, comma, last = incomplete.rpartition(",")
    return [before + comma + name for name in names if name.startswith(last)]


_COMPLETERS: dict[str, Callable[..., list[str]]] = {
    "data": _complete_data,
    "vocab_from": _complete_data,
    "unlabelled": _complete_data,
    "languages": _complete_languages,
    "seen_languages": _complete_languages,
    "unseen_languages": _complete_languages,
    "unlabelled_languages": _complete_languages,
    "model": _complete_model,
    "teacher": _complete_model,
    "student": _complete_model,
    "base": _complete_model,
    "baseline": _complete_model,
}


def _group(config_class: type, name: str) -> str:
    """The name of the class, a config or a group of options, that declares a field."""
    return next(
        group.__name__
        for group in reversed(config_class.__mro__)
        if name in vars(group).get("__annotations__", {})
    )


def _comes_first(item: dataclasses.Field[Any]) -> bool:
    required = item.default is item.default_factory is dataclasses.MISSING
    return required or item.name in _FIRST


def _panel(config_class: type, item: dataclasses.Field[Any]) -> str | None:
    """The panel of --help that shows a field; None for the first one."""
    if _comes_first(item):
        return None
    return _PANELS.get(_group(config_class, item.name), _OWN)


def help_order(config_class: type, item: dataclasses.Field[Any]) -> tuple[int, int]:
    """The sort key of a field in --help: required ones, then those that most runs need, then the panels."""
    panel = _panel(config_class, item)
    if panel is None:
        return 0, _FIRST.index(item.name) if item.name in _FIRST else -1
    return 1, list(dict.fromkeys(_PANELS.values())).index(panel)


def parameter(config_class: type, item: dataclasses.Field[Any], hint: Any) -> inspect.Parameter:
    """The Typer parameter for a config's field."""
    options: dict[str, Any] = {"help": item.metadata["help"]}
    if item.name in _COMPLETERS:
        options["autocompletion"] = _COMPLETERS[item.name]
    default: Any = item.default
    metavar = _metavar(item, hint)
    if hint in (Path, Path | None):
        # As a string, since Typer would turn "" into the current directory.
        hint = str if hint is Path else str | None
    if item.metadata["parse"] is not None:
        hint = list[str] if item.metadata["repeatable"] else str | None
        if default is not dataclasses.MISSING or item.default_factory is not dataclasses.MISSING:
            default = [] if item.metadata["repeatable"] else None
    if item.metadata["argument"]:
        metadata: Any = typer.Argument(show_default=False, **options)
    else:
        kebab = f"--{item.name.replace('_', '-')}"
        flags = list(item.metadata["flags"] or [kebab])
        if item.name == "bf16":
            flags = ["--bf16/--no-bf16"]
        elif item.name == "compare":
            flags = ["--compare/--no-compare"]
        shown = not (default is None or default is False or default == [])
        metadata = typer.Option(
            *flags,
            rich_help_panel=_panel(config_class, item),
            show_default=shown and default is not dataclasses.MISSING,
            metavar=metavar,
            **options,
        )
    return inspect.Parameter(
        item.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if default is dataclasses.MISSING else default,
        annotation=Annotated[hint, metadata],
    )


def _metavar(item: dataclasses.Field[Any], hint: Any) -> str | None:
    if item.metadata["metavar"]:
        return item.metadata["metavar"]
    if item.metadata["parse"] is not None:
        return "A,B,…"
    return "PATH" if hint in (Path, Path | None) else None


def value(item: dataclasses.Field[Any], hints: dict[str, Any], typed: dict[str, Any]) -> Any:
    """The value of a config's field, parsed from the command line.

    Typer's `parser` is not used because it gets the values of a repeatable option one by one.
    """
    value, parse = typed[item.name], item.metadata["parse"]
    if value is None:
        return None
    if value != []:
        refuse_empty(item, value)
    if parse is not None:
        return parse(value)
    return Path(value) if hints[item.name] in (Path, Path | None) else value
