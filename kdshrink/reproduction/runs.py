"""The runs of a case, as kdshrink commands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .experiments import BOTH_ENGLISH, Case
from .inputs import Data, Model
from .plan import Run, Words
from .scales import Options, Scale


@dataclass(frozen=True)
class Lab:
    """Makes the runs of one model, data set and seed.

    Attributes:
        prefix: The first part of the names of its runs.
        section: The section of the paper with the settings of the students: see `Experiment`.
        attention_target: As of distill.
    """

    scale: Scale
    model: Model
    data: Data
    seed: int
    prefix: str
    section: int = 0
    attention_target: str = "probabilities"

    def scoring_run(self, case: Case) -> Run:
        """The run whose record has the figure of a case."""
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
            return "at this scale the base's vocabulary is always trimmed"
        if "english" in case.trained_on and not self.data.english:
            return "no English training data is available"
        if not self.all_languages:
            return "no training data in the languages of this scale is available"
        if case.trained_on != "all" and not self.data.unseen:
            return "none of the unseen languages is available"
        return None

    def teacher(self, case: Case) -> Run:
        """The run that fine-tunes the teacher of a case."""
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
        """The run that trains the student of a case."""
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
        if not case.own:
            words = (*words, "--recipe", "paper")
        if self.attention_target != "probabilities":
            words = (*words, "--attention-target", self.attention_target)
        return self._run(self._label(case), "distill", words, facts)

    def _start(self, case: Case) -> Run:
        """The run that makes the student of a case before its training, for starts that need one."""
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
        """The pretrained model, and the facts that identify it."""
        facts: tuple[str, ...] = (f"model {self.model.identity}",)
        if not self.scale.trims or self.data.name == "sample":
            return self.model.argument, facts
        words: Words = (self.model.argument, *self._vocabulary(self._everything))
        facts = (*facts, *self._vocabulary_facts(self._everything))
        return self._run("base", "shrink", words, facts), ()

    def _score_unseen(
        self, label: str, model: Run, seen: tuple[str, ...], unseen: tuple[str, ...]
    ) -> Run:
        """The zero-shot run of a model on the languages `seen` and `unseen`."""
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
        """The arguments that select data and languages: by group, or by name if `listed`."""
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
        """The part of a label that identifies the teacher of a case."""
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
