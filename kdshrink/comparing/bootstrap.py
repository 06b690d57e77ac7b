"""The paired bootstrap: which differences between models chance alone could make, with other texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .counts import Counts, f1

RESAMPLES = 2000
CONFIDENCE = 0.95
_AT_ONCE = 2**22
"""Texts that are drawn at once."""


@dataclass(frozen=True)
class Difference:
    """How far a score is above the baseline's, and the interval of `CONFIDENCE` around it."""

    value: float
    low: float
    high: float

    @property
    def more_than_chance(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "interval": [self.low, self.high],
            "more_than_chance": self.more_than_chance,
        }


def resampled_scores(
    counts: Sequence[Counts],
    strata: np.ndarray,
    groups: Mapping[str, Sequence[int]],
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> dict[str, np.ndarray]:
    """The scores of all models on the same resamples of the texts.

    Texts are drawn with replacement within each stratum, as many as it has: which languages a test set has, and
    how many texts of each, is chosen and not chance (stratified bootstrap: Efron & Tibshirani 1993, An
    Introduction to the Bootstrap, ch. 8). All models are scored on the same draws, since what makes a text hard
    makes it hard for all of them (paired bootstrap: Koehn 2004, Statistical Significance Tests for Machine
    Translation Evaluation). Texts count as independent of each other.

    Args:
        counts: Of each of M models, for the same n texts.
        strata: (n,) the stratum of each text: its language's code.
        groups: Codes by the group that they are scored as one in.

    Returns:
        By group, (M, resamples).
    """
    rng = np.random.default_rng(seed)
    sums = {
        name: [np.zeros((resamples, one.by_text.shape[1]), np.int64) for one in counts]
        for name in groups
    }
    scores: dict[str, np.ndarray] = {}
    for code in np.unique(strata):
        rows = np.flatnonzero(strata == code)
        members = [name for name, codes in groups.items() if code in codes]
        for part, weights in _draws(rng, len(rows), resamples):
            for model, one in enumerate(counts):
                drawn = one.sums(rows, weights)
                for name in members:
                    sums[name][model][part] += drawn
        for name in members:
            if max(groups[name]) == code:  # complete: its sums are not needed any more
                scores[name] = np.stack([f1(of_model) for of_model in sums.pop(name)])
    return scores


def _draws(
    rng: np.random.Generator, size: int, resamples: int
) -> Iterator[tuple[slice, np.ndarray]]:
    """Parts of the resamples, and (part, size) how often each of them has each text."""
    step = max(1, _AT_ONCE // size)
    for begin in range(0, resamples, step):
        part = slice(begin, min(begin + step, resamples))
        count = part.stop - part.start
        drawn = rng.integers(0, size, (count, size)) + size * np.arange(count)[:, None]
        yield part, np.bincount(drawn.ravel(), minlength=count * size).reshape(count, size)


def difference(observed: float, resampled: np.ndarray) -> Difference:
    """A difference of scores, with the percentile interval of its resamples (R,)."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Difference(observed, float(low), float(high))
