"""The scales of a reproduction: the paper's settings, an hour on two cores, or minutes on the sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

Options = Mapping[str, int | float | str]
"""Options of a command, without the dashes."""

ScaleName = Literal["full", "small", "sample"]
FRACTIONS = (0.01, 0.05, 0.1, 0.2, 1.0)


@dataclass(frozen=True)
class Scale:
    """Settings of all runs of a scale.

    Attributes:
        models, data, seeds: The defaults.
        languages: Seen and unseen languages of a data set, if they differ from the data set's lists.
        all_is_seen: Whether "all languages" means the seen ones, so that experiments share teachers.
        trims: Whether the base's vocabulary is trimmed to the data first.
        teacher, student: Training options, by data set.
        fractions: Training options that depend on the share of the data.
        section_eval_steps: Evaluation steps in the paper's sections 4.1, 4.2 and 4.3, by data set.
        evaluation: Options of eval and zero-shot.
    """

    name: ScaleName
    models: tuple[str, ...]
    data: tuple[str, ...]
    seeds: tuple[int, ...]
    teacher: Mapping[str, Options]
    student: Mapping[str, Options]
    languages: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = field(default_factory=dict)
    all_is_seen: bool = True
    trims: bool = False
    fractions: Mapping[float, Options] = field(default_factory=dict)
    section_eval_steps: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    evaluation: Options = field(default_factory=dict)

    def with_steps(self, teacher: int | None, student: int | None) -> Scale:
        """The scale with other numbers of steps, and evaluations and checkpoints adapted to them."""

        def cut(options: Options, steps: int | None) -> Options:
            if steps is None:
                return options
            spaced = {
                name: min(int(options[name]), steps)
                for name in ("eval-steps", "save-steps", "warmup-steps")
                if name in options
            }
            return {**options, **spaced, "max-steps": steps}

        return replace(
            self,
            teacher={name: cut(options, teacher) for name, options in self.teacher.items()},
            student={name: cut(options, student) for name, options in self.student.items()},
            fractions={
                fraction: cut(options, student) for fraction, options in self.fractions.items()
            },
        )


_FULL = Scale(
    name="full",
    models=("xlm-roberta-base", "microsoft/mdeberta-v3-base"),
    data=("massive", "tsm", "universal-ner"),
    seeds=(44, 55, 66),
    teacher={"massive": {}, "tsm": {}, "universal-ner": {}, "sample": {}},
    student={"massive": {}, "tsm": {}, "universal-ner": {}, "sample": {}},
    all_is_seen=False,
    section_eval_steps={
        "massive": (5000, 5000, 100),
        "tsm": (500, 250, 60),
        "universal-ner": (500, 250, 60),
        "sample": (50, 50, 50),
    },
)

_TEXTS: Options = {
    "learning-rate": 2e-4,
    "warmup-steps": 20,
    "batch-size": 32,
    "max-length": 24,
    "max-eval-samples": 100,
    "logging-steps": 10,
    # In a run of a few hundred steps dropout costs more than it gains by regularization.
    "dropout": 0,
}
_TWEETS: Options = {**_TEXTS, "learning-rate": 1e-4, "max-length": 40}
_WORDS: Options = {**_TEXTS, "learning-rate": 1.2e-4, "batch-size": 16, "max-length": 40}
_STUDENT: Options = {"max-steps": 300, "eval-steps": 100, "save-steps": 100}
_TRY: Options = {
    "learning-rate": 1e-3,
    "warmup-steps": 10,
    "batch-size": 16,
    "max-length": 32,
    "max-eval-samples": 60,
    "logging-steps": 5,
}

_SMALL = Scale(
    name="small",
    models=(),
    data=("massive", "tsm", "universal-ner"),
    seeds=(44,),
    languages={
        "massive": (
            ("ar-SA", "de-DE", "en-US", "es-ES", "ru-RU", "zh-CN"),
            ("nl-NL", "pt-PT", "sw-KE", "th-TH"),
        ),
        "tsm": (("arabic", "english", "german", "spanish"), ("italian", "portuguese")),
        "universal-ner": (
            ("da_ddt", "en_ewt", "pt_bosque", "sv_talbanken"),
            ("de_pud", "sr_set", "zh_pud"),
        ),
    },
    trims=True,
    teacher={
        "massive": {
            **_TEXTS,
            **{"batch-size": 40, "max-steps": 825, "eval-steps": 275, "save-steps": 275},
        },
        "tsm": {**_TWEETS, "max-steps": 400, "eval-steps": 100, "save-steps": 200},
        "universal-ner": {
            **_WORDS,
            **{"warmup-steps": 40, "max-steps": 1000, "eval-steps": 250, "save-steps": 250},
        },
        "sample": {**_TRY, "max-steps": 200, "eval-steps": 50, "save-steps": 100},
    },
    student={
        "massive": {**_TEXTS, **_STUDENT},
        "tsm": {**_TWEETS, **_STUDENT},
        "universal-ner": {**_WORDS, **_STUDENT},
        "sample": {**_TRY, **_STUDENT},
    },
    fractions={
        fraction: {"max-steps": steps, "eval-steps": steps // 4, "save-steps": steps // 2}
        for fraction, steps in zip(FRACTIONS, (160, 200, 260, 360, 600), strict=True)
    },
    evaluation={"max-eval-samples": 300},
)

_SAMPLE = Scale(
    name="sample",
    models=("sample-base",),
    data=("sample",),
    seeds=(44,),
    teacher={
        name: {**_TRY, "max-steps": 240, "eval-steps": 80, "save-steps": 80} for name in _FULL.data
    }
    | {"sample": {**_TRY, "max-steps": 240, "eval-steps": 80, "save-steps": 80}},
    student={
        name: {**_TRY, "max-steps": 60, "eval-steps": 20, "save-steps": 30}
        for name in (*_FULL.data, "sample")
    },
    fractions={
        fraction: {"max-steps": steps, "eval-steps": steps, "save-steps": steps}
        for fraction, steps in zip(FRACTIONS, (20, 20, 30, 40, 60), strict=True)
    },
    evaluation={"max-eval-samples": 300},
)

SCALES: Mapping[str, Scale] = MappingProxyType(
    {scale.name: scale for scale in (_FULL, _SMALL, _SAMPLE)}
)
