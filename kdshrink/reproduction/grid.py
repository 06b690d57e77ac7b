"""An experiment on the available models and data: the cells of its table, and the set-up."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from ..errors import KdshrinkError, UsageError
from .experiments import Case, Experiment
from .inputs import PAPER_MODELS, Data, Model, open_data, open_model
from .paper import read_paper
from .results import Cell, figures_of
from .runs import Lab
from .scales import Options, Scale

_PAPER_LABELS = tuple(PAPER_MODELS)
T = TypeVar("T")


@dataclass(frozen=True)
class Choice:
    """The user's choice of models, data and options for an experiment; None for the scale's defaults.

    Attributes:
        models: Pretrained encoders, by Hub id or directory.
        data: Names of data sets.
        data_dirs: Directories of data sets, by name; the others are read from the Hub.
        attention_target: As in `Objective`.
        own_rows: Whether to add rows that the paper does not have.
        planning: Whether runs are only listed, so that the Hub need not be reached.
    """

    models: Sequence[str] | None = None
    data: Sequence[str] | None = None
    data_dirs: Mapping[str, Path] = field(default_factory=dict)
    seeds: tuple[int, ...] | None = None
    attention_target: Literal["scores", "probabilities"] = "probabilities"
    own_rows: bool = False
    planning: bool = False


@dataclass(frozen=True)
class Grid:
    """An experiment on models and data.

    Attributes:
        absent: Why one of the paper's models (by label) or data sets (by name) is not available.
    """

    experiment: Experiment
    choice: Choice
    scale: Scale
    models: tuple[Model, ...]
    data: tuple[Data, ...]
    absent: dict[str, str]

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.choice.seeds or self.scale.seeds

    def cells(self) -> list[Cell]:
        """The cells of the experiment's table: those with runs, then those without."""
        pairs = [(model, data) for model in self.models for data in self.data]
        ready = [cell for pair in pairs for cell in self._cells_of(*pair)]
        return [*ready, *self._absent_cells()]

    def _cells_of(self, model: Model, data: Data) -> Iterator[Cell]:
        labs = {seed: self._lab(model, data, seed) for seed in self.seeds}
        lab = next(iter(labs.values()))
        for case in self._cases():
            missing = lab.why_not(case)
            runs = None
            if missing is None:
                runs = {seed: one.scoring_run(case) for seed, one in labs.items()}
            yield Cell(
                case,
                model.label,
                data.name,
                self.experiment.row_of(case),
                self._column(case, model.label, data.name),
                figures_of(self.experiment, case, model.paper, paper_data(data.name)),
                runs,
                missing,
            )

    def _lab(self, model: Model, data: Data, seed: int) -> Lab:
        slug = re.sub(r"[^a-z0-9]+", "-", model.label.lower()).strip("-")
        return Lab(
            self.scale,
            model,
            data,
            seed,
            f"{slug}-{data.name}",
            self.experiment.section,
            self.choice.attention_target,
        )

    def _cases(self) -> list[Case]:
        return [case for case in self.experiment.cases if self.choice.own_rows or not case.own]

    def _column(self, case: Case, model: str, data: str) -> str:
        if self.experiment.columns == "data":
            return f"{model} {data}"
        alone = len(self.models) * len(self.data) == 1
        return case.start if alone else f"{model} {data}, {case.start}"

    def _absent_cells(self) -> Iterator[Cell]:
        """The cells of the paper's columns for which a model or data set is not available."""
        at_hand = {paper_data(data.name) for data in self.data}
        found = {model.paper for model in self.models}
        for label in self.experiment.models or _PAPER_LABELS:
            for data in self.experiment.data:
                if label in found and data in at_hand:
                    continue
                reason = self.absent.get(data if label in found else label, "not asked for")
                for case in self._cases():
                    if case.own:
                        continue
                    column = f"{label} {data}"
                    paper = figures_of(self.experiment, case, label, data)
                    row = self.experiment.row_of(case)
                    yield Cell(case, label, data, row, column, paper, None, reason)

    def set_up(self) -> list[str]:
        """Lines on what differs from the paper's set-up, or is not specified there."""
        paper = read_paper()
        lines = []
        if self.scale.name != "full":
            lines.append(
                f"Scale: {self.scale.name}. These are not the paper's models or amounts of training, so do not "
                "expect its numbers."
            )
        for model in self.models:
            of_paper = paper["models"].get(model.paper)
            beside = f"; the paper has {of_paper}, {paper['set_up']['teacher']}" if of_paper else ""
            lines.append(
                f"Model: {model.label} is {model.name}, {model.layers} layers of width "
                f"{model.hidden_size}{beside}. Students have {model.layers // 2} layers; half the width "
                f"is {model.hidden_size // 2}."
            )
        for data in self.data:
            lines += self._data_lines(data)
        lines.append(
            f"Seeds: {', '.join(map(str, self.seeds))}; the paper has {paper['set_up']['seeds']}."
        )
        lines.append(
            f"Distillation: attention {self.choice.attention_target}, soft cross-entropy of the logits; "
            "the paper does not specify either."
        )
        return lines

    def _data_lines(self, data: Data) -> Iterator[str]:
        lab = self._lab(self.models[0], data, self.seeds[0])
        if data.name == "sample":
            yield "Data: sample is a small part of massive (20 of its classes), and is compared with massive's figures."
        trained = ", ".join(lab.all_languages)
        yield (
            f"Languages of {data.name}: all: {trained}; seen: "
            f"{', '.join(lab.trained(data.seen)) or 'none'}; unseen: {', '.join(data.unseen) or 'none'}; "
            f"English: {', '.join(data.english) or 'none'}. The paper does not list seen or unseen ones."
        )
        teacher, student = self.scale.teacher[data.name], self.scale.student[data.name]
        epochs = f"{read_paper()['set_up']['epochs']} epochs"
        yield (
            f"Training on {data.name}: teacher {_describe_options(teacher) or epochs}; students "
            f"{self._student_options(student) or epochs}; the paper has {epochs} of transformers' defaults."
        )
        if self.scale.evaluation:
            limit = self.scale.evaluation["max-eval-samples"]
            yield f"Scores on {data.name}: of at most {limit} test examples per language."
        if self.scale.trims and data.name != "sample":
            yield f"Vocabulary: the base model's is trimmed to the texts of these languages of {data.name} first."

    def _student_options(self, options: Options) -> str:
        if self.experiment.section != 2 or not self.scale.fractions:
            return _describe_options(options)
        steps = ", ".join(
            f"{fraction:.0%} {extra['max-steps']}"
            for fraction, extra in self.scale.fractions.items()
        )
        rest = {k: v for k, v in options.items() if k not in ("max-steps", "eval-steps")}
        return f"{_describe_options(rest)}, steps by share of the data {steps}"


_UNTOLD = ("save-steps", "logging-steps")


def _describe_options(options: Options) -> str:
    """Describe training options, for the report."""
    names = {"max-steps": "steps", "max-eval-samples": "development examples per language"}
    return ", ".join(
        f"{names.get(name, name.replace('-', ' '))} {value:g}"
        for name, value in options.items()
        if name not in _UNTOLD
    )


def paper_data(name: str) -> str:
    """The paper's data set that a data set is compared with."""
    return "massive" if name == "sample" else name


def make_grid(experiment: Experiment, scale: Scale, choice: Choice) -> Grid:
    """Find the available models and data of an experiment.

    Those that the user named must be available; the scale's defaults may be missing.

    Raises:
        KdshrinkError: One that the user named is missing, or all are.
    """
    absent: dict[str, str] = {}
    models = _find(
        choice.models,
        {
            label: PAPER_MODELS[label] if scale.name == "full" else None
            for label in experiment.models or _PAPER_LABELS
        }
        if scale.name != "sample"
        else {"XLM-R": scale.models[0], "mDeBERTa": None},
        lambda name: open_model(name, planning=choice.planning),
        absent,
        "no model of this architecture was given (--models)",
    )
    if not models:
        raise UsageError(
            f"--scale {scale.name} finds no pretrained model: {'; '.join(dict.fromkeys(absent.values()))}.\n"
            "Name pretrained encoders with --models."
        )
    names = {name: name if _by_default(name, scale, choice) else None for name in experiment.data}
    if scale.name == "sample":
        names = {"sample": "sample", **names}
    data = _find(
        choice.data,
        names,
        lambda name: open_data(
            name, choice.data_dirs.get(name), scale.languages.get(name), planning=choice.planning
        ),
        absent,
        "no data at this scale (--data, --data-dir)",
    )
    if not data:
        raise UsageError(
            f"--scale {scale.name} finds no data: {'; '.join(absent.values())}.\n"
            "Name directories with --data-dir, as in --data-dir massive=corpora/massive."
        )
    return Grid(experiment, choice, scale, _unlike(models), tuple(data), absent)


def _by_default(name: str, scale: Scale, choice: Choice) -> bool:
    """Whether a data set is used by default: from its directory, else from the Hub."""
    return name in choice.data_dirs or (name in scale.data and not choice.data_dirs)


def _find(
    wanted: Sequence[str] | None,
    usual: dict[str, str | None],
    find: Callable[[str], T],
    absent: dict[str, str],
    without: str,
) -> list[T]:
    """Open those that are wanted, or else the available ones of the defaults."""
    if wanted is not None:
        absent.update(dict.fromkeys(usual, without))
        return [find(name) for name in wanted]
    found = []
    for label, name in usual.items():
        if name is None:
            absent[label] = without
            continue
        try:
            found.append(find(name))
        except KdshrinkError as error:
            absent[label] = str(error).splitlines()[0]
    return found


def _unlike(models: Sequence[Model]) -> tuple[Model, ...]:
    """The models, with unique labels."""
    from dataclasses import replace

    labels = [model.label for model in models]
    return tuple(
        replace(model, label=f"{model.label} ({Path(model.name).name})")
        if labels.count(model.label) > 1
        else model
        for model in models
    )
