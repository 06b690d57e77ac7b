"""Scores of several models on the same texts, and how they differ from the baseline's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..evaluation.groups import LanguageGroups
from .bootstrap import Difference, difference, resampled_scores
from .counts import Counts, Labels

_POOLED, _SEEN, _UNSEEN = "all languages", "seen languages", "unseen languages"


@dataclass(frozen=True)
class GroupScore:
    """A model's score on some of the texts.

    Attributes:
        examples: The number of texts.
        difference: From the baseline's score on them.
    """

    score: float
    examples: int
    difference: Difference

    def to_dict(self) -> dict[str, Any]:
        return {
            "score": self.score,
            "examples": self.examples,
            "difference": self.difference.to_dict(),
        }


@dataclass(frozen=True)
class ModelScores:
    """The scores of one model.

    Attributes:
        seen, unseen: None where none of these languages is in the data, or it is not known which they are.
        worst: The language of which least is kept, and the share of the baseline's score that is; None for the
            baseline, and where its scores are 0.
        agreement: The share of texts, or words, that get the label that the baseline gives.
    """

    pooled: GroupScore
    seen: GroupScore | None
    unseen: GroupScore | None
    per_language: Mapping[str, GroupScore]
    worst: tuple[str, float] | None
    agreement: float

    def to_dict(self) -> dict[str, Any]:
        worst = None
        if self.worst is not None:
            worst = {"language": self.worst[0], "share": self.worst[1]}
        return {
            **self.pooled.to_dict(),
            "seen": None if self.seen is None else self.seen.to_dict(),
            "unseen": None if self.unseen is None else self.unseen.to_dict(),
            "worst_language": worst,
            "agreement": self.agreement,
            "per_language": {name: row.to_dict() for name, row in self.per_language.items()},
        }


@dataclass(frozen=True)
class ScoredTexts:
    """Texts that models are scored on.

    Attributes:
        gold: Their labels.
        codes: (n,) the language of each, as an index into `languages`.
        groups: Which languages are seen and unseen; None where that is not known.
        entities: Whether the labels are entity tags, in IOB2.
    """

    gold: Labels
    codes: np.ndarray
    languages: Sequence[str]
    groups: LanguageGroups | None
    entities: bool

    def compare(
        self, predicted: Mapping[str, Labels], baseline: str, seed: int
    ) -> dict[str, ModelScores]:
        """The scores of each model, by its name.

        Args:
            predicted: The labels that each model gives, as `gold`; entity tags in IOB2.
            seed: Of the resamples.
        """
        count = Counts.of_entities if self.entities else Counts.of_labels
        counts = {name: count(self.gold, labels) for name, labels in predicted.items()}
        groups = self._groups()
        resampled = resampled_scores([*counts.values()], self.codes, groups, seed=seed)
        place = [*counts].index(baseline)
        found: dict[str, dict[str, GroupScore]] = {name: {} for name in counts}
        for group, codes in groups.items():
            rows = np.flatnonzero(np.isin(self.codes, codes))
            scores = {name: one.score(rows) for name, one in counts.items()}
            differences = resampled[group] - resampled[group][place]
            for name, drawn in zip(counts, differences, strict=True):
                apart = difference(scores[name] - scores[baseline], drawn)
                found[name][group] = GroupScore(scores[name], len(rows), apart)
        return {
            name: self._of_model(
                rows,
                None if name == baseline else found[baseline],
                _agreement(predicted[name], predicted[baseline]),
            )
            for name, rows in found.items()
        }

    def _groups(self) -> dict[str, Sequence[int]]:
        """The codes of the languages by what is scored as one: all, the seen, the unseen, each."""
        code = {name: i for i, name in enumerate(self.languages)}
        named: dict[str, Sequence[str]] = {_POOLED: self.languages}
        if self.groups is not None:
            named |= {_SEEN: self.groups.seen, _UNSEEN: self.groups.unseen}
        groups = {group: [code[name] for name in names] for group, names in named.items() if names}
        return {**groups, **{_of(name): [i] for name, i in code.items()}}

    def _of_model(
        self,
        rows: Mapping[str, GroupScore],
        baseline: Mapping[str, GroupScore] | None,
        agreement: float,
    ) -> ModelScores:
        kept = {
            name: rows[_of(name)].score / baseline[_of(name)].score
            for name in self.languages
            if baseline is not None and baseline[_of(name)].score > 0
        }
        return ModelScores(
            pooled=rows[_POOLED],
            seen=rows.get(_SEEN),
            unseen=rows.get(_UNSEEN),
            per_language={name: rows[_of(name)] for name in self.languages},
            worst=min(kept.items(), key=lambda item: item[1]) if kept else None,
            agreement=agreement,
        )


def _of(language: str) -> str:
    """The name of the group of one language, which no other group has."""
    return f"language {language}"


def _agreement(one: Labels, other: Labels) -> float:
    equal = [a == b for pair in zip(one, other, strict=True) for a, b in zip(*pair, strict=True)]
    return sum(equal) / len(equal)
