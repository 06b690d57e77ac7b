"""Scores of a model, by language."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .metrics import AVERAGING, MODE


@dataclass(frozen=True)
class LanguageScore:
    score: float
    examples: int


_OPTIONAL = ("cut_off_words", "cut_off_texts", "words_without_tokens", "split", "tag_scheme")


@dataclass(frozen=True)
class EvalResult:
    """Scores of one model on one split.

    Attributes:
        metric: macro_f1 or entity_f1, or negative_loss where the data has no labels.
        score: The metric over the examples of all languages.
        details: Accuracy, or precision and recall, over the examples of all languages.
        mean_over_languages: Mean of the languages' scores.
        cut_off_words: Words beyond --max-length, counted as missed; None for text tasks.
        cut_off_texts: Texts that are longer than --max-length; None for token tasks.
        words_without_tokens: Words for which the tokenizer gives no token, counted as missed.
        split: The split that was scored, or "all" for a single file; None if unknown.
        tag_scheme: The scheme that the data's entity tags were written in.
    """

    metric: str
    score: float
    details: Mapping[str, float]
    mean_over_languages: float
    per_language: Mapping[str, LanguageScore]
    examples: int
    examples_per_second: float
    cut_off_words: int | None = None
    cut_off_texts: int | None = None
    words_without_tokens: int | None = None
    per_class: Mapping[str, float] | None = None
    split: str | None = None
    tag_scheme: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The keys of --json."""
        result: dict[str, Any] = {"metric": self.metric, "score": self.score, **self.details}
        if self.metric == "macro_f1":
            result["averaging"] = AVERAGING
        elif self.metric == "entity_f1":
            result["mode"] = MODE
        result |= {
            "mean_over_languages": self.mean_over_languages,
            "per_language": {
                name: {"score": row.score, "examples": row.examples}
                for name, row in self.per_language.items()
            },
            "examples": self.examples,
            "examples_per_second": round(self.examples_per_second, 3),
        }
        for name in _OPTIONAL:
            if (value := getattr(self, name)) is not None:
                result[name] = value
        if self.per_class is not None:
            result["per_class"] = dict(self.per_class)
        return result

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> EvalResult:
        """Undo `to_dict`."""
        return cls(
            metric=content["metric"],
            score=content["score"],
            details={k: content[k] for k in ("accuracy", "precision", "recall") if k in content},
            mean_over_languages=content["mean_over_languages"],
            per_language={k: LanguageScore(**row) for k, row in content["per_language"].items()},
            examples=content["examples"],
            examples_per_second=content["examples_per_second"],
            per_class=content.get("per_class"),
            **{name: content.get(name) for name in _OPTIONAL},
        )
