"""Languages by name and code, and the groups of them that --languages selects."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from functools import cache

from ..errors import DataError, listed
from .registry import NAMED, Unit

GROUPS = ("seen", "unseen", "english", "all")
UNDETERMINED = "und"
"""BCP 47's code for an unknown language: that of custom data without one."""
_UNITS = {unit.name: unit.code for data in NAMED.values() for unit in data.units}
_SAME = {"fil": "tl"}
"""langcodes calls Tagalog Filipino; data sets and the Hub call it by the code of Tagalog."""


@cache
def language_of(name: str) -> str:
    """The ISO 639 code of a language, from a code of any standard, a name, or a data set's name of a unit.

    `de` for `de`, `deu`, `ger`, `de-DE`, `German`, `Deutsch`, and for `de_pud` and `german` of named data
    sets; `und` for any other text. `cmn` and `arb` are `zh` and `ar`.
    """
    code = _UNITS.get(name) or _by_tag(name) or _by_name(name)
    if code is None and (prefix := re.match(r"([A-Za-z]{2,3})[-_]", name)):
        code = _by_tag(prefix.group(1))
    return code or UNDETERMINED


def _by_tag(tag: str) -> str | None:
    import langcodes  # not above: its tables take long to load, and many commands name no language

    try:
        known = langcodes.Language.get(tag)
        standard = langcodes.standardize_tag(tag, macro=True)
    except langcodes.LanguageTagError:
        return None
    code = standard.split("-")[0]
    return _SAME.get(code, code) if langcodes.tag_is_valid(known.language or "") else None


def _by_name(name: str) -> str | None:
    import langcodes

    try:
        return _by_tag(str(langcodes.find(name)))
    except LookupError:
        return None


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def find_units(wanted: str, units: Sequence[Unit]) -> list[str]:
    """The units that a name (`de-DE`, `da_ddt`) or a language (`de`, `deu`, `German`) selects.

    Raises:
        DataError: No unit has this name or language.
    """
    by_name = [unit.name for unit in units if _plain(unit.name) == _plain(wanted)]
    language = language_of(wanted)
    by_language = [
        unit.name
        for unit in units
        if language == language_of(unit.code) and language != UNDETERMINED
    ]
    found = by_name or by_language
    if not found:
        names = [unit.name for unit in units]
        close = get_close_matches(wanted, [*names, *GROUPS], n=1, cutoff=0.5)
        guess = f" Did you mean {close[0]}?" if close else ""
        raise DataError(
            f"There is no language {wanted!r} here.{guess}\n"
            f"There are: {listed(names)}; and the groups {', '.join(GROUPS)}."
        )
    return found


def select_languages(
    spec: Sequence[str],
    units: Sequence[Unit],
    seen: Collection[str],
    unseen: Collection[str],
) -> tuple[str, ...]:
    """The names of the units that `--languages` selects, in the data set's order.

    Args:
        spec: Names, codes, or groups of `GROUPS`.
        seen, unseen: The units of the groups `seen` and `unseen`.

    Raises:
        DataError: A name is unknown, or a group is empty.
    """
    groups = {"all": {unit.name for unit in units}, "seen": set(seen), "unseen": set(unseen)}
    if not any(unit.name == "english" for unit in units):
        groups["english"] = {unit.name for unit in units if language_of(unit.code) == "en"}
    chosen: set[str] = set()
    for wanted in spec:
        group = groups[wanted] if wanted in groups else set(find_units(wanted, units))
        if not group:
            raise DataError(
                f"--languages {wanted}: this data has no such language.\n"
                f"It has: {listed(unit.name for unit in units)}."
            )
        chosen |= group
    return tuple(unit.name for unit in units if unit.name in chosen)


def comparable(name: str) -> str:
    """A key that is equal for two names of one language: its code, or the name if it has none."""
    code = language_of(name)
    return name if code == UNDETERMINED else code
