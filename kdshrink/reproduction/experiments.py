"""The paper's experiments as data: which cases each compares, and the runs that score a case."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from .plan import Run, Words
from .scales import FRACTIONS, Options, Scale
from .sources import Data, Model

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
    """A model as the paper compares them, and what is told of it.

    Attributes:
        start: One of STARTS, `teacher`, `untrained copy`, `random`, or the tool's own `calibrated`,
            `calibrated, untrained` and `trimmed vocabulary`.
        kd: Whether it is distilled; else it is fine-tuned, or not trained.
        width: `full` or `half` of the teacher's.
        trained_on: `all`, `seen`, `english` (its teacher: seen), or BOTH_ENGLISH.
        fraction: Share of the student's training data.
        measure: `score`, `majority accuracy`, or `loss` (after the share `at` of its steps).
        own: Whether the case is this tool's own and not the paper's.
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
        """Its start, and whether it is distilled."""
        return self.start + (" + KD" if self.kd else "")


@dataclass(frozen=True)
class Experiment:
    """One of the paper's experiments.

    Attributes:
        tables: Numbers of the paper's tables that it makes again, the foremost first.
        section: Which of the paper's settings its students have (section 4.1, 4.2 or 4.3).
        models: The paper's models that it is about; None for all.
        data: The paper's data sets that it is about.
        columns: What a column of its table is: `data` or `start`.
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
            "The copy, untrained",
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


@dataclass(frozen=True)
class Lab:
    """What makes the runs of one model, data set and seed.

    Attributes:
        prefix: What the names of its runs begin with.
        section: The paper's settings of the students: see `Experiment`.
        attention_target: As distill's.
    """

    scale: Scale
    model: Model
    data: Data
    seed: int
    prefix: str
    section: int = 0
    attention_target: str = "scores"

    def scoring_run(self, case: Case) -> Run:
        """The run whose record tells what is told of a case."""
        if case.measure == "loss":
            return self.student(case)
        if case.start in ("untrained copy", "random"):
            return self._score_unseen("copy", self._copy(case), (), self.all_languages)
        if case.start == "calibrated, untrained":
            return self._score_unseen("calibrated", self._calibrated(case), (), self.all_languages)
        model = self.teacher(case) if case.start == "teacher" else self.student(case)
        label = f"test-{self._label(case)}"
        if case.trained_on == "all":
            languages = self.all_languages
            words = (model, *self._read(languages), *_words(self.scale.evaluation))
            return self._run(label, "eval", words, self.data.facts(languages, ("test",)))
        trained = self.data.seen if case.trained_on == "seen" else self.data.english
        return self._score_unseen(self._label(case), model, self.trained(trained), self.data.unseen)

    def why_not(self, case: Case) -> str | None:
        """Why a case cannot be run; None if it can."""
        if case.start == "trimmed vocabulary" and self.scale.trims:
            return "the base's vocabulary is trimmed at this scale already"
        if "english" in case.trained_on and not self.data.english:
            return "no English training data at hand"
        if not self.all_languages:
            return "no training data in the languages of this scale at hand"
        if case.trained_on != "all" and not self.data.unseen:
            return "none of the unseen languages is at hand"
        return None

    def teacher(self, case: Case) -> Run:
        """The teacher of a case, fine-tuned."""
        languages = {"all": self.all_languages, BOTH_ENGLISH: self.data.english}.get(
            case.trained_on, self.trained(self.data.seen)
        )
        group = "english" if case.trained_on == BOTH_ENGLISH else self._group(languages)
        base, facts = self._base()
        options = {**self._eval_steps(0 if case.trained_on == "all" else 1), **self._teacher}
        return self._run(
            f"teacher-{group}-s{self.seed}",
            "finetune",
            (base, *self._read(languages), *_words(options), "--seed", str(self.seed)),
            (*facts, *self.data.facts(languages, ("train", "validation"))),
        )

    def student(self, case: Case) -> Run:
        """The student of a case, trained."""
        teacher = self.teacher(case)
        languages = self.all_languages if case.trained_on == "all" else self.trained(self.data.seen)
        if case.trained_on in ("english", BOTH_ENGLISH):
            languages = self.data.english
        options: dict[str, Any] = {**self._eval_steps(self.section), **self._student}
        if case.fraction < 1:
            options["train-fraction"] = case.fraction
        if self.section == 2:
            options |= self.scale.fractions.get(case.fraction, {})
        how = (*self._read(languages), *_words(options), "--seed", str(self.seed))
        facts = self.data.facts(languages, ("train", "validation"))
        if not case.kd:
            return self._run(self._label(case), "finetune", (self._start(case), *how), facts)
        words: Words = ("--teacher", teacher)
        if case.start == "trimmed vocabulary":
            words = (*words, "--student", self._start(case))
        else:
            words = (*words, "--init", case.start, *self._shape(case))
            if case.start == "from-base":
                base, more = self._base()
                words = (*words, "--base", base)
                facts = (*facts, *more)
        words = (*words, *how, "--no-compare")
        if self.attention_target != "scores":
            words = (*words, "--attention-target", self.attention_target)
        return self._run(self._label(case), "distill", words, facts)

    def _start(self, case: Case) -> Run:
        """The student of a case before it is trained, where a command of its own makes it."""
        if case.start == "from-teacher":
            return self._copy(case)
        shape = self._shape(case)
        label = f"start-{case.start.replace(' ', '-')}{self._width(case)}"
        if case.start == "from-base":
            base, facts = self._base()
            return self._run(label, "shrink", (base, *shape), facts)
        teacher = self.teacher(case)
        label += f"-{self._group_of(case)}-s{self.seed}"
        if case.start == "trimmed vocabulary":
            trimmed: Words = (teacher, *shape, *self._vocabulary(self._everything))
            return self._run(label, "shrink", trimmed, self._vocabulary_facts(self._everything))
        assert case.start == "from-scratch"
        drawn: Words = (teacher, *shape, "--init", "scratch", "--seed", str(self.seed))
        return self._run(label, "shrink", drawn)

    def _copy(self, case: Case) -> Run:
        label = f"copy{self._width(case)}-{self._group_of(case)}-s{self.seed}"
        words: Words = (self.teacher(case), *self._shape(case))
        return self._run(label, "shrink", words)

    def _calibrated(self, case: Case) -> Run:
        languages = self.all_languages
        words: Words = (self.teacher(case), *self._shape(case), "--init", "calibrated")
        length = {name: v for name, v in self._student.items() if name == "max-length"}
        return self._run(
            f"calibrated{self._width(case)}-{self._group_of(case)}-s{self.seed}",
            "shrink",
            (*words, *self._read(languages), *_words(length), "--seed", str(self.seed)),
            self.data.facts(languages, ("train",)),
        )

    def _base(self) -> tuple[str | Path | Run, tuple[str, ...]]:
        """The pretrained model, and what tells which it is."""
        facts: tuple[str, ...] = (f"model {self.model.identity}",)
        if not self.scale.trims or self.data.name == "sample":
            return self.model.argument, facts
        words: Words = (self.model.argument, *self._vocabulary(self._everything))
        facts = (*facts, *self._vocabulary_facts(self._everything))
        return self._run("base", "shrink", words, facts), ()

    def _score_unseen(
        self, label: str, model: Run, seen: tuple[str, ...], unseen: tuple[str, ...]
    ) -> Run:
        """zero-shot of a model, `seen` beside `unseen`."""
        languages = self.data.ordered((*seen, *unseen))
        groups: tuple[str, ...] = ("--unseen-languages", ",".join(unseen))
        if seen:
            groups = ("--seen-languages", ",".join(seen), *groups)
        return self._run(
            f"zero-shot-{label}" if seen else f"test-{label}-s{self.seed}",
            "zero-shot",
            (model, *self._read(languages, listed=True), *groups, *_words(self.scale.evaluation)),
            self.data.facts(languages, ("test",)),
        )

    def _read(self, languages: tuple[str, ...], *, listed: bool = False) -> tuple[str | Path, ...]:
        """What to read. The groups change with --seen-languages; names (`listed`) do not."""
        spec = ",".join(languages) if listed else self.data.spec(languages)
        return ("--data", self.data.name, *self._place(), "--languages", spec)

    def _vocabulary(self, languages: tuple[str, ...]) -> tuple[str | Path, ...]:
        spec = self.data.spec(languages)
        return ("--vocab-from", self.data.name, *self._place(), "--languages", spec)

    def _vocabulary_facts(self, languages: tuple[str, ...]) -> tuple[str, ...]:
        return self.data.facts(languages, ("train", "validation", "test"))

    def _place(self) -> tuple[str | Path, ...]:
        return () if self.data.directory is None else ("--data-dir", self.data.directory)

    def _run(
        self,
        label: str,
        command: str,
        words: Words,
        facts: tuple[str, ...] = (),
    ) -> Run:
        return Run(f"{self.prefix}-{label}", command, words, facts)

    @property
    def all_languages(self) -> tuple[str, ...]:
        languages = self.data.seen if self.scale.all_is_seen else self._everything
        return self.trained(languages)

    @property
    def _everything(self) -> tuple[str, ...]:
        return self.data.ordered((*self.data.seen, *self.data.unseen))

    def trained(self, languages: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in languages if name in self.data.trains)

    def _group(self, languages: tuple[str, ...]) -> str:
        return "seen" if languages == self.trained(self.data.seen) else "all"

    def _group_of(self, case: Case) -> str:
        """What tells the teacher of a case."""
        if case.trained_on == BOTH_ENGLISH:
            return "english"
        return self._group(self.all_languages) if case.trained_on == "all" else "seen"

    def _label(self, case: Case) -> str:
        parts = [case.start.replace(" ", "-") + self._width(case), "kd" if case.kd else ""]
        parts.append(self._group_of(case))
        if case.trained_on == "english":
            parts.append("english")
        if case.fraction < 1:
            parts.append(f"{100 * case.fraction:g}pc")
        return "-".join(filter(None, [*parts, f"s{self.seed}"]))

    @staticmethod
    def _width(case: Case) -> str:
        return "-half" if case.width == "half" else ""

    def _shape(self, case: Case) -> tuple[str, ...]:
        shape: tuple[str, ...] = ("--layers", str(self.model.layers // 2))
        if case.width == "half":
            shape = (*shape, "--hidden-size", str(self.model.hidden_size // 2))
        return shape

    @property
    def _teacher(self) -> Options:
        return self.scale.teacher[self.data.name]

    @property
    def _student(self) -> Options:
        return self.scale.student[self.data.name]

    def _eval_steps(self, section: int) -> Options:
        steps = self.scale.section_eval_steps.get(self.data.name)
        return {} if steps is None else {"eval-steps": steps[section]}


def _words(options: Options) -> Iterator[str]:
    for name, value in options.items():
        yield from (f"--{name}", f"{value:g}" if isinstance(value, float) else str(value))
