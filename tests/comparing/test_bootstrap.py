"""Counts and intervals against plain loops, and against the metrics that eval computes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from kdshrink.comparing.bootstrap import difference, resampled_scores
from kdshrink.comparing.counts import Counts
from kdshrink.comparing.scores import ScoredTexts
from kdshrink.evaluation.groups import LanguageGroups
from kdshrink.evaluation.metrics import entity_scores, text_scores

from ..helpers.models import TAGS

CLASSES = ["a", "b", "c", "rare"]


def plain_macro_f1(gold: Sequence[str], predicted: Sequence[str | None]) -> float:
    """Mean F1 of the classes that occur, one class after the other."""
    matched = Counter(g for g, p in zip(gold, predicted, strict=True) if g == p)
    of_gold, of_predicted = Counter(gold), Counter(p for p in predicted if p is not None)
    names = {*of_gold, *of_predicted}
    return sum(2 * matched[n] / (of_gold[n] + of_predicted[n]) for n in names) / len(names)


def plain_entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Entities of IOB2 tags: I- goes on with its type, and begins an entity elsewhere."""
    found, begin, kind = set(), 0, ""
    for place, tag in enumerate([*tags, "O"]):
        if kind and tag != f"I-{kind}":
            found.add((kind, begin, place))
            kind = ""
        if tag != "O" and not kind:
            begin, kind = place, tag[2:]
    return found


def plain_entity_f1(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    pairs = [(plain_entities(g), plain_entities(p)) for g, p in zip(gold, predicted, strict=True)]
    either = sum(len(g) + len(p) for g, p in pairs)
    return 2 * sum(len(g & p) for g, p in pairs) / either if either else 0.0


def labels(count: int, seed: int, noise: float) -> tuple[list[list[str]], list[list[str]]]:
    """Gold labels of texts, and predictions of which a share is drawn at random."""
    rng = random.Random(seed)
    gold = [rng.choices(CLASSES, weights=[9, 6, 5, 1]) for _ in range(count)]
    predicted = [[rng.choice(CLASSES)] if rng.random() < noise else list(label) for label in gold]
    return gold, predicted


def tags(count: int, seed: int) -> tuple[list[list[str]], list[list[str]]]:
    rng = random.Random(seed)
    sides = [[], []]  # type: ignore[var-annotated]
    for _ in range(count):
        length = rng.randint(1, 7)
        for side in sides:
            side.append(rng.choices(TAGS, weights=[6, 2, 2, 2, 2], k=length))
    return sides[0], sides[1]


def repeated(rows: Sequence[Any], weights: np.ndarray) -> list[Any]:
    return [row for row, times in zip(rows, weights, strict=True) for _ in range(times)]


def flat(texts: Sequence[Sequence[Any]]) -> list[Any]:
    return [label for text in texts for label in text]


def test_counts_give_the_metrics_of_eval() -> None:
    gold, predicted = labels(200, 0, 0.4)
    rows = np.arange(200)
    expected = text_scores(flat(gold), flat(predicted)).score
    assert Counts.of_labels(gold, predicted).score(rows) == pytest.approx(expected, abs=1e-12)

    gold, predicted = tags(200, 1)
    words: list[list[str | None]] = [[None, *text[1:]] for text in predicted]
    expected = text_scores(flat(gold), flat(words)).score
    assert Counts.of_labels(gold, words).score(rows) == pytest.approx(expected, abs=1e-12)
    expected = entity_scores(gold, predicted).score
    assert Counts.of_entities(gold, predicted).score(rows) == pytest.approx(expected, abs=1e-12)


def test_no_entities_at_all_score_0() -> None:
    assert Counts.of_entities([["O", "O"]], [["O", "O"]]).score(np.arange(1)) == 0


@pytest.mark.parametrize("entities", [False, True])
def test_the_metric_of_a_resample_is_that_of_the_resampled_texts(entities: bool) -> None:
    gold, predicted = tags(60, 2) if entities else labels(60, 2, 0.5)
    counts = (Counts.of_entities if entities else Counts.of_labels)(gold, predicted)
    strata = np.arange(60) % 3
    seed, resamples = 7, 20
    groups = {"all": [0, 1, 2], "two": [0, 2]}
    found = resampled_scores([counts], strata, groups, seed=seed, resamples=resamples)

    rng = np.random.default_rng(seed)
    drawn = {code: rng.integers(0, 20, (resamples, 20)) for code in range(3)}
    for group, codes in groups.items():
        for number in range(resamples):
            rows = [
                np.flatnonzero(strata == code)[i] for code in codes for i in drawn[code][number]
            ]
            sample = [gold[i] for i in rows], [predicted[i] for i in rows]
            expected = plain_entity_f1(*sample) if entities else plain_macro_f1(*map(flat, sample))
            assert found[group][0, number] == pytest.approx(expected, abs=1e-12)


def test_weights_are_numbers_of_copies() -> None:
    gold, predicted = labels(30, 3, 0.5)
    counts = Counts.of_labels(gold, predicted)
    weights = np.random.default_rng(0).integers(0, 4, (5, 30))
    sums = counts.sums(np.arange(30), weights)
    for row, times in enumerate(weights):
        sample = repeated(gold, times), repeated(predicted, times)
        again = Counts.of_labels(*sample)
        assert again.score(np.arange(len(sample[0]))) == pytest.approx(
            plain_macro_f1(*map(flat, sample)), abs=1e-12
        )
        assert sums[row].sum() == again.by_text.sum()


def test_the_interval_is_that_of_a_slow_bootstrap_of_its_own() -> None:
    """Another generator and plain loops: the ends agree as far as 2,000 resamples can tell."""
    gold, one = labels(300, 4, 0.3)
    _, other = labels(300, 4, 0.45)
    texts = ScoredTexts(gold, np.zeros(300, np.int32), ["de"], None, entities=False)
    found = texts.compare({"one": one, "other": other}, "one", 0)["other"].pooled.difference

    rng, sampled = random.Random(9), []
    for _ in range(2000):
        rows = rng.choices(range(300), k=300)
        scores = [
            plain_macro_f1([gold[i][0] for i in rows], [side[i][0] for i in rows])
            for side in (one, other)
        ]
        sampled.append(scores[1] - scores[0])
    sampled.sort()
    width = sampled[1949] - sampled[50]
    assert found.low == pytest.approx(sampled[50], abs=0.1 * width)
    assert found.high == pytest.approx(sampled[1949], abs=0.1 * width)
    assert found.more_than_chance == (found.high < 0)


def test_the_ends_are_percentiles() -> None:
    found = difference(0.1, np.linspace(-1, 1, 2001))
    assert (found.low, found.high) == pytest.approx((-0.95, 0.95))
    assert not found.more_than_chance


def test_equal_predictions_differ_by_nothing_and_worse_ones_are_found_worse() -> None:
    gold, good = labels(400, 5, 0.1)
    bad = [["a"] if row % 3 else text for row, text in enumerate(good)]
    codes = np.arange(400) % 2
    groups = LanguageGroups(seen=["de"], unseen=["sw"])
    texts = ScoredTexts(gold, codes, ["de", "sw"], groups, entities=False)
    predicted = {"good": good, "again": [list(text) for text in good], "bad": bad}
    scores = texts.compare(predicted, "good", 42)

    same = scores["again"].to_dict()
    nothing = {"value": 0.0, "interval": [0.0, 0.0], "more_than_chance": False}
    assert same["difference"] == same["seen"]["difference"] == nothing
    assert same["agreement"] == 1
    assert same["worst_language"]["share"] == 1
    assert scores["good"].worst is None

    worse = scores["bad"]
    assert worse.pooled.difference.high < 0
    assert worse.pooled.difference.more_than_chance
    assert worse.agreement == sum(a == b for a, b in zip(good, bad, strict=True)) / 400
    shares = {
        name: row.score / scores["good"].per_language[name].score
        for name, row in worse.per_language.items()
    }
    assert worse.worst == min(shares.items(), key=lambda item: item[1])
    # The groups are the languages here.
    assert worse.seen == worse.per_language["de"]
    assert worse.unseen == worse.per_language["sw"]
    assert worse.unseen.examples == 200


def test_seeds_decide_the_draws_and_parts_of_them_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    gold, predicted = labels(90, 6, 0.4)
    counts = [Counts.of_labels(gold, predicted)]
    strata = np.arange(90) % 2

    def draw(seed: int) -> np.ndarray:
        return resampled_scores(counts, strata, {"all": [0, 1]}, seed=seed, resamples=50)["all"]

    first = draw(1)
    assert (first == draw(1)).all()
    assert (first != draw(2)).any()
    monkeypatch.setattr("kdshrink.comparing.bootstrap._AT_ONCE", 200)  # four resamples at once
    assert (first == draw(1)).all()
