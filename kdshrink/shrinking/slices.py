"""Which units of a dimension a narrower student takes."""

from __future__ import annotations

import numpy as np


def even_indices(size: int, target: int) -> list[int]:
    """Indices of `target` units spread evenly over `size` (Xu et al. 2024, weight selection).

    Every (size/target)-th from the first where target divides size, else a rounded even spread from
    the first to the last, halves to the even neighbour.
    """
    if size % target == 0:
        return list(range(0, size, size // target))
    return np.round(np.linspace(0, size - 1, target)).astype(int).tolist()
