"""Languages by name and code, and the groups of them that --languages selects."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches

from ..errors import DataError
from .registry import NAMED, Unit

GROUPS = ("seen", "unseen", "english", "all")


_CODES = {unit.name: unit.code for data in NAMED.values() for unit in data.units}


def language_of(name: str) -> str:
    """The language of a unit: `de` of `de-DE`, `de_pud` and `german`; else the name as it is."""
    prefix = re.match(r"([a-z]{2,3})(?:[-_]|$)", name.lower())
    return _CODES.get(name) or (prefix.group(1) if prefix else name)


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def find_units(wanted: str, units: Sequence[Unit]) -> list[str]:
    """The units that a name (`de-DE`, `da_ddt`) or a language's code (`de`) selects.

    Raises:
        DataError: Nothing is called so.
    """
    by_name = [unit.name for unit in units if _plain(unit.name) == _plain(wanted)]
    found = by_name or [unit.name for unit in units if unit.code == wanted.lower()]
    if not found:
        names = [unit.name for unit in units]
        close = get_close_matches(wanted, [*names, *GROUPS], n=1, cutoff=0.5)
        guess = f" Did you mean {close[0]}?" if close else ""
        raise DataError(
            f"There is no language {wanted!r} here.{guess}\n"
            f"There are: {', '.join(names)}; and the groups {', '.join(GROUPS)}."
        )
    return found


def select_languages(
    spec: Sequence[str],
    units: Sequence[Unit],
    seen: Collection[str],
    unseen: Collection[str],
) -> tuple[str, ...]:
    """Names of the units that `--languages` asks for, in the data set's order.

    Args:
        spec: Names, codes, or groups of `GROUPS`.
        seen, unseen: Names of the units in the groups of these names.

    Raises:
        DataError: A name is unknown, or a group is empty.
    """
    chosen: set[str] = set()
    for wanted in spec:
        if wanted == "all":
            group = [unit.name for unit in units]
        elif wanted == "seen":
            group = [unit.name for unit in units if unit.name in seen]
        elif wanted == "unseen":
            group = [unit.name for unit in units if unit.name in unseen]
        elif wanted == "english" and not any(unit.name == "english" for unit in units):
            group = [unit.name for unit in units if unit.code == "en"]
        else:
            group = find_units(wanted, units)
        if not group:
            raise DataError(
                f"--languages {wanted}: this data has no such language.\n"
                f"It has: {', '.join(unit.name for unit in units)}."
            )
        chosen.update(group)
    return tuple(unit.name for unit in units if unit.name in chosen)
