"""Chooses the teacher's layers and hidden units that the student keeps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ..errors import ShapeError, UsageError

_NAMED = ("uniform", "first", "last", "distilbert")


def choose_layers(
    teacher: int, layers: int | None, layer_map: str | None, *, any_count: bool = False
) -> list[int]:
    """Numbers (1-based) of the teacher's layers, one for each of the student's.

    uniform, the default: student layer i of M takes layer g(i) = i·N/M of the teacher's N, TinyBERT's
    mapping, so that the layer that is copied is the one whose outputs are matched in distillation. first
    and last take M consecutive layers. distilbert takes 1, 3, 5, 8, 10 and 12 of 12, as DistilBERT's
    script does.

    Args:
        teacher: Layers of the teacher, N.
        layers: Layers of the student, M; None for the number that layer_map implies, or all.
        layer_map: A name as above, or a list such as "2,5,8,12".
        any_count: Whether uniform rounds where M does not divide N, instead of raising ShapeError.

    Raises:
        ShapeError: The teacher does not have these layers, or M does not divide N.
        UsageError: layer_map cannot be parsed, or contradicts `layers`.
    """
    if layer_map is not None and layer_map not in _NAMED:
        return _listed(teacher, layers, layer_map)
    if layers is None:
        if layer_map in ("first", "last"):
            raise UsageError(f"--layer-map {layer_map} needs --layers: how many to take.")
        layers = 6 if layer_map == "distilbert" else teacher
    if layers > teacher:
        raise ShapeError(f"--layers {layers}: the teacher has only {teacher} layers.")
    if layer_map == "first":
        return list(range(1, layers + 1))
    if layer_map == "last":
        return list(range(teacher - layers + 1, teacher + 1))
    if layer_map == "distilbert":
        if (teacher, layers) != (12, 6):
            raise ShapeError(
                f"--layer-map distilbert cuts 12 layers to 6, and this would be {teacher} to {layers}.\n"
                "Name the layers, as in --layer-map 1,4,8,12."
            )
        return [1, 3, 5, 8, 10, 12]
    if teacher % layers and any_count:
        return spread(teacher, layers)
    if teacher % layers:
        fitting = [count for count in range(1, teacher + 1) if teacher % count == 0]
        raise ShapeError(
            f"--layers {layers}: it does not divide the teacher's {teacher} layers.\n"
            f"These do: {', '.join(map(str, fitting))}. For others say which layers to take with "
            f"--layer-map, such as {','.join(map(str, spread(teacher, layers)))}."
        )
    return [i * teacher // layers for i in range(1, layers + 1)]


def spread(teacher: int, layers: int) -> list[int]:
    """Numbers of M layers spread as evenly as possible over N: round(i·N/M)."""
    return [max(1, round(i * teacher / layers)) for i in range(1, layers + 1)]


def _listed(teacher: int, layers: int | None, layer_map: str) -> list[int]:
    try:
        chosen = [int(part) for part in layer_map.split(",")]
    except ValueError:
        raise UsageError(
            f"--layer-map {layer_map}: this is neither a list of numbers nor the name of a map.\n"
            f"Give {', '.join(_NAMED)}, or a list such as 2,4,6."
        ) from None
    if layers is not None and layers != len(chosen):
        raise UsageError(
            f"--layers {layers}, but --layer-map {layer_map} names {len(chosen)} layers."
        )
    _check(teacher, chosen, layer_map)
    return chosen


def _check(teacher: int, chosen: Sequence[int], layer_map: str) -> None:
    outside = [number for number in chosen if not 1 <= number <= teacher]
    if outside:
        raise ShapeError(
            f"--layer-map {layer_map}: the teacher's layers are 1 to {teacher}, and "
            f"{', '.join(map(str, outside))} is none of them."
        )
    if any(a >= b for a, b in pairwise(chosen)):
        raise ShapeError(
            f"--layer-map {layer_map}: the numbers must be ascending, without repeats."
        )


def even_indices(size: int, target: int) -> list[int]:
    """Indices of `target` units spread evenly over `size` (Xu et al. 2024, weight selection).

    Every (size/target)-th from the first where target divides size; else `target` evenly spaced numbers
    from the first to the last, rounded (halves to the even neighbour).
    """
    if size % target == 0:
        return list(range(0, size, size // target))
    return np.round(np.linspace(0, size - 1, target)).astype(int).tolist()
