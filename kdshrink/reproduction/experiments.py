"""The paper's experiments as data: the cases that each compares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product

from .scales import FRACTIONS

STARTS = ("from-scratch", "from-base", "from-teacher")
BOTH_ENGLISH = "english, teacher too"
_PAPER_DATA = ("massive", "tsm", "universal-ner")
_TRAINED_ON = {
    "all": "all languages",
    "seen": "the seen languages",
    "english": "English (teacher: the seen languages)",
    BOTH_ENGLISH: "English (teacher too)",
}


@dataclass(frozen=True)
class Case:
    """A model that the paper compares with others, and the figure that is reported of it.

    Attributes:
        start: One of STARTS, `teacher`, `untrained copy`, `random`, or, not of the paper, `calibrated`,
            `calibrated, untrained` and `trimmed vocabulary`.
        kd: Whether it is distilled; else it is fine-tuned, or not trained.
        width: Its hidden size: `full`, the teacher's, or `half` of it.
        trained_on: `all`, `seen`, `english` (its teacher: seen), or BOTH_ENGLISH.
        fraction: Share of the student's training data.
        measure: `score`, `majority accuracy`, or `loss` (after the share `at` of its steps).
        own: Whether the case is an addition of this project.
    """

    start: str
    kd: bool = False
    width: str = "full"
    trained_on: str = "all"
    fraction: float = 1.0
    measure: str = "score"
    at: float | None = None
    own: bool = False

    @property
    def label(self) -> str:
        """Its start, with "+ KD" if it is distilled."""
        return self.start + (" + KD" if self.kd else "")


@dataclass(frozen=True)
class Experiment:
    """One of the paper's experiments.

    Attributes:
        tables: Numbers of the paper's tables that it reproduces, the main one first.
        section: The section of the paper (4.1, 4.2 or 4.3) with the settings of its students.
        models: The paper's models that it covers; None for all.
        data: The paper's data sets that it covers.
        columns: What varies over the columns of its table: `data` or `start`.
    """

    name: str
    title: str
    tables: tuple[str, ...]
    cases: tuple[Case, ...]
    section: int = 0
    models: tuple[str, ...] | None = None
    data: tuple[str, ...] = _PAPER_DATA
    columns: str = "data"

    def row_of(self, case: Case) -> str:
        """The label of a case's row."""
        mark = " (not the paper's)" if case.own else ""
        if case.measure == "loss":
            return f"{case.fraction:.0%} of the data, after {case.at:.0%} of the steps"
        if self.columns == "start":
            return f"{case.fraction:.0%} of the data"
        if case.start == "random":
            how = "accuracy" if case.measure == "majority accuracy" else "F1"
            return f"always the majority class, {how}"
        widths = {one.width for one in self.cases if one.start != "teacher"}
        trained = {one.trained_on for one in self.cases}
        parts = [case.label]
        if len(widths) > 1 and case.start != "teacher":
            parts.append(f"{case.width} width")
        if len(trained) > 1:
            parts.append(f"trained on {_TRAINED_ON[case.trained_on]}")
        return ", ".join(parts) + mark


def _with_own(*cases: Case) -> tuple[Case, ...]:
    return tuple(replace(case, own=True) for case in cases)


_SIZES = tuple(Case(start, True, fraction=f) for f in FRACTIONS for start in STARTS)

EXPERIMENTS: Mapping[str, Experiment] = {
    one.name: one
    for one in (
        Experiment(
            "initialization",
            "Where the student starts",
            ("2", "3", "8"),
            (
                Case("teacher"),
                *(Case(start, kd) for start, kd in product(STARTS, (False, True))),
                *_with_own(Case("calibrated", True), Case("trimmed vocabulary", True)),
            ),
        ),
        Experiment(
            "hidden-size",
            "Width",
            ("4", "8"),
            (
                Case("teacher"),
                *(Case(s, kd, w) for s, w, kd in product(STARTS, ("half", "full"), (False, True))),
                *_with_own(Case("calibrated", True, "half"), Case("calibrated", True, "full")),
            ),
        ),
        Experiment(
            "zero-shot",
            "Languages that were never trained on",
            ("5", "9"),
            (
                Case("teacher", trained_on="seen"),
                *(
                    Case(start, kd, trained_on=languages)
                    for languages, start, kd in product(("seen", "english"), STARTS, (False, True))
                ),
                *_with_own(
                    Case("calibrated", True, trained_on="seen"),
                    Case("calibrated", True, trained_on="english"),
                ),
            ),
            section=1,
        ),
        Experiment(
            "english-only",
            "Teacher and student trained on English only",
            ("6",),
            (
                Case("teacher", trained_on=BOTH_ENGLISH),
                Case("from-teacher", True, trained_on=BOTH_ENGLISH),
                Case("from-scratch", True, trained_on=BOTH_ENGLISH),
                *_with_own(Case("calibrated", True, trained_on=BOTH_ENGLISH)),
            ),
            section=1,
        ),
        Experiment(
            "no-finetune",
            "The untrained copy",
            ("7",),
            (
                Case("from-teacher", True),
                Case("untrained copy"),
                Case("random", measure="majority accuracy"),
                Case("random"),
                *_with_own(Case("calibrated, untrained")),
            ),
            models=("XLM-R",),
        ),
        Experiment(
            "data-size",
            "The student's share of the training data",
            (),
            _SIZES,
            section=2,
            models=("XLM-R",),
            data=("massive",),
            columns="start",
        ),
        Experiment(
            "learning-speed",
            "Training loss by step",
            (),
            tuple(
                replace(case, measure="loss", at=at)
                for case in _SIZES
                for at in (0.1, 0.25, 0.5, 1.0)
            ),
            section=2,
            models=("XLM-R",),
            data=("massive",),
            columns="start",
        ),
    )
}
