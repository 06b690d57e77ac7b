"""Writes a config as a command line."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import Any

from .fields import flag_of
from .groups import DataOptions, HubOptions

_NOT_OF_THE_RESULT = {
    "token",
    "overwrite",
    "resume",
    *(item.name for item in fields(HubOptions)),
}


def command_line(command: str, config: Any) -> str:
    """The command line for a config, without the token and options that do not change the result."""
    arguments: list[str] = []
    flags: list[str] = []
    own, data = set(vars(type(config))["__annotations__"]), {f.name for f in fields(DataOptions)}

    def rank(item: Field[Any]) -> int:
        """Order: the command's own options, data, the others, the output directory."""
        if item.name == "output_dir":
            return 3
        return 0 if item.name in own else 1 if item.name in data else 2

    for item in sorted(fields(config), key=rank):
        value = getattr(config, item.name)
        default = item.default if item.default_factory is MISSING else item.default_factory()
        if item.metadata["argument"]:
            arguments += map(str, value if isinstance(value, tuple) else [value])
            continue
        if item.name in _NOT_OF_THE_RESULT or value == default:
            continue
        flag = flag_of(item)
        if isinstance(value, bool):
            flags.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, Mapping):
            pairs = {k: _typed(v) for k, v in value.items()}
            flags += [word for k, v in pairs.items() for word in (flag, f"{k}={v}")]
        else:
            flags += [
                flag,
                ",".join(map(str, value)) if isinstance(value, tuple) else _typed(value),
            ]
    return shlex.join(["kdshrink", command, *arguments, *flags])


def _typed(value: object) -> str:
    """A value for the command line; a number in its shortest exact form."""
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value)
