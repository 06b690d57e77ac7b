"""How a field of a config is declared, typed and checked; nothing here imports torch."""

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
"""What the libraries hold counts in."""


@dataclass(frozen=True)
class Bounds:
    """Between which numbers a value must lie; a number must be finite in any case."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def hold(self, number: float) -> bool:
        number = int(number) if isinstance(number, Integral) else float(number)
        # Compared so that NaN holds nowhere.
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
        told = [f"{word} {limit:.10g}" for word, limit in words.items() if limit is not None]
        if self.most is self.below is None:
            told.append("finite")
        return "it must be " + " and ".join(told)


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
    """Declare a field and how the command line shows it.

    Args:
        help: The one documentation of the field.
        default: Its default, or what makes it (a type such as dict); without one it is required.
        flags: Flags besides or instead of the one that follows from the name.
        argument: A positional argument instead of a flag.
        parse: Turns what was typed (a string, or a list of them if repeatable) into the value.
        repeatable: The flag may be given several times.
        secret: The value is never shown: not in the config's repr, not in a record.
        metavar: What stands for the value in the help, where its type says too little.
        bounds: Between which numbers the value must lie.
        blank: Whether the value may be white space alone.
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
                f"--weight {shown(item)}: this is not TERM=NUMBER.\n"
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
                f"--data-dir {shown(item)}: this is not NAME=DIR.\n"
                "Name the data set, as in --data-dir massive=corpora/massive."
            )
        directories[name] = Path(directory)
    return directories


def path_list(typed: list[str]) -> tuple[Path, ...]:
    """`["a", "b"]` → `(Path("a"), Path("b"))`."""
    return tuple(map(Path, typed))


def shown(value: object) -> str:
    """A value as a message shows it: printable, and on one line."""
    text = str(value)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 80 else f"{text[:79]}…"


def flag_of(item: Field[Any]) -> str:
    """What a user calls a field: its long flag, or the argument's name."""
    if item.metadata["argument"]:
        return item.name.upper()
    named = [flag for flag in item.metadata["flags"] if flag.startswith("--")]
    return named[0] if named else f"--{kebab(item.name)}"


def require(condition: bool, flag: str, found: object, needed: str) -> None:
    if not condition:
        raise UsageError(f"{flag} {shown(found)}: {needed}.")


def refuse_empty(item: Field[Any], value: object) -> None:
    """Raise UsageError for a value of nothing, which as a path would be the current directory."""
    blank = item.metadata["blank"]
    if value in ((), []) or any(not (text if blank else text.strip()) for text in _texts(value)):
        raise UsageError(f"{flag_of(item)} is empty: give a value, or leave it out.")


def _texts(value: object) -> Iterator[str]:
    """The strings and paths that a value is made of."""
    if isinstance(value, (str, Path)):
        yield str(value)
    elif isinstance(value, Mapping):
        yield from _texts([*value.keys(), *value.values()])
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _texts(part)


@cache
def _kinds(config_class: type) -> Mapping[str, Any]:
    """The type of each field, None left out."""
    kinds = {}
    for name, hint in get_type_hints(config_class).items():
        united = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        kinds[name] = next(kind for kind in united if kind is not NoneType)
    return kinds


def check_values(config: Any) -> None:
    """Check each field of a config by itself: its type, its bounds, that it says anything at all."""
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
    """Raise UsageError for text that no file's name, no request and no record can hold."""
    flag = flag_of(item)
    if item.metadata["secret"]:
        if not (text.isascii() and text.isprintable()) or " " in text:
            raise UsageError(f"{flag}: it holds blanks or characters that no token has.")
        return
    require("\0" not in text, flag, text, "it holds a NUL character")
    # What could not be decoded stands in an argument as surrogates.
    if any("\ud800" <= character <= "\udfff" for character in text):
        encoding = sys.getfilesystemencoding()
        advice = (
            "Rename it to a name in UTF-8."
            if encoding == "utf-8"
            else "Set LC_ALL=C.UTF-8, or PYTHONUTF8=1."
        )
        raise UsageError(
            f"{flag} {shown(text)}: this cannot be read as {encoding}, which is what names are in here.\n"
            f"{advice}"
        )


def kebab(name: str) -> str:
    return name.replace("_", "-")
