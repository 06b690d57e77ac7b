"""The paper's own figures: paper.json, each with the number of its table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

_KEYS = ("model", "data", "start", "width", "kd", "trained_on", "measure")


@cache
def read_paper() -> Mapping[str, Any]:
    """The content of paper.json."""
    text = resources.files(__package__).joinpath("paper.json").read_text(encoding="utf-8")
    return json.loads(text)


def paper_figures(tables: Sequence[str], **wanted: Any) -> list[dict[str, Any]]:
    """All figures of a cell, those of `tables` first and in their order.

    There are several different ones where the paper contradicts itself.
    """
    assert set(wanted) == set(_KEYS)
    found = [
        figure
        for figure in read_paper()["figures"]
        if all(figure[key] == value for key, value in wanted.items())
    ]
    order = {table: rank for rank, table in enumerate(tables)}
    return sorted(found, key=lambda figure: order.get(figure["table"], len(order)))


def contradictions() -> list[list[dict[str, Any]]]:
    """Cells for which the paper's tables give different figures."""
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for figure in read_paper()["figures"]:
        cells.setdefault(tuple(figure[key] for key in _KEYS), []).append(figure)
    return [same for same in cells.values() if len({figure["score"] for figure in same}) > 1]
