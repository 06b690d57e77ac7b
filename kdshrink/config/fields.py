"""Declares, parses and checks the fields of a config; nothing here imports torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..errors import UsageError

LOSS_TERMS = ("embedding", "hidden", "attention", "prediction", "task")
_LARGEST = 2**31 - 1
"""The largest integer of the libraries' counters."""


@dataclass(frozen=True)
class Bounds:
    """The range that a number must be in; it must also be finite."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def hold(self, number: float) -> bool:
        number = int(number) if isinstance(number, Integral) else float(number)
        # Written so that NaN fails every comparison.
        return (
            -sys.float_info.max <= number <= sys.float_info.max
            and (self.least is None or number >= self.least)
            and (self.above is None or number > self.above)
            and (self.most is None or number <= self.most)
            and (self.below is None or number < self.below)
        )

    def __str__(self) -> str:
        words = {"at least": self.least, "above": self.above}
        words |= {"at most": self.most, "below": self.below}
        parts = [f"{word} {limit:.10g}" for word, limit in words.items() if limit is not None]
        if self.most is self.below is None:
            parts.append("finite")
        return "it must be " + " and ".join(parts)


def option(
    help: str,
    default: Any = MISSING,
    *,
    flags: tuple[str, ...] = (),
    argument: bool = False,
    parse: Callable[[Any], Any] | None = None,
    repeatable: bool = False,
    secret: bool = False,
    metavar: str | None = None,
    bounds: Bounds | None = None,
    blank: bool = False,
) -> Any:
    """Declare a field of a config, and its option on the command line.

    Args:
        help: The help text, which is the field's only documentation.
        default: The default, or a type such as dict that makes it; without one the field is required.
        flags: The flags, if not the name in kebab-case.
        argument: Whether it is a positional argument instead of a flag.
        parse: Parses the string, or the list of strings if repeatable, of the command line.
        repeatable: Whether the flag may be given several times.
        secret: Whether the value is left out of the config's repr and of records.
        metavar: The placeholder of the value in the help; by default its type.
        bounds: The range of the value.
        blank: Whether the value may consist of white space.
    """
    metadata = {
        "help": help,
        "flags": flags,
        "argument": argument,
        "parse": parse,
        "repeatable": repeatable,
        "secret": secret,
        "metavar": metavar,
        "bounds": bounds,
        "blank": blank,
    }
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata, repr=not secret)
    return field(default=default, metadata=metadata, repr=not secret)


def comma_list(typed: str) -> tuple[str, ...]:
    """`"a, b"` → `("a", "b")`."""
    return tuple(part.strip() for part in typed.split(",") if part.strip())


def weight_mapping(typed: list[str]) -> dict[str, float]:
    """`["hidden=0", "task=2"]` → `{"hidden": 0.0, "task": 2.0}`."""
    weights = {}
    for item in typed:
        term, _, number = item.partition("=")
        try:
            weights[term.strip()] = float(number)
        except ValueError:
            raise UsageError(
                f"--weight {shown(item)}: this does not have the form TERM=NUMBER.\n"
                f"Give a term of {', '.join(LOSS_TERMS)} and a number, as in --weight hidden=0."
            ) from None
    return weights


def number_list(typed: str) -> tuple[int, ...]:
    """`"44, 55"` → `(44, 55)`."""
    try:
        return tuple(int(part) for part in comma_list(typed))
    except ValueError:
        raise UsageError(
            f"--seeds {shown(typed)}: these are not whole numbers.\nGive one or more, as in --seeds 44,55,66."
        ) from None


def directory_mapping(typed: list[str]) -> dict[str, Path]:
    """`["massive=DIR"]` → `{"massive": Path("DIR")}`."""
    directories = {}
    for item in typed:
        name, equals, directory = item.partition("=")
        if not (name and equals and directory):
            raise UsageError(
                f"--data-dir {shown(item)}: this does not have the form NAME=DIR.\n"
                "Name the data set, as in --data-dir massive=corpora/massive."
            )
        directories[name] = Path(directory)
    return directories


def name_list(typed: list[str]) -> tuple[str, ...]:
    """`["a", "b"]` → `("a", "b")`."""
    return tuple(typed)


def path_list(typed: list[str]) -> tuple[Path, ...]:
    """`["a", "b"]` → `(Path("a"), Path("b"))`."""
    return tuple(map(Path, typed))


def shown(value: object) -> str:
    """A value for a message: printable, and on one line."""
    text = str(value)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 80 else f"{text[:79]}…"


def flag_of(item: Field[Any]) -> str:
    """The name of a field on the command line: its long flag, or the argument's name."""
    if item.metadata["argument"]:
        return item.name.upper()
    named = [flag for flag in item.metadata["flags"] if flag.startswith("--")]
    return named[0] if named else f"--{kebab(item.name)}"


def require(condition: bool, flag: str, found: object, needed: str) -> None:
    if not condition:
        raise UsageError(f"{flag} {shown(found)}: {needed}.")


def refuse_empty(item: Field[Any], value: object) -> None:
    """Raise UsageError for an empty value: as a path it would be the current directory."""
    blank = item.metadata["blank"]
    if value in ((), []) or any(not (text if blank else text.strip()) for text in _texts(value)):
        raise UsageError(f"{flag_of(item)} is empty: give a value, or leave it out.")


def _texts(value: object) -> Iterator[str]:
    """The strings and paths in a value, as strings."""
    if isinstance(value, (str, Path)):
        yield str(value)
    elif isinstance(value, Mapping):
        yield from _texts([*value.keys(), *value.values()])
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _texts(part)


@cache
def _kinds(config_class: type) -> Mapping[str, Any]:
    """The type of each field, without None."""
    kinds = {}
    for name, hint in get_type_hints(config_class).items():
        united = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        kinds[name] = next(kind for kind in united if kind is not NoneType)
    return kinds


def check_values(config: Any) -> None:
    """Check each field of a config by itself: its type, its range, that it is not empty."""
    config_class: type = type(config)
    kinds = _kinds(config_class)
    for item in fields(config):
        value, kind = getattr(config, item.name), kinds[item.name]
        if value is None:
            continue
        if kind in (int, float):
            check_number(flag_of(item), value, kind, item.metadata["bounds"])
        elif kind is bool:
            require(isinstance(value, bool), flag_of(item), value, "it must be True or False")
        elif get_origin(kind) is Literal:
            choices = ", ".join(get_args(kind))
            require(value in get_args(kind), flag_of(item), value, f"it must be one of {choices}")
        else:
            refuse_empty(item, value)
            for text in _texts(value):
                _check_text(item, text)


def check_number(flag: str, value: Any, kind: type, bounds: Bounds | None) -> None:
    right = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    require(
        right, flag, value, "it must be a whole number" if kind is int else "it must be a number"
    )
    bounds = bounds or Bounds()
    require(bounds.hold(value), flag, value, str(bounds))
    if kind is int and bounds.most is None:
        require(value <= _LARGEST, flag, value, f"it must be at most {_LARGEST}")


def _check_text(item: Field[Any], text: str) -> None:
    """Raise UsageError for text that cannot be part of a file name, a request or a record."""
    flag = flag_of(item)
    if item.metadata["secret"]:
        if not (text.isascii() and text.isprintable()) or " " in text:
            raise UsageError(f"{flag}: it contains blanks or characters that no token has.")
        return
    require("\0" not in text, flag, text, "it contains a NUL character")
    # Bytes of an argument that could not be decoded are surrogates.
    if any("\ud800" <= character <= "\udfff" for character in text):
        encoding = sys.getfilesystemencoding()
        advice = (
            "Rename it to a name in UTF-8."
            if encoding == "utf-8"
            else "Set LC_ALL=C.UTF-8, or PYTHONUTF8=1."
        )
        raise UsageError(
            f"{flag} {shown(text)}: this is not valid {encoding}, the encoding of names on this system.\n"
            f"{advice}"
        )


def kebab(name: str) -> str:
    return name.replace("_", "-")
