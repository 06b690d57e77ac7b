"""What each command can be told: one frozen dataclass a command, built of shared groups.

The command line is made from these fields (`cli.py`): a field's help is its only documentation,
its name in kebab-case is its flag. Nothing here imports torch.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from .errors import UsageError

LOSS_TERMS = ("embedding", "hidden", "attention", "prediction", "task")


def option(
    help: str,
    default: Any = MISSING,
    *,
    flags: tuple[str, ...] = (),
    argument: bool = False,
    parse: Callable[[Any], Any] | None = None,
    repeatable: bool = False,
    secret: bool = False,
    metavar: str | None = None,
) -> Any:
    """Declare a field and how the command line shows it.

    Args:
        help: The one documentation of the field.
        default: Its default, or what makes it (a type such as dict); without one it is required.
        flags: Flags besides or instead of the one that follows from the name.
        argument: A positional argument instead of a flag.
        parse: Turns what was typed (a string, or a list of them if repeatable) into the value.
        repeatable: The flag may be given several times.
        secret: The value is never shown: not in the config's repr, not in a record.
        metavar: What stands for the value in the help, where its type says too little.
    """
    metadata = {
        "help": help,
        "flags": flags,
        "argument": argument,
        "parse": parse,
        "repeatable": repeatable,
        "secret": secret,
        "metavar": metavar,
    }
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata, repr=not secret)
    return field(default=default, metadata=metadata, repr=not secret)


def comma_list(typed: str) -> tuple[str, ...]:
    """`"a, b"` → `("a", "b")`."""
    return tuple(part.strip() for part in typed.split(",") if part.strip())


def weight_mapping(typed: list[str]) -> dict[str, float]:
    """`["hidden=0", "task=2"]` → `{"hidden": 0.0, "task": 2.0}`."""
    weights = {}
    for item in typed:
        term, _, number = item.partition("=")
        try:
            weights[term.strip()] = float(number)
        except ValueError:
            raise UsageError(
                f"--weight {item}: this is not TERM=NUMBER.\n"
                f"Give a term of {', '.join(LOSS_TERMS)} and a number, as in --weight hidden=0."
            ) from None
    return weights


def number_list(typed: str) -> tuple[int, ...]:
    """`"44, 55"` → `(44, 55)`."""
    try:
        return tuple(int(part) for part in comma_list(typed))
    except ValueError:
        raise UsageError(
            f"--seeds {typed}: these are not whole numbers.\nGive one or more, as in --seeds 44,55,66."
        ) from None


def directory_mapping(typed: list[str]) -> dict[str, Path]:
    """`["massive=DIR"]` → `{"massive": Path("DIR")}`."""
    directories = {}
    for item in typed:
        name, equals, directory = item.partition("=")
        if not (name and equals and directory):
            raise UsageError(
                f"--data-dir {item}: this is not NAME=DIR.\n"
                "Name the data set, as in --data-dir massive=corpora/massive."
            )
        directories[name] = Path(directory)
    return directories


def path_list(typed: list[str]) -> tuple[Path, ...]:
    """`["a", "b"]` → `(Path("a"), Path("b"))`."""
    return tuple(map(Path, typed))


def _require(condition: bool, flag: str, found: object, needed: str) -> None:
    if not condition:
        raise UsageError(f"{flag} {found}: {needed}.")


@dataclass(frozen=True, kw_only=True)
class TokenOptions:
    token: str | None = option(
        "Hub token; HF_TOKEN and the saved login serve too.", None, secret=True
    )


@dataclass(frozen=True, kw_only=True)
class SourceOptions(TokenOptions):
    revision: str | None = option("Revision (branch, tag or commit) of the model on the Hub.", None)
    trust_remote_code: bool = option("Run code that comes with the model. Off unless said.", False)


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    data: str | None = option(
        "massive, tsm, universal-ner, sample, a Hub id, or a local file or directory.", None
    )
    data_dir: Path | None = option(
        "Read a named data set from DIR/<language>/<split>.{jsonl,csv,parquet,iob2}, not the Hub.",
        None,
    )
    languages: tuple[str, ...] | None = option(
        "Languages, as a,b, or: seen, unseen, english, all.", None, parse=comma_list
    )
    seen_languages: tuple[str, ...] | None = option(
        "The languages that count as seen, instead of the data set's list.", None, parse=comma_list
    )
    unseen_languages: tuple[str, ...] | None = option(
        "The languages that count as unseen, instead of the data set's list.",
        None,
        parse=comma_list,
    )
    train_fraction: float = option(
        "Share of the training data to use, stratified by label within each language.", 1.0
    )
    max_samples: int | None = option(
        "At most so many examples of each language and split, the same in every command.", None
    )
    max_eval_samples: int | None = option("As --max-samples, for the evaluated splits alone.", None)
    text_column: str | None = option("Column of the text, or of the list of words.", None)
    label_column: str | None = option("Column of the label, or of the list of tags.", None)
    language_column: str | None = option("Column that names each example's language.", None)
    task: Literal["sequence", "token"] | None = option(
        "What own data is for: one label a text, or one tag a word. Told by the data if not said.",
        None,
    )
    max_length: int = option("Cut texts to so many tokens, special ones included.", 512)

    def __post_init__(self) -> None:
        _require(
            0 < self.train_fraction <= 1,
            "--train-fraction",
            self.train_fraction,
            "it must be above 0 and at most 1",
        )
        for flag, number in (
            ("--max-samples", self.max_samples),
            ("--max-eval-samples", self.max_eval_samples),
        ):
            _require(number is None or number > 0, flag, number, "it must be at least 1")
        _require(self.max_length >= 3, "--max-length", self.max_length, "it must be at least 3")
        if self.languages is not None and not self.languages:
            raise UsageError("--languages is empty: name one language or more, or leave it out.")


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    output_dir: Path | None = option(
        "Where the result goes; it follows from the source if not said.",
        None,
        flags=("-o", "--output-dir"),
    )
    overwrite: bool = option("Replace what kdshrink wrote to OUTPUT_DIR.", False)


@dataclass(frozen=True, kw_only=True)
class HubTarget:
    hub_model_id: str | None = option(
        "ORG/NAME on the Hub; the directory's name in your own account if not said.", None
    )
    private: bool = option("Make the repository private, if it is made now.", False)
    hub_revision: str | None = option("Branch to push to; made if there is none.", None)
    create_pr: bool = option("Open a pull request instead of pushing to the branch.", False)

    def __post_init__(self) -> None:
        if self.create_pr and self.hub_revision is not None:
            raise UsageError(
                f"--create-pr and --hub-revision {self.hub_revision} exclude each other: a pull "
                "request is made against main."
            )


@dataclass(frozen=True, kw_only=True)
class HubOptions(HubTarget, TokenOptions):
    push_to_hub: bool = option("Push the result to the Hub, once it is whole on disk.", False)

    def __post_init__(self) -> None:
        for item in fields(HubTarget):
            if getattr(self, item.name) and not self.push_to_hub:
                raise UsageError(f"--{_kebab(item.name)} needs --push-to-hub.")


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    seed: int = option("Seed of every random choice.", 42)
    device: str = option("auto (CUDA where there is a GPU, else CPU), cpu, cuda or cuda:N.", "auto")


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(DeviceOptions):
    bf16: bool | None = option("Train in bfloat16; on by itself on CUDA, off on CPU.", None)
    num_train_epochs: float = option("Passes over the training data.", 30.0)
    max_steps: int | None = option("Optimizer steps, instead of --num-train-epochs.", None)
    learning_rate: float = option("Peak of the linear schedule.", 5e-5)
    batch_size: int = option(
        "Examples a device and step.",
        32,
        flags=("--batch-size", "--per-device-train-batch-size"),
    )
    tokens_per_batch: int | None = option(
        "Fill each batch up to so many tokens, padding included, instead of --batch-size examples.",
        None,
    )
    batches: Literal["by-length", "random"] = option(
        "by-length: examples of like length go together, which saves padding; random: any.",
        "by-length",
    )
    torch_compile: bool = option(
        "Compile the trained model, batches padded to few lengths; whether it pays was not measured.",
        False,
    )
    gradient_accumulation_steps: int = option("Batches a step.", 1)
    warmup_steps: int = option("Steps over which the learning rate rises.", 0)
    weight_decay: float = option("AdamW's weight decay.", 0.0)
    dropout: float | None = option(
        "Rate of dropout in training; if not said the model's own, or 0 for a calibrated start.",
        None,
    )
    eval_steps: int | None = option("Evaluate every so many steps; each epoch if not said.", None)
    save_steps: int | None = option("Checkpoint every so many steps; each epoch if not said.", None)
    logging_steps: int = option("Log the loss every so many steps.", 50)
    save_total_limit: int = option("Checkpoints to keep for --resume.", 1)
    early_stopping_patience: int | None = option(
        "Stop after so many evaluations without a better score.", None
    )
    report_to: str = option("Trackers, as the transformers Trainer knows them.", "none")
    resume: bool = option("Go on from OUTPUT_DIR's last checkpoint, or start if none.", False)

    def __post_init__(self) -> None:
        for flag, number in (
            ("--max-steps", self.max_steps),
            ("--batch-size", self.batch_size),
            ("--tokens-per-batch", self.tokens_per_batch),
            ("--gradient-accumulation-steps", self.gradient_accumulation_steps),
            ("--eval-steps", self.eval_steps),
            ("--save-steps", self.save_steps),
            ("--logging-steps", self.logging_steps),
            ("--save-total-limit", self.save_total_limit),
            ("--early-stopping-patience", self.early_stopping_patience),
        ):
            _require(number is None or number >= 1, flag, number, "it must be at least 1")
        if self.tokens_per_batch is not None and self.batches == "random":
            raise UsageError(
                "--tokens-per-batch and --batches random exclude each other: how many batches an epoch "
                "has would\ndepend on chance. Give --batch-size with --batches random."
            )
        _require(
            self.num_train_epochs > 0,
            "--num-train-epochs",
            self.num_train_epochs,
            "it must be above 0",
        )
        _require(
            self.learning_rate > 0, "--learning-rate", self.learning_rate, "it must be above 0"
        )
        for flag, amount in (
            ("--warmup-steps", self.warmup_steps),
            ("--weight-decay", self.weight_decay),
        ):
            _require(amount >= 0, flag, amount, "it must not be negative")
        _require(
            self.dropout is None or 0 <= self.dropout < 1,
            "--dropout",
            self.dropout,
            "it must be at least 0 and below 1",
        )


@dataclass(frozen=True, kw_only=True)
class ShapeOptions:
    layers: int | None = option("Layers of the student.", None)
    layer_map: str | None = option(
        "Which of the teacher's layers to take: uniform (i·N/M, the default), first, last, distilbert, "
        "or a list such as 2,5,8,12 (1-based).",
        None,
    )
    hidden_size: int | None = option(
        "Hidden size of the student, cut by even slices unless calibrated.", None
    )
    intermediate_size: int | None = option(
        "FFN size of the student; in proportion to the hidden size if not said.", None
    )

    def __post_init__(self) -> None:
        for flag, number in (
            ("--layers", self.layers),
            ("--hidden-size", self.hidden_size),
            ("--intermediate-size", self.intermediate_size),
        ):
            _require(number is None or number >= 1, flag, number, "it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    calibration_samples: int = option(
        "Texts of each language that --init calibrated reads, out of the training split.", 400
    )
    calibration_copies: float = option(
        "Copies of those texts with pieces exchanged at random, as a share of them, for languages that "
        "they do not have; 0 where they have all that matter.",
        0.5,
    )

    def __post_init__(self) -> None:
        _require(
            self.calibration_samples >= 1,
            "--calibration-samples",
            self.calibration_samples,
            "it must be at least 1",
        )
        _require(
            0 <= self.calibration_copies <= 10,
            "--calibration-copies",
            self.calibration_copies,
            "it must be at least 0 and at most 10",
        )


@dataclass(frozen=True, kw_only=True)
class ObjectiveOptions:
    weights: Mapping[str, float] = option(
        "TERM=NUMBER, repeatable: weight of a term of the loss (embedding, hidden, attention, "
        "prediction, task); 1 unless said, 0 switches it off.",
        dict,
        flags=("--weight",),
        parse=weight_mapping,
        repeatable=True,
        metavar="TERM=NUMBER",
    )
    attention_target: Literal["scores", "probabilities"] = option(
        "What the attention term matches: scores before the softmax (for DeBERTa, which has none to "
        "read, scores less their mean over the keys) or probabilities. Where head counts differ, "
        "groups of neighbouring heads are averaged down to their greatest common divisor.",
        "scores",
    )
    prediction_loss: Literal["soft-ce", "mse"] = option(
        "What the prediction term is: soft cross-entropy or mean squared error of the logits.",
        "soft-ce",
    )
    temperature: float = option(
        "Temperature of the soft cross-entropy; other than 1 scales the term by its square.", 1.0
    )

    def __post_init__(self) -> None:
        _require(self.temperature > 0, "--temperature", self.temperature, "it must be above 0")
        for term, weight in self.weights.items():
            _require(
                term in LOSS_TERMS,
                "--weight",
                f"{term}={weight:g}",
                f"the terms are {', '.join(LOSS_TERMS)}",
            )
            _require(
                0 <= weight < math.inf,
                "--weight",
                f"{term}={weight:g}",
                "it must be finite and not negative",
            )

    def weight(self, term: str) -> float:
        """The weight of a term of the loss."""
        return self.weights.get(term, 1.0)


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
        "Keep only the vocabulary that this data uses (as --data), or a text file with a sentence a "
        "line.",
        None,
    )
    vocab_size: int | None = option("Keep at most so many of those pieces, the commonest.", None)
    vocab_min_count: int = option("Keep only pieces that occur at least so often.", 1)

    def __post_init__(self) -> None:
        _check_groups(self)
        _require(
            self.vocab_size is None or self.vocab_size >= 1,
            "--vocab-size",
            self.vocab_size,
            "it must be at least 1",
        )
        _require(
            self.vocab_min_count >= 1,
            "--vocab-min-count",
            self.vocab_min_count,
            "it must be at least 1",
        )
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
    student: str | None = option("The student, made before, instead of --init.", None)
    init: Literal["from-teacher", "from-base", "from-scratch", "calibrated"] | None = option(
        "Make the student on the fly: from-teacher (the default, half the layers), from-base, "
        "from-scratch, or calibrated on the training data's texts, as shrink does it.",
        None,
    )
    base: str | None = option(
        "The base for --init from-base; the one that the teacher's kdshrink.json names if not said.",
        None,
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
        "split, seen and unseen languages apart. On by itself for sample alone: it takes time.",
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
        if self.base is not None and self.init != "from-base":
            raise UsageError(f"--base {self.base} needs --init from-base.")


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(DeviceOptions):
    split: str = option("Split to evaluate.", "test")
    batch_size: int | None = option(
        "Texts in a batch at most, as many as suit the device if not said; no score depends on it.",
        None,
    )
    output_dir: Path | None = option(
        "Keep the result in this directory too, as kdshrink.json.",
        None,
        flags=("-o", "--output-dir"),
    )
    overwrite: bool = option(
        "Replace a result in OUTPUT_DIR, and the file of --predictions.", False
    )

    def __post_init__(self) -> None:
        _require(
            self.batch_size is None or self.batch_size >= 1,
            "--batch-size",
            self.batch_size,
            "it must be at least 1",
        )


@dataclass(frozen=True, kw_only=True)
class EvalConfig(SourceOptions, DataOptions, EvaluationOptions):
    model: str = option("A Hub id, a local directory, or sample.", argument=True)
    predictions: Path | None = option(
        "Write a JSON line an example here: language, gold, predicted, probability.", None
    )
    per_class: bool = option("Add the F1 of each class.", False)

    def __post_init__(self) -> None:
        _check_groups(self)


@dataclass(frozen=True, kw_only=True)
class ZeroShotConfig(SourceOptions, DataOptions, EvaluationOptions):
    model: str = option("A Hub id, a local directory, or sample.", argument=True)

    def __post_init__(self) -> None:
        _check_groups(self)


@dataclass(frozen=True, kw_only=True)
class PushConfig(HubTarget, TokenOptions):
    directory: Path = option("A directory that kdshrink wrote, or any model's.", argument=True)

    def __post_init__(self) -> None:
        _check_groups(self)


@dataclass(frozen=True, kw_only=True)
class InfoConfig(SourceOptions):
    model: str = option("A Hub id, a local directory, sample or sample-base.", argument=True)


_NAMED_DATA = ("massive", "tsm", "universal-ner", "sample")


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
        "Of massive, tsm, universal-ner and sample; all that the experiment has and are at hand if not "
        "said.",
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
        "Seeds, each a run of its own; 44,55,66 at --scale full, else 44.", None, parse=number_list
    )
    teacher_steps: int | None = option("Steps of the teachers, instead of the scale's.", None)
    max_steps: int | None = option("Steps of the students, instead of the scale's.", None)
    attention_target: Literal["scores", "probabilities"] = option(
        "As distill's: the paper's text does not settle which.", "scores"
    )
    own_rows: bool = option(
        "Add rows of this tool's own, marked as not the paper's: a calibrated start, and a vocabulary cut "
        "down to the data.",
        False,
    )
    plan: bool = option("Print the runs as shell commands in an order that works, and stop.", False)
    jobs: int | None = option("Runs at a time; one a GPU where there are several, else one.", None)
    device: str = option("auto (CUDA where there is a GPU, else CPU), cpu, cuda or cuda:N.", "auto")
    output_dir: Path | None = option(
        "Where runs and reports go, of several experiments and from several processes at once; "
        "reproduction-SCALE if not said.",
        None,
        flags=("-o", "--output-dir"),
    )

    def __post_init__(self) -> None:
        for flag, number in (
            ("--teacher-steps", self.teacher_steps),
            ("--max-steps", self.max_steps),
            ("--jobs", self.jobs),
        ):
            _require(number is None or number >= 1, flag, number, "it must be at least 1")
        for flag, names in (
            ("--models", self.models),
            ("--data", self.data),
            ("--seeds", self.seeds),
        ):
            _require(names is None or len(names) > 0, flag, "", "it is empty")
            _require(
                names is None or len({*names}) == len(names), flag, names, "each may be there once"
            )
        for flag, wanted in (("--data", self.data or ()), ("--data-dir", self.data_dirs)):
            for name in wanted:
                _require(
                    name in _NAMED_DATA, flag, name, f"the data sets are {', '.join(_NAMED_DATA)}"
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
        "What to follow: loss, a term of it (embedding, hidden, attention, prediction, task), or score.",
        "loss",
    )
    output_file: Path | None = option(
        "Draw the curves into this file (.png, .svg or .pdf; needs matplotlib).",
        None,
        flags=("-o", "--output-file"),
    )
    overwrite: bool = option("Replace OUTPUT_FILE.", False)

    def __post_init__(self) -> None:
        ending = None if self.output_file is None else self.output_file.suffix
        _require(
            ending in (None, ".png", ".svg", ".pdf"),
            "--output-file",
            self.output_file,
            "its ending must be .png, .svg or .pdf",
        )


def _kebab(name: str) -> str:
    return name.replace("_", "-")


_OWN_MODELS = ("sample", "sample-base")


def input_paths(config: Any) -> list[Path]:
    """The local files and directories that a config names to be read."""
    named: list[str | Path | None] = [getattr(config, "data_dir", None)]
    for fields_of, built_in in (
        (("model", "teacher", "student", "base"), _OWN_MODELS),
        (("data", "vocab_from"), _NAMED_DATA),
    ):
        values = [getattr(config, name, None) for name in fields_of]
        named += [value for value in values if value not in built_in]
    paths = [Path(name).expanduser() for name in named if name]
    return [path for path in paths if path.exists()]


def flag_of(item: Field[Any]) -> str:
    """What to type for a config's field."""
    names = [flag for flag in item.metadata["flags"] if flag.startswith("--")]
    return names[0] if names else f"--{_kebab(item.name)}"


_NOT_OF_THE_RESULT = {
    "token",
    "overwrite",
    "resume",
    *(item.name for item in fields(HubOptions)),
}


def command_line(command: str, config: Any) -> str:
    """What to type for this config: without the token, and what has no bearing on the result."""
    arguments, flags = [], []
    own, data = set(vars(type(config))["__annotations__"]), {f.name for f in fields(DataOptions)}

    def rank(item: Field[Any]) -> int:
        """What the command is about first, then its data; where it writes to last."""
        if item.name == "output_dir":
            return 3
        return 0 if item.name in own else 1 if item.name in data else 2

    for item in sorted(fields(config), key=rank):
        value = getattr(config, item.name)
        default = item.default if item.default_factory is MISSING else item.default_factory()
        if item.metadata["argument"]:
            arguments.append(str(value))
            continue
        if item.name in _NOT_OF_THE_RESULT or value == default:
            continue
        flag = flag_of(item)
        if isinstance(value, bool):
            flags.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, Mapping):
            pairs = {k: f"{v:g}" if isinstance(v, float) else v for k, v in value.items()}
            flags += [word for k, v in pairs.items() for word in (flag, f"{k}={v}")]
        else:
            typed = ",".join(map(str, value)) if isinstance(value, tuple) else value
            flags += [flag, f"{typed:g}" if isinstance(typed, float) else str(typed)]
    return shlex.join(["kdshrink", command, *arguments, *flags])


def _check_groups(config: object) -> None:
    """Run the checks of every group of options that a config is built of."""
    for group in type(config).__mro__[1:-1]:
        if "__post_init__" in vars(group):
            vars(group)["__post_init__"](config)
    if getattr(config, "resume", False) and getattr(config, "overwrite", False):
        raise UsageError("--resume and --overwrite exclude each other.")
    if hasattr(config, "data") and not isinstance(config, ShrinkConfig) and config.data is None:
        raise UsageError("--data is missing: massive, tsm, universal-ner, sample, or your own.")
