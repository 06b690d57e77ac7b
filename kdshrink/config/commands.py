"""What each command can be told: one frozen dataclass a command, built of shared groups.

The command line is made from these fields (`cli/options.py`): a field's help is its only documentation, its name
in kebab-case is its flag. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import UsageError
from .fields import (
    Bounds,
    check_number,
    check_values,
    comma_list,
    directory_mapping,
    number_list,
    option,
    path_list,
    require,
)
from .groups import (
    LARGEST_SEED,
    CalibrationOptions,
    DataOptions,
    DeviceOptions,
    EvaluationOptions,
    HubOptions,
    HubTarget,
    ObjectiveOptions,
    OutputOptions,
    ShapeOptions,
    SourceOptions,
    TokenOptions,
    TrainingOptions,
    check_device,
)
from .recipes import Init


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(SourceOptions, DataOptions, TrainingOptions, OutputOptions, HubOptions):
    model: str = option("A Hub id, a local directory, or sample-base.", argument=True)

    def __post_init__(self) -> None:
        _check_groups(self)


@dataclass(frozen=True, kw_only=True)
class ShrinkConfig(
    ShapeOptions,
    CalibrationOptions,
    SourceOptions,
    DataOptions,
    DeviceOptions,
    OutputOptions,
    HubOptions,
):
    model: str = option("A Hub id, a local directory, sample or sample-base.", argument=True)
    init: Literal["copy", "scratch", "calibrated"] = option(
        "copy: take the teacher's weights; scratch: random weights of the same shape; calibrated: "
        "weights that compute what the teacher does on the text of --data, without training.",
        "copy",
    )
    vocab_from: str | None = option(
        "Keep only the vocabulary that this data (as --data) or text file uses; a text file has one text per "
        "line.",
        None,
    )
    vocab_size: int | None = option(
        "Keep at most this many of those tokens, the most frequent.", None, bounds=Bounds(least=1)
    )
    vocab_min_count: int = option(
        "Keep only tokens that occur at least this often.", 1, bounds=Bounds(least=1)
    )

    def __post_init__(self) -> None:
        _check_groups(self)
        if self.vocab_from is None and (self.vocab_size is not None or self.vocab_min_count > 1):
            raise UsageError("--vocab-size and --vocab-min-count need --vocab-from.")
        if self.init == "calibrated" and self.data is None and self.vocab_from is None:
            raise UsageError(
                "--init calibrated needs text: name it with --data, a data set or a file with a sentence "
                "a line.\nLabels are not used."
            )


@dataclass(frozen=True, kw_only=True)
class DistillConfig(
    ShapeOptions,
    CalibrationOptions,
    ObjectiveOptions,
    SourceOptions,
    DataOptions,
    TrainingOptions,
    OutputOptions,
    HubOptions,
):
    teacher: str = option("The fine-tuned teacher: a Hub id, a local directory, or sample.")
    student: str | None = option("An existing student, in place of --init.", None)
    init: Init | None = option(
        "Make the student on the fly, with half the layers by default: calibrated on the training data's "
        "texts, as shrink does it (the default where models of its type can be); from-teacher, copied; "
        "from-base; or from-scratch.",
        None,
    )
    recipe: Literal["best", "paper"] = option(
        "What decides the options that are not given. best: a calibrated start, terms in balance, no dropout. "
        "paper: the teacher's layers copied, terms with weight 1, the model's own dropout, 30 epochs.",
        "best",
    )
    base: str | None = option(
        "The base for --init from-base; by default the one that the teacher's kdshrink.json names.",
        None,
    )

    unlabelled: str | None = option(
        "More texts to train on, named as --data is: all terms but the task's are learned from them, and "
        "labels are not used. All of a data set's training texts, or all of a single file.",
        None,
    )
    unlabelled_languages: tuple[str, ...] | None = option(
        "Languages of --unlabelled, as --languages has them; all by default.",
        None,
        parse=comma_list,
    )
    cache_teacher: Literal["auto", "none", "logits", "all"] = option(
        "Keep the teacher's targets on disk, in OUTPUT_DIR/checkpoints, for the epochs to come: all, its "
        "logits alone (where nothing else is matched), none, or auto: all where they fit into a quarter "
        "of the memory and half of the free disk.",
        "auto",
    )
    shard_teacher: bool = option(
        "Spread the teacher's weights over the processes of torchrun, for one that outgrows a GPU.",
        False,
    )
    compare: bool | None = option(
        "After training, score the teacher, the untrained student and the distilled one on the test "
        "split, seen and unseen languages apart. By default on for sample alone, as it takes time.",
        None,
    )

    def __post_init__(self) -> None:
        _check_groups(self)
        if self.student is not None:
            for flag, value in (
                ("--init", self.init),
                ("--layers", self.layers),
                ("--hidden-size", self.hidden_size),
                ("--intermediate-size", self.intermediate_size),
            ):
                if value is not None:
                    raise UsageError(
                        f"{flag} {value} and --student {self.student} exclude each other: the student "
                        f"is made already.\nGive --student, or {flag} to have one made."
                    )
        matched = [term for term in ("embedding", "hidden", "attention") if self.weight(term)]
        if self.cache_teacher == "logits" and matched:
            raise UsageError(
                f"--cache-teacher logits: the {', '.join(matched)} terms need more than the logits, so the "
                "teacher would run anyway.\nGive all, or switch those terms off, as in --weight hidden=0."
            )
        if self.shard_teacher and self.compare:
            raise UsageError(
                "--shard-teacher and --compare exclude each other: a comparison needs the teacher whole.\n"
                "Compare after the run, with kdshrink zero-shot."
            )
        if self.unlabelled_languages is not None and self.unlabelled is None:
            raise UsageError("--unlabelled-languages needs --unlabelled.")
        if self.base is not None and self.init != "from-base":
            raise UsageError(f"--base {self.base} needs --init from-base.")


@dataclass(frozen=True, kw_only=True)
class EvalConfig(SourceOptions, DataOptions, EvaluationOptions):
    model: str = option("A Hub id, a local directory, or sample.", argument=True)
    predictions: Path | None = option(
        "Write one JSON line per example to this file: language, gold, predicted, probability.",
        None,
    )
    per_class: bool = option("Report the F1 of each class.", False)

    def __post_init__(self) -> None:
        _check_groups(self)


@dataclass(frozen=True, kw_only=True)
class ZeroShotConfig(SourceOptions, DataOptions, EvaluationOptions):
    model: str = option("A Hub id, a local directory, or sample.", argument=True)

    def __post_init__(self) -> None:
        _check_groups(self)


@dataclass(frozen=True, kw_only=True)
class PushConfig(HubTarget, TokenOptions):
    directory: Path = option("Directory of a model, written by kdshrink or not.", argument=True)

    def __post_init__(self) -> None:
        _check_groups(self)


@dataclass(frozen=True, kw_only=True)
class InfoConfig(SourceOptions):
    model: str = option("A Hub id, a local directory, sample or sample-base.", argument=True)

    def __post_init__(self) -> None:
        _check_groups(self)


NAMED_DATA = ("massive", "tsm", "universal-ner", "sample")
"""The names of data/registry.py, which a config, being below it, cannot read; a test keeps them alike."""


@dataclass(frozen=True, kw_only=True)
class ReproduceConfig:
    name: Literal[
        "initialization",
        "hidden-size",
        "zero-shot",
        "english-only",
        "no-finetune",
        "data-size",
        "data",
        "learning-speed",
    ] = option("The experiment.", argument=True)
    scale: Literal["full", "small", "sample"] = option(
        "full: the paper's settings and models; small: about an hour on two cores, with a small model of "
        "your own; sample: minutes, on the embedded sample. The latter two do not claim the paper's numbers.",
        "full",
    )
    models: tuple[str, ...] | None = option(
        "Pretrained encoders, Hub ids or directories; the paper's at --scale full, sample-base at sample.",
        None,
        parse=comma_list,
    )
    data: tuple[str, ...] | None = option(
        "Of massive, tsm, universal-ner and sample; by default all that the experiment uses and "
        "that are available.",
        None,
        parse=comma_list,
    )
    data_dirs: Mapping[str, Path] = option(
        "NAME=DIR, repeatable: read a data set from DIR/<language>/<split>.{jsonl,csv,parquet,iob2}, not "
        "the Hub.",
        dict,
        flags=("--data-dir",),
        parse=directory_mapping,
        repeatable=True,
        metavar="NAME=DIR",
    )
    seeds: tuple[int, ...] | None = option(
        "Seeds, one run each; 44,55,66 at --scale full, else 44.", None, parse=number_list
    )
    teacher_steps: int | None = option(
        "Steps of the teachers, instead of the scale's.", None, bounds=Bounds(least=1)
    )
    max_steps: int | None = option(
        "Steps of the students, instead of the scale's.", None, bounds=Bounds(least=1)
    )
    attention_target: Literal["scores", "probabilities"] = option(
        "As distill's: the paper's text does not settle which.", "probabilities"
    )
    own_rows: bool = option(
        "Add rows of this tool's own, marked as not the paper's: a calibrated start, and a vocabulary cut "
        "down to the data.",
        False,
    )
    plan: bool = option("Print the runs as shell commands in an order that works, and stop.", False)
    jobs: int | None = option(
        "Runs at a time; by default one per GPU, else one.",
        None,
        bounds=Bounds(least=1, most=1024),
    )
    device: str = option("auto (CUDA where there is a GPU, else CPU), cpu, cuda or cuda:N.", "auto")
    output_dir: Path | None = option(
        "Where runs and reports go, of several experiments and from several processes at once; "
        "reproduction-SCALE by default.",
        None,
        flags=("-o", "--output-dir"),
    )

    def __post_init__(self) -> None:
        _check_groups(self)
        check_device(self.device)
        for seed in self.seeds or ():
            check_number("--seeds", seed, int, Bounds(least=0, most=LARGEST_SEED))
        for flag, names in (
            ("--models", self.models),
            ("--data", self.data),
            ("--seeds", self.seeds),
        ):
            require(
                names is None or len({*names}) == len(names), flag, names, "each may be there once"
            )
        for flag, wanted in (("--data", self.data or ()), ("--data-dir", self.data_dirs)):
            for name in wanted:
                require(
                    name in NAMED_DATA, flag, name, f"the data sets are {', '.join(NAMED_DATA)}"
                )


@dataclass(frozen=True, kw_only=True)
class CurvesConfig:
    directories: tuple[Path, ...] = option(
        "Directories that finetune or distill wrote.",
        argument=True,
        parse=path_list,
        repeatable=True,
    )
    term: str = option(
        "What to show: loss, a term of it (embedding, hidden, attention, prediction, task), or score.",
        "loss",
    )
    output_file: Path | None = option(
        "Draw the curves into this file (.png, .svg or .pdf; needs matplotlib).",
        None,
        flags=("-o", "--output-file"),
    )
    overwrite: bool = option("Replace OUTPUT_FILE.", False)

    def __post_init__(self) -> None:
        _check_groups(self)
        ending = None if self.output_file is None else self.output_file.suffix
        require(
            ending in (None, ".png", ".svg", ".pdf"),
            "--output-file",
            self.output_file,
            "its ending must be .png, .svg or .pdf",
        )


_OWN_MODELS = ("sample", "sample-base")


def input_paths(config: Any) -> list[Path]:
    """The local files and directories that a config names to be read."""
    named: list[str | Path | None] = [
        getattr(config, name, None) for name in ("data_dir", "label_map")
    ]
    for fields_of, built_in in (
        (("model", "teacher", "student", "base"), _OWN_MODELS),
        (("data", "vocab_from", "unlabelled"), NAMED_DATA),
    ):
        values = [getattr(config, name, None) for name in fields_of]
        named += [value for value in values if value not in built_in]
    paths = [Path(name).expanduser() for name in named if name]
    return [path for path in paths if path.exists()]


def _check_groups(config: object) -> None:
    """Check every field by itself, then run the checks of the groups that a config is built of."""
    check_values(config)
    for group in type(config).__mro__[1:-1]:
        if "__post_init__" in vars(group):
            vars(group)["__post_init__"](config)
    if getattr(config, "resume", False) and getattr(config, "overwrite", False):
        raise UsageError("--resume and --overwrite exclude each other.")
    if (
        isinstance(config, DataOptions)
        and not isinstance(config, ShrinkConfig)
        and config.data is None
    ):
        raise UsageError("--data is missing: massive, tsm, universal-ner, sample, or your own.")
