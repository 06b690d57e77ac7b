"""The options of each command: one frozen dataclass per command, built from shared groups.

The command line is made from these fields (`cli/options.py`): a field's name in kebab-case is its flag, and its
help is its only documentation. Nothing here imports torch.
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
    name_list,
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
    GateOptions,
    HubOptions,
    HubTarget,
    ObjectiveOptions,
    OutputOptions,
    ScoringOptions,
    ShapeOptions,
    SourceOptions,
    TokenOptions,
    TrainingOptions,
    check_device,
    check_precisions,
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
        "copy: the teacher's weights; scratch: random weights; calibrated: weights fitted, without "
        "training, to reproduce the teacher's hidden states on the text of --data.",
        "copy",
    )
    vocab_from: str | None = option(
        "Keep only the tokens that occur in this data: a data set as for --data, or a text file with one text per "
        "line.",
        None,
    )
    vocab_size: int | None = option(
        "Keep at most this many of those tokens, the most frequent ones.",
        None,
        bounds=Bounds(least=1),
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
                "--init calibrated needs text.\nGive --data: a data set, or a file with one text per line. "
                "Labels are not used."
            )


@dataclass(frozen=True, kw_only=True)
class DistillConfig(
    ShapeOptions,
    CalibrationOptions,
    ObjectiveOptions,
    GateOptions,
    SourceOptions,
    DataOptions,
    TrainingOptions,
    OutputOptions,
    HubOptions,
):
    teacher: str = option("The fine-tuned teacher: a Hub id, a local directory, or sample.")
    student: str | None = option(
        "An existing student, instead of one made by --init: a Hub id or a local directory.", None
    )
    init: Init | None = option(
        "How to make the student: calibrated on the training texts (the default where models of its type can "
        "be), with weights of the teacher (from-teacher) or of its base model (from-base), or random ones "
        "(from-scratch).",
        None,
    )
    recipe: Literal["best", "paper"] = option(
        "What decides the options that are not given. best: a calibrated start, no dropout, a warm-up, at most "
        "20,000 steps. paper: the teacher's layers copied, the model's own dropout, 30 epochs.",
        "best",
    )
    base: str | None = option(
        "The base model of --init from-base; by default the one in the teacher's kdshrink.json.",
        None,
    )

    unlabelled: str | None = option(
        "More texts to calibrate and to train on, named as --data is, best of languages that --data lacks: all "
        "terms but the task's are learned from them, and labels are not used. All of a data set's training "
        "texts, or all of a single file.",
        None,
    )
    unlabelled_languages: tuple[str, ...] | None = option(
        "Languages of --unlabelled, as --languages has them; all by default.",
        None,
        parse=comma_list,
    )
    multilingual: float | None = option(
        "Sentences in 40 languages that ship with kdshrink and are trained on too, without labels, for languages "
        "that the data lacks, as a share of the training examples; by default 0.2 with the best recipe. 0 for a "
        "monolingual model.",
        None,
        bounds=Bounds(least=0, most=10),
    )
    cache_teacher: Literal["auto", "none", "logits", "all"] = option(
        "Which of the teacher's targets to keep on disk, in OUTPUT_DIR/checkpoints, for later epochs: all, only "
        "logits (if no other term needs the teacher), none, or auto: all if they fit into a quarter of the "
        "memory and half of the free disk, else none.",
        "auto",
    )
    shard_teacher: bool = option(
        "Shard the teacher's weights over the processes of torchrun, if it does not fit on one GPU.",
        False,
    )
    compare: bool | None = option(
        "After training, score the teacher, the untrained and the distilled student on the test split, by seen "
        "and unseen languages. It takes time, so the default is yes for sample only.",
        None,
    )
    export: tuple[str, ...] | None = option(
        "End with what kdshrink export does: add the distilled student in ONNX to OUTPUT_DIR, of fp32, fp16 and "
        "int8 what is named here. Needs kdshrink[onnx], and labels.",
        None,
        parse=comma_list,
    )

    def __post_init__(self) -> None:
        _check_groups(self)
        if self.student is not None:
            for flag, value in (
                ("--init", self.init),
                ("--layers", self.layers),
                ("--hidden-size", self.hidden_size),
                ("--intermediate-size", self.intermediate_size),
                ("--attention-heads", self.attention_heads),
            ):
                if value is not None:
                    raise UsageError(
                        f"{flag} {value} and --student {self.student} exclude each other: the student "
                        f"exists already.\nGive --student, or {flag} to make one."
                    )
        matched = [term for term in ("embedding", "hidden", "attention") if self.weight(term)]
        if self.cache_teacher == "logits" and matched:
            raise UsageError(
                f"--cache-teacher logits: the {', '.join(matched)} terms need more than the logits, so the "
                "teacher would run anyway.\nGive all, or switch those terms off, as in --weight hidden=0."
            )
        if self.shard_teacher and self.compare:
            raise UsageError(
                "--shard-teacher and --compare exclude each other: a comparison needs the whole teacher.\n"
                "Compare after the run, with kdshrink zero-shot."
            )
        if self.unlabelled_languages is not None and self.unlabelled is None:
            raise UsageError("--unlabelled-languages needs --unlabelled.")
        if self.base is not None and self.init != "from-base":
            raise UsageError(f"--base {self.base} needs --init from-base.")
        check_precisions("--export", self.export)
        if self.export is None and self.max_drop != GateOptions.max_drop:
            raise UsageError(f"--max-drop {self.max_drop:g} needs --export.")


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
class CompareConfig(SourceOptions, DataOptions, ScoringOptions):
    models: tuple[str, ...] = option(
        "Hub ids, local directories or sample; with #onnx, #fp16 or #int8 behind it, the graph that export wrote, "
        "in fp32, fp16 or int8.",
        argument=True,
        parse=name_list,
        repeatable=True,
    )
    baseline: str | None = option(
        "The model that the others are compared with; by default the first.", None
    )
    threads: int | None = option(
        "Number of CPU threads that a model runs on; by default PyTorch's, which OMP_NUM_THREADS sets.",
        None,
        bounds=Bounds(least=1, most=1024),
    )
    output_file: Path | None = option(
        "Write a report to this file: .html (all in one file) or .md (its charts beside it); needs matplotlib.",
        None,
        flags=("-o", "--output-file"),
    )
    overwrite: bool = option("Replace OUTPUT_FILE, and the charts beside it.", False)

    def __post_init__(self) -> None:
        _check_groups(self)
        names = self.all_models
        require(len({*names}) == len(names), "MODELS", names, "each may be given only once")
        require(len(names) > 1, "MODELS", names[0], "give two or more models to compare")
        ending = None if self.output_file is None else self.output_file.suffix
        require(
            ending in (None, ".html", ".md"),
            "--output-file",
            self.output_file,
            "its ending must be .html or .md",
        )

    @property
    def all_models(self) -> tuple[str, ...]:
        """The models, with a baseline that is not among them before them."""
        if self.baseline is None or self.baseline in self.models:
            return self.models
        return (self.baseline, *self.models)


@dataclass(frozen=True, kw_only=True)
class ExportConfig(GateOptions, SourceOptions, DataOptions, OutputOptions, HubOptions):
    model: str = option("A Hub id, a local directory, or sample.", argument=True)
    precision: tuple[str, ...] | None = option(
        "Of fp32, fp16 (for GPUs) and int8; by default fp32 and int8. fp16 and int8 are made from fp32, and kept "
        "if they pass the gate.",
        None,
        parse=comma_list,
    )

    def __post_init__(self) -> None:
        _check_groups(self)
        check_precisions("--precision", self.precision)

    @property
    def precisions(self) -> tuple[str, ...]:
        """What is to be written."""
        return self.precision or ("fp32", "int8")


@dataclass(frozen=True, kw_only=True)
class PushConfig(HubTarget, TokenOptions):
    directory: Path = option("A model directory, of kdshrink or not.", argument=True)

    def __post_init__(self) -> None:
        _check_groups(self)


@dataclass(frozen=True, kw_only=True)
class InfoConfig(SourceOptions):
    model: str = option("A Hub id, a local directory, sample or sample-base.", argument=True)

    def __post_init__(self) -> None:
        _check_groups(self)


NAMED_DATA = ("massive", "tsm", "universal-ner", "sample")
"""The names of data/registry.py, which must not be imported from here; a test compares them."""


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
    ] = option("The experiment to run.", argument=True)
    scale: Literal["full", "small", "sample"] = option(
        "full: the paper's settings and models; small: about an hour on two cores, with a small model of "
        "your own; sample: minutes, on the embedded sample. Only full can give the paper's numbers.",
        "full",
    )
    models: tuple[str, ...] | None = option(
        "Pretrained encoders, by Hub id or directory; by default the paper's at --scale full, sample-base at sample.",
        None,
        parse=comma_list,
    )
    data: tuple[str, ...] | None = option(
        "Data sets, of massive, tsm, universal-ner and sample; by default those of the experiment that are "
        "available.",
        None,
        parse=comma_list,
    )
    data_dirs: Mapping[str, Path] = option(
        "NAME=DIR, repeatable: read a data set from DIR/<language>/<split>.{jsonl,csv,parquet,iob2} "
        "instead of the Hub.",
        dict,
        flags=("--data-dir",),
        parse=directory_mapping,
        repeatable=True,
        metavar="NAME=DIR",
    )
    seeds: tuple[int, ...] | None = option(
        "Random seeds, one run each; by default 44,55,66 at --scale full, else 44.",
        None,
        parse=number_list,
    )
    teacher_steps: int | None = option(
        "Training steps of the teachers; by default the scale's.", None, bounds=Bounds(least=1)
    )
    max_steps: int | None = option(
        "Training steps of the students; by default the scale's.", None, bounds=Bounds(least=1)
    )
    attention_target: Literal["scores", "probabilities"] = option(
        "As of distill; the paper does not say which it used.", "probabilities"
    )
    own_rows: bool = option(
        "Add rows that the paper does not have, marked as such: a calibrated student, and one with a vocabulary "
        "trimmed to the data.",
        False,
    )
    plan: bool = option("Print the runs as shell commands, in a valid order, and stop.", False)
    jobs: int | None = option(
        "Number of runs at a time; by default one per GPU, or one on CPU.",
        None,
        bounds=Bounds(least=1, most=1024),
    )
    device: str = option("auto (CUDA where there is a GPU, else CPU), cpu, cuda or cuda:N.", "auto")
    output_dir: Path | None = option(
        "Directory of runs and reports, which experiments and processes may share; by default "
        "reproduction-SCALE.",
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
                names is None or len({*names}) == len(names),
                flag,
                names,
                "each may be given only once",
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
        "What to show: loss, one of its terms (embedding, hidden, attention, prediction, task), or score.",
        "loss",
    )
    output_file: Path | None = option(
        "Draw the curves to this file (.png, .svg or .pdf; needs matplotlib).",
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
    """The local files and directories that the command with this config reads."""
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
        raise UsageError(
            "--data is missing: give massive, tsm, universal-ner, sample, a Hub id or a local path."
        )
