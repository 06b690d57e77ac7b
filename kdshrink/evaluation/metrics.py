"""Scores of predictions, by scikit-learn and seqeval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from seqeval.metrics import classification_report, f1_score, precision_score, recall_score
from sklearn import metrics as sklearn_metrics

from ..data.registry import Task
from ..data.tags import OUTSIDE, are_entities

AVERAGING = "macro-F1 over the classes present in gold or prediction"
MODE = "seqeval's default (conlleval), not strict IOB2; micro-averaged over entities"


@dataclass(frozen=True)
class Scores:
    """Scores of one set of examples, in 0 to 1.

    Attributes:
        score: The task's metric: macro-F1, or entity F1.
        details: Accuracy, or precision and recall.
        per_class: F1 by class, or by entity type.
    """

    score: float
    details: Mapping[str, float]
    per_class: Mapping[str, float]


def text_scores(gold: Sequence[str], predicted: Sequence[str | None]) -> Scores:
    """Macro-F1 over the classes present in gold or prediction, and accuracy.

    A prediction of None counts as wrong and belongs to no class.
    """
    names = sorted({*gold, *filter(None, predicted)})
    index: dict[str | None, int] = {name: i for i, name in enumerate(names)}
    index[None] = -1
    # Integers, since scikit-learn would pad every name to the length of the longest.
    codes = [
        np.fromiter((index[name] for name in side), np.int32, len(side))
        for side in (gold, predicted)
    ]
    by_class = sklearn_metrics.f1_score(
        *codes, labels=range(len(names)), average=None, zero_division=0.0
    )
    return Scores(
        score=float(by_class.mean()),
        details={"accuracy": float(sklearn_metrics.accuracy_score(*codes))},
        per_class=dict(zip(names, map(float, by_class), strict=True)),
    )


def entity_scores(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> Scores:
    """Entity F1, precision and recall as seqeval counts them by default, over all entities.

    All are 0 where neither gold nor prediction has an entity.
    """
    lists = [list(tags) for tags in gold], [list(tags) for tags in predicted]
    if all(tag == "O" for side in lists for tags in side for tag in tags):
        # seqeval returns the same zeros, but warns about the mean of an empty list.
        return Scores(score=0.0, details={"precision": 0.0, "recall": 0.0}, per_class={})
    report: Mapping[str, Any] = classification_report(*lists, output_dict=True, zero_division=0)
    return Scores(
        score=float(f1_score(*lists, zero_division=0)),
        details={
            "precision": float(precision_score(*lists, zero_division=0)),
            "recall": float(recall_score(*lists, zero_division=0)),
        },
        per_class={
            name: float(row["f1-score"])
            for name, row in report.items()
            if not name.endswith(" avg")
        },
    )


def majority_scores(gold: Sequence[Any], task: Task) -> tuple[float, float]:
    """The metric, and the accuracy, of always predicting the majority class.

    For entities the metric is that of predicting the most frequent entity tag for every word, and the
    accuracy that of predicting the most frequent tag.
    """
    entities = task == "token" and are_entities(set(chain.from_iterable(gold)))
    flat = list(chain.from_iterable(gold)) if task == "token" else gold
    counts = Counter(flat).most_common()
    majority, count = counts[0]
    accuracy = count / len(flat)
    if not entities:
        return text_scores(flat, [majority] * len(flat)).score, accuracy
    tag = next((tag for tag, _ in counts if tag != OUTSIDE), None)
    if tag is None:
        return 0.0, accuracy
    return entity_scores(gold, [[tag] * len(tags) for tags in gold]).score, accuracy
