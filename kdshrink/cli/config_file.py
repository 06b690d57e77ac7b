"""Options of a command from a file: YAML, or the kdshrink.json of a former result."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..config.fields import flag_of, kebab, shown
from ..errors import UsageError
from ..record import RECORD


def read_options(path: Path, command: str, config_class: type) -> dict[str, Any]:
    """The options in a file, by the names of the config's fields, as if they had been typed.

    Args:
        path: A YAML file that maps options (`learning-rate` or `learning_rate`) to their values, or a kdshrink.json,
            whose `config` is read.

    Raises:
        UsageError: It cannot be read, or names an option that the command does not have.
    """
    content = _load(path)
    if path.name == RECORD and isinstance(content.get("config"), dict):
        if content.get("command") != command:
            raise UsageError(
                f"--config {shown(path)}: it was written by kdshrink {content.get('command')}, and this is "
                f"kdshrink {command}."
            )
        content = content["config"]
    names: dict[str, dataclasses.Field[Any]] = {}
    for item in dataclasses.fields(config_class):
        if not item.metadata["secret"]:
            names |= {kebab(item.name): item, flag_of(item).lower().lstrip("-"): item}
    options: dict[str, Any] = {}
    for key, value in content.items():
        found = names.get(kebab(str(key)))
        if found is None:
            nearest = get_close_matches(kebab(str(key)), names, 1, 0.0)[0]
            raise UsageError(
                f"--config {shown(path)}: kdshrink {command} has no option {shown(key)}. Is {nearest} meant?"
            )
        if found.name in options:
            raise UsageError(f"--config {shown(path)}: {kebab(found.name)} is given twice.")
        if value is not None:
            options[found.name] = _typed(path, found, value)
    return options


def _load(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {shown(path)}: {error.strerror}.") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise UsageError(f"--config {shown(path)}: this is not YAML: {said}") from error
    if not isinstance(content, dict):
        raise UsageError(
            f"--config {shown(path)}: it does not map options to values.\n"
            "Write one option per line, as in learning-rate: 1e-4."
        )
    return content


def _typed(path: Path, item: dataclasses.Field[Any], value: Any) -> Any:
    """A value as the command line gives it: a list as a,b, and a mapping as NAME=VALUE for each entry."""
    if isinstance(value, Mapping):
        return [f"{key}={_text(path, item, one)}" for key, one in value.items()]
    if isinstance(value, list):
        parts = [_text(path, item, one) for one in value]
        return parts if item.metadata["repeatable"] else ",".join(parts)
    if isinstance(value, bool) and not str(item.type).startswith("bool"):
        _text(path, item, value)
    return value if isinstance(value, bool) else str(value)


def _text(path: Path, item: dataclasses.Field[Any], value: Any) -> str:
    if isinstance(value, bool):
        raise UsageError(
            f"--config {shown(path)}: YAML reads a value of {kebab(item.name)} as {str(value).lower()}.\n"
            'Put it in quotes, as in "no".'
        )
    if isinstance(value, (Mapping, list)):
        raise UsageError(f"--config {shown(path)}: {kebab(item.name)} has a value within a value.")
    return str(value)
