"""Infers the labels of a data set, over all its files and splits, and matches them with a model's."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path

from ..errors import DataError, listed, short

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?")
"""A number as files write ratings; one with a leading zero, such as 01, is a code instead."""
_MOST_FRACTIONS = 10
"""With more distinct labels than this, fractions are measurements rather than classes."""
_BOOLEANS = {"true", "false"}


def number_of(label: str) -> Decimal | None:
    """The value of a label that is a number; None for any other."""
    return Decimal(label) if _NUMBER.fullmatch(label) else None


def are_numbers(labels: Iterable[str]) -> bool:
    return all(number_of(label) is not None for label in labels)


def class_of_each(labels: Iterable[str], place: Callable[[str], str]) -> dict[str, str]:
    """The class of each label: the label itself, or, if all are numbers, the class of its value.

    A class of numbers has the name of its shortest spelling: `4` for `4`, `4.0` and `4.00`.

    Args:
        place: Gives the position of a label, for messages.

    Raises:
        DataError: Numbers are spelled in several ways and some labels are not numbers, or there are both
            booleans and numbers, or the numbers are measurements rather than classes.
    """
    found = sorted(set(labels))
    by_value: dict[Decimal, list[str]] = {}
    for label in found:
        if (value := number_of(label)) is not None:
            by_value.setdefault(value, []).append(label)
    others = [label for label in found if number_of(label) is None]
    if by_value and (booleans := [label for label in others if label.lower() in _BOOLEANS]):
        number = next(iter(by_value.values()))[0]
        raise DataError(
            f"{place(number)}: the label is {number!r}, and elsewhere {booleans[0]!r}.\n"
            "Give the class of each one with --label-map."
        )
    if others:
        for spelled in by_value.values():
            if len(spelled) > 1:
                raise DataError(
                    f"{place(spelled[1])}: one number is spelled as {listed(map(repr, spelled))}, and "
                    f"other labels are not numbers, such as {short(others[0])!r}.\n"
                    "Use one spelling, or give the class of each one with --label-map."
                )
        return {label: label for label in found}
    fractions = [value for value in by_value if value != value.to_integral_value()]
    if fractions and len(by_value) > _MOST_FRACTIONS:
        raise DataError(
            f"{place(by_value[fractions[0]][0])}: the labels are {len(by_value):,} different numbers, "
            f"such as {fractions[0]}. These are measurements, and regression is not supported.\n"
            "Map them to classes first, with --label-map or in the file."
        )
    return {
        label: min(spelled, key=lambda one: (len(one), one))
        for spelled in by_value.values()
        for label in spelled
    }


def in_order(classes: Iterable[str]) -> tuple[str, ...]:
    """Classes sorted by value if all are numbers, else as text."""
    names = set(classes)
    if are_numbers(names):
        return tuple(sorted(names, key=Decimal))
    return tuple(sorted(names))


def read_label_map(path: Path | None) -> dict[str, str]:
    """Read a JSON file of new label names by the old ones; empty without a file.

    Raises:
        DataError: The file is not a JSON object of names, or has a name twice.
    """
    if path is None:
        return {}

    def pairs(found: list[tuple[str, object]]) -> dict[str, str]:
        names: dict[str, str] = {}
        for old, new in found:
            if old in names:
                raise DataError(f"--label-map {path}: it has {old!r} twice.")
            if not isinstance(new, str):
                raise DataError(
                    f"--label-map {path}: the new name of {old!r} is {new!r}, which is not a name."
                )
            names[old.strip()] = new.strip()
        return names

    try:
        content = json.loads(
            path.read_text(encoding="utf-8-sig"),
            object_pairs_hook=pairs,
            parse_int=str,
            parse_float=str,
        )
    except FileNotFoundError:
        raise DataError(f"--label-map {path}: there is no such file.") from None
    except ValueError as error:
        raise DataError(f"--label-map {path}: this is not JSON ({error}).") from error
    if not isinstance(content, dict) or not content:
        raise DataError(
            f"--label-map {path}: this is not a JSON object.\n"
            'Write {"old name": "new name", …}, such as {"0": "negative", "1": "positive"}.'
        )
    return content


def match_labels(
    labels: Sequence[str],
    model_labels: Sequence[str],
    *,
    data: str = "the data",
    model: str = "the model",
) -> list[int]:
    """The model's class id of each label of the data, matched by name, or by value if all are numbers.

    Args:
        data, model: Their names in messages.

    Raises:
        DataError: The model does not know a label of the data.
    """
    ids: Mapping[object, int] = {name: i for i, name in enumerate(model_labels)}
    names: Sequence[object] = labels
    if are_numbers(labels) and are_numbers(model_labels):
        ids = {number_of(name): i for i, name in enumerate(model_labels)}
        names = [number_of(name) for name in labels]
    unknown = [label for label, name in zip(labels, names, strict=True) if name not in ids]
    if unknown:
        raise DataError(
            f"These labels of {data} are unknown to {model}: {listed(unknown)}.\n"
            f"It knows: {listed(model_labels)}. The data has: {listed(labels)}.\n"
            "Labels are matched by name; --label-map FILE renames those of either."
        )
    return [ids[name] for name in names]


def names_in_data(labels: Sequence[str], model_labels: Sequence[str]) -> list[str | None]:
    """The names of a model's classes; those of the data, where numbers match by value: `4` for `4.0`."""
    names: list[str | None] = list(model_labels)
    if are_numbers(labels) and are_numbers(model_labels):
        for name, index in zip(labels, match_labels(labels, model_labels), strict=True):
            names[index] = name
    return names
