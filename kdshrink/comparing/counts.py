"""The counts that a metric is made of, by text, so that it can be computed of any resample of the texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from seqeval.metrics.sequence_labeling import get_entities

Labels = Sequence[Sequence[str | None]]
"""For each text the labels of its words, or its own as the only one; None for a word without a prediction."""


@dataclass(frozen=True)
class Counts:
    """What each text adds to the counts that the F1 of each of C classes is computed from.

    Entity F1 is the F1 of a single class, the entities: C is 1 there.

    Attributes:
        by_text: (n, 3 C) true positives, gold and predicted labels, each by class.
    """

    by_text: sparse.csr_array

    @classmethod
    def of_labels(cls, gold: Labels, predicted: Labels) -> Counts:
        """The counts of macro-F1, as `metrics.text_scores` has it."""
        names = sorted(
            {name for side in (gold, predicted) for text in side for name in text if name}
        )
        ids = {name: i for i, name in enumerate(names)}
        entries = [
            (row, column)
            for row, pair in enumerate(zip(gold, predicted, strict=True))
            for wanted, found in zip(*pair, strict=True)
            for column in _columns(ids, wanted, found)
        ]
        return cls(_table(entries, len(gold), 3 * len(names)))

    @classmethod
    def of_entities(cls, gold: Labels, predicted: Labels) -> Counts:
        """The counts of entity F1, as `metrics.entity_scores` has it."""
        counts = np.zeros((len(gold), 3), np.int64)
        for row, pair in enumerate(zip(gold, predicted, strict=True)):
            wanted, found = (set(get_entities(list(tags))) for tags in pair)
            counts[row] = len(wanted & found), len(wanted), len(found)
        return cls(sparse.csr_array(counts))

    def sums(self, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """(R, 3 C) the counts of texts, each taken as many times as a resample has it.

        Args:
            rows: (m,) the texts that the resamples are drawn from.
            weights: (R, m) how often each resample has each of them.
        """
        return (self.by_text[rows].T @ weights.T).T

    def score(self, rows: np.ndarray) -> float:
        """The metric of some of the texts."""
        return float(f1(self.sums(rows, np.ones((1, len(rows)), np.int64)))[0])


def f1(sums: np.ndarray) -> np.ndarray:
    """(R,) the mean F1 of the classes that are in gold or prediction, of counts (R, 3 C); 0 without any."""
    matched, gold, predicted = np.split(sums, 3, axis=1)
    either = gold + predicted
    by_class = 2 * matched / np.maximum(either, 1)
    return by_class.sum(axis=1) / np.maximum((either > 0).sum(axis=1), 1)


def _columns(ids: dict[str, int], wanted: str | None, found: str | None) -> Iterable[int]:
    """The counts that a word, or a text, raises."""
    if wanted == found:
        yield ids[str(wanted)]
    yield len(ids) + ids[str(wanted)]
    if found is not None:
        yield 2 * len(ids) + ids[found]


def _table(entries: Sequence[tuple[int, int]], rows: int, columns: int) -> sparse.csr_array:
    """How often each (row, column) is among the entries."""
    places = np.array(entries, np.int64).reshape(-1, 2).T
    return sparse.csr_array((np.ones(len(entries), np.int64), tuple(places)), (rows, columns))
