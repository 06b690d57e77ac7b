"""Class names from config.json, in any of the forms in which they have been saved."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..errors import ModelError

_MOST_CLASSES = 1_000_000
"""More count as a fault of config.json: the names of all would fill the memory."""


def class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the classes by id; LABEL_0, LABEL_1, … where config.json has none.

    `id2label` may be a mapping from ids to names, a mapping from names (other than numbers) to ids, or a
    list. Without it `label2id` is read, then `num_labels`, which defaults to 2.

    Args:
        config: The content of config.json.

    Raises:
        ModelError: It is damaged or ambiguous.
    """
    stored = config.get("id2label") or config.get("label2id")
    count = config.get("num_labels")
    if count is not None and (not _is_id(count) or not 0 < count <= _MOST_CLASSES):
        raise _unclear("num_labels", f"it is {count!r:.80}")
    if not stored:
        return tuple(f"LABEL_{i}" for i in range(count or 2))
    field = "id2label" if config.get("id2label") else "label2id"
    names = _by_id(field, stored)
    if sorted(names) != list(range(len(names))):
        raise _unclear(field, f"its ids are not 0 to {len(names) - 1}")
    ordered = tuple(names[i] for i in range(len(names)))
    if len(set(ordered)) < len(ordered):
        twice = next(name for name in ordered if ordered.count(name) > 1)
        raise _unclear(field, f"two classes are named {twice!r:.80}")
    if count is not None and count != len(ordered):
        raise _unclear(field, f"it names {len(ordered)} classes, and num_labels is {count}")
    return ordered


def _by_id(field: str, stored: Any) -> dict[int, str]:
    """Class names by id, from a mapping in either direction or a list."""
    if isinstance(stored, list):
        return {i: _name(field, value) for i, value in enumerate(stored)}
    if not isinstance(stored, Mapping):
        raise _unclear(field, f"it is {stored!r:.80}")
    ids_first = all(re.fullmatch(r"[0-9]+", str(key)) for key in stored)
    if field == "label2id" or not ids_first:
        if not all(_is_id(value) for value in stored.values()):
            raise _unclear(field, "it has neither ids for keys nor ids for values")
        if len(set(stored.values())) < len(stored):
            raise _unclear(field, "two of its names have one id")
        return {value: str(key) for key, value in stored.items()}
    names = {int(key): _name(field, value) for key, value in stored.items()}
    if len(names) < len(stored):
        raise _unclear(field, "two of its keys are one id")
    return names


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _name(field: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise _unclear(field, f"a class is named {value!r:.80}")
    return str(value)


def _unclear(field: str, reason: str) -> ModelError:
    return ModelError(
        f"config.json: the {field} cannot be read as names of classes: {reason}.\n"
        'Write id2label as {"0": "name of the first", "1": …}, a name for each row of the head.'
    )
