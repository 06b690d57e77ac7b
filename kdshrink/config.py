"""What each command can be told: one frozen dataclass a command, built of shared groups.

The command line is made from these fields (`cli.py`): a field's help is its only documentation,
its name in kebab-case is its flag. Nothing here imports torch.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import UsageError

LOSS_TERMS = ("embedding", "hidden", "attention", "prediction", "task")
_LARGEST = 2**31 - 1
"""What the libraries hold counts in."""


@dataclass(frozen=True)
class Bounds:
    """Between which numbers a value must lie; a number must be finite in any case."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def hold(self, number: float) -> bool:
        number = int(number) if isinstance(number, Integral) else float(number)
        # Compared so that NaN holds nowhere.
        return (
            -sys.float_info.max <= number <= sys.float_info.max
            and (self.least is None or number >= self.least)
            and (self.above is None or number > self.above)
            and (self.most is None or number <= self.most)
            and (self.below is None or number < self.below)
        )

    def __str__(self) -> str:
        words = {"at least": self.least, "above": self.above}
        words |= {"at most": self.most, "below": self.below}
        told = [f"{word} {limit:.10g}" for word, limit in words.items() if limit is not None]
        if self.most is self.below is None:
            told.append("finite")
        return "it must be " + " and ".join(told)


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
    bounds: Bounds | None = None,
    blank: bool = False,
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
        bounds: Between which numbers the value must lie.
        blank: Whether the value may be white space alone.
    """
    metadata = {
        "help": help,
        "flags": flags,
        "argument": argument,
        "parse": parse,
        "repeatable": repeatable,
        "secret": secret,
        "metavar": metavar,
        "bounds": bounds,
        "blank": blank,
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
                f"--weight {shown(item)}: this is not TERM=NUMBER.\n"
                f"Give a term of {', '.join(LOSS_TERMS)} and a number, as in --weight hidden=0."
            ) from None
    return weights


def number_list(typed: str) -> tuple[int, ...]:
    """`"44, 55"` → `(44, 55)`."""
    try:
        return tuple(int(part) for part in comma_list(typed))
    except ValueError:
        raise UsageError(
            f"--seeds {shown(typed)}: these are not whole numbers.\nGive one or more, as in --seeds 44,55,66."
        ) from None


def directory_mapping(typed: list[str]) -> dict[str, Path]:
    """`["massive=DIR"]` → `{"massive": Path("DIR")}`."""
    directories = {}
    for item in typed:
        name, equals, directory = item.partition("=")
        if not (name and equals and directory):
            raise UsageError(
                f"--data-dir {shown(item)}: this is not NAME=DIR.\n"
                "Name the data set, as in --data-dir massive=corpora/massive."
            )
        directories[name] = Path(directory)
    return directories


def path_list(typed: list[str]) -> tuple[Path, ...]:
    """`["a", "b"]` → `(Path("a"), Path("b"))`."""
    return tuple(map(Path, typed))


def shown(value: object) -> str:
    """A value as a message shows it: printable, and on one line."""
    text = str(value)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 80 else f"{text[:79]}…"


def flag_of(item: Field[Any]) -> str:
    """What a user calls a field: its long flag, or the argument's name."""
    if item.metadata["argument"]:
        return item.name.upper()
    named = [flag for flag in item.metadata["flags"] if flag.startswith("--")]
    return named[0] if named else f"--{_kebab(item.name)}"


def _require(condition: bool, flag: str, found: object, needed: str) -> None:
    if not condition:
        raise UsageError(f"{flag} {shown(found)}: {needed}.")


def refuse_empty(item: Field[Any], value: object) -> None:
    """Raise UsageError for a value of nothing, which as a path would be the current directory."""
    blank = item.metadata["blank"]
    if value in ((), []) or any(not (text if blank else text.strip()) for text in _texts(value)):
        raise UsageError(f"{flag_of(item)} is empty: give a value, or leave it out.")


def _texts(value: object) -> Iterator[str]:
    """The strings and paths that a value is made of."""
    if isinstance(value, (str, Path)):
        yield str(value)
    elif isinstance(value, Mapping):
        yield from _texts([*value.keys(), *value.values()])
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _texts(part)


@cache
def _kinds(config_class: type) -> Mapping[str, Any]:
    """The type of each field, None left out."""
    kinds = {}
    for name, hint in get_type_hints(config_class).items():
        united = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        kinds[name] = next(kind for kind in united if kind is not NoneType)
    return kinds


def _check_values(config: Any) -> None:
    """Check each field of a config by itself: its type, its bounds, that it says anything at all."""
    config_class: type = type(config)
    kinds = _kinds(config_class)
    for item in fields(config):
        value, kind = getattr(config, item.name), kinds[item.name]
        if value is None:
            continue
        if kind in (int, float):
            _check_number(flag_of(item), value, kind, item.metadata["bounds"])
        elif kind is bool:
            _require(isinstance(value, bool), flag_of(item), value, "it must be True or False")
        elif get_origin(kind) is Literal:
            choices = ", ".join(get_args(kind))
            _require(value in get_args(kind), flag_of(item), value, f"it must be one of {choices}")
        else:
            refuse_empty(item, value)
            for text in _texts(value):
                _check_text(item, text)


def _check_number(flag: str, value: Any, kind: type, bounds: Bounds | None) -> None:
    right = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    _require(
        right, flag, value, "it must be a whole number" if kind is int else "it must be a number"
    )
    bounds = bounds or Bounds()
    _require(bounds.hold(value), flag, value, str(bounds))
    if kind is int and bounds.most is None:
        _require(value <= _LARGEST, flag, value, f"it must be at most {_LARGEST}")


def _check_text(item: Field[Any], text: str) -> None:
    """Raise UsageError for text that no file's name, no request and no record can hold."""
    flag = flag_of(item)
    if item.metadata["secret"]:
        if not (text.isascii() and text.isprintable()) or " " in text:
            raise UsageError(f"{flag}: it holds blanks or characters that no token has.")
        return
    _require("\0" not in text, flag, text, "it holds a NUL character")
    # What could not be decoded stands in an argument as surrogates.
    if any("\ud800" <= character <= "\udfff" for character in text):
        encoding = sys.getfilesystemencoding()
        advice = (
            "Rename it to a name in UTF-8."
            if encoding == "utf-8"
            else "Set LC_ALL=C.UTF-8, or PYTHONUTF8=1."
        )
        raise UsageError(
            f"{flag} {shown(text)}: this cannot be read as {encoding}, which is what names are in here.\n"
            f"{advice}"
        )


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
        "Share of the training data to use, stratified by label within each language.",
        1.0,
        bounds=Bounds(above=0, most=1),
    )
    max_samples: int | None = option(
        "At most so many examples of each language and split, the same in every command.",
        None,
        bounds=Bounds(least=1),
    )
    max_eval_samples: int | None = option(
        "As --max-samples, for the evaluated splits alone.", None, bounds=Bounds(least=1)
    )
    text_column: str | None = option("Column of the text, or of the list of words.", None)
    label_column: str | None = option("Column of the label, or of the list of tags.", None)
    language_column: str | None = option("Column that names each example's language.", None)
    label_map: Path | None = option(
        'JSON file of new label names, {"old": "new", …}, for the data and for the model.', None
    )
    separator: str | None = option(
        "Between the fields of CSV and TSV: a character, tab, comma or semicolon; a comma, and in .tsv a "
        "tab with no quoting, if not said.",
        None,
        blank=True,
    )
    encoding: str | None = option("Encoding of text files; UTF-8 if not said.", None)
    task: Literal["sequence", "token"] | None = option(
        "What custom data is for: one label per text, or one tag per word. Inferred from the data if not said.",
        None,
    )
    max_length: int = option(
        "Cut texts to so many tokens, special ones included.", 512, bounds=Bounds(least=3)
    )

    def __post_init__(self) -> None:
        _require(
            self.separator is None
            or self.separator in ("tab", "\\t", "comma", "semicolon")
            or (len(self.separator) == 1 and self.separator not in '\r\n"'),
            "--separator",
            repr(self.separator),
            "it must be one character, or tab, comma or semicolon",
        )


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    output_dir: Path | None = option(
        "Where the result goes; it follows from the source if not said.",
        None,
        flags=("-o", "--output-dir"),
    )
    overwrite: bool = option("Replace what kdshrink wrote to OUTPUT_DIR.", False)


_HUB_ID = re.compile(r"(?=.{1,96}$)(?!.*(--|\.\.))(\b[\w.-]+\b/)?\b[\w.-]+\b(?<!\.git)", re.ASCII)
"""As huggingface_hub's validate_repo_id, which is too slow to import here."""


@dataclass(frozen=True, kw_only=True)
class HubTarget:
    hub_model_id: str | None = option(
        "ORG/NAME on the Hub; the directory's name in your own account if not said.", None
    )
    private: bool = option("Make the repository private, if it is made now.", False)
    hub_revision: str | None = option("Branch to push to; made if there is none.", None)
    create_pr: bool = option("Open a pull request instead of pushing to the branch.", False)

    def __post_init__(self) -> None:
        name = self.hub_model_id
        if name is not None and not _HUB_ID.fullmatch(name):
            raise UsageError(
                f"--hub-model-id {shown(name)}: this cannot be a repository's name on the Hub.\n"
                "Give ORG/NAME, of letters, digits, '-', '_' and '.'."
            )
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


_LARGEST_SEED = 2**32 - 1
"""NumPy takes none beyond."""


def _check_device(device: str) -> None:
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", device, re.ASCII):
        raise UsageError(
            f"--device {shown(device)}: kdshrink runs on CPU and CUDA alone.\n"
            "Give auto, cpu, cuda or cuda:N."
        )


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    seed: int = option(
        "Seed of every random choice.", 42, bounds=Bounds(least=0, most=_LARGEST_SEED)
    )
    device: str = option("auto (CUDA where there is a GPU, else CPU), cpu, cuda or cuda:N.", "auto")

    def __post_init__(self) -> None:
        _check_device(self.device)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(DeviceOptions):
    bf16: bool | None = option("Train in bfloat16; on by itself on CUDA, off on CPU.", None)
    num_train_epochs: float = option("Passes over the training data.", 30.0, bounds=Bounds(above=0))
    max_steps: int | None = option(
        "Optimizer steps, instead of --num-train-epochs.", None, bounds=Bounds(least=1)
    )
    learning_rate: float = option("Peak of the linear schedule.", 5e-5, bounds=Bounds(above=0))
    batch_size: int = option(
        "Examples a device and step.",
        32,
        flags=("--batch-size", "--per-device-train-batch-size"),
        bounds=Bounds(least=1),
    )
    tokens_per_batch: int | None = option(
        "Fill each batch up to so many tokens, padding included, instead of --batch-size examples.",
        None,
        bounds=Bounds(least=1),
    )
    batches: Literal["by-length", "random"] = option(
        "by-length: examples of like length go together, which saves padding; random: any.",
        "by-length",
    )
    torch_compile: bool = option(
        "Compile the trained model, batches padded to few lengths; whether it pays was not measured.",
        False,
    )
    gradient_accumulation_steps: int = option("Batches a step.", 1, bounds=Bounds(least=1))
    warmup_steps: int = option(
        "Steps over which the learning rate rises.", 0, bounds=Bounds(least=0)
    )
    weight_decay: float = option("AdamW's weight decay.", 0.0, bounds=Bounds(least=0))
    dropout: float | None = option(
        "Rate of dropout in training; if not said the model's own, or 0 for a calibrated start.",
        None,
        bounds=Bounds(least=0, below=1),
    )
    eval_steps: int | None = option(
        "Evaluate every so many steps; each epoch if not said.", None, bounds=Bounds(least=1)
    )
    save_steps: int | None = option(
        "Checkpoint every so many steps; each epoch if not said.", None, bounds=Bounds(least=1)
    )
    logging_steps: int = option("Log the loss every so many steps.", 50, bounds=Bounds(least=1))
    save_total_limit: int = option("Checkpoints to keep for --resume.", 1, bounds=Bounds(least=1))
    early_stopping_patience: int | None = option(
        "Stop after so many evaluations without a better score.", None, bounds=Bounds(least=1)
    )
    report_to: str = option("Trackers, as the transformers Trainer knows them.", "none")
    resume: bool = option("Go on from OUTPUT_DIR's last checkpoint, or start if none.", False)

    def __post_init__(self) -> None:
        if self.tokens_per_batch is not None and self.batches == "random":
            raise UsageError(
                "--tokens-per-batch and --batches random exclude each other: how many batches an epoch "
                "has would\ndepend on chance. Give --batch-size with --batches random."
            )


@dataclass(frozen=True, kw_only=True)
class ShapeOptions:
    layers: int | None = option("Layers of the student.", None, bounds=Bounds(least=1))
    layer_map: str | None = option(
        "Which of the teacher's layers to take: uniform (i·N/M, the default), first, last, distilbert, "
        "or a list such as 2,5,8,12 (1-based).",
        None,
    )
    hidden_size: int | None = option(
        "Hidden size of the student, cut by even slices unless calibrated.",
        None,
        bounds=Bounds(least=1),
    )
    intermediate_size: int | None = option(
        "FFN size of the student; in proportion to the hidden size if not said.",
        None,
        bounds=Bounds(least=1),
    )


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    calibration_samples: int = option(
        "Texts of each language that --init calibrated reads, out of the training split.",
        400,
        bounds=Bounds(least=1),
    )
    calibration_copies: float = option(
        "Copies of those texts with pieces exchanged at random, as a share of them, for languages that "
        "they do not have; 0 where they have all that matter.",
        0.5,
        bounds=Bounds(least=0, most=10),
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
        "Temperature of the soft cross-entropy; other than 1 scales the term by its square.",
        1.0,
        bounds=Bounds(above=0),
    )

    def __post_init__(self) -> None:
        for term, weight in self.weights.items():
            _require(
                term in LOSS_TERMS,
                "--weight",
                f"{term}={weight}",
                f"the terms are {', '.join(LOSS_TERMS)}",
            )
            _check_number(f"--weight {term}", weight, float, Bounds(least=0))

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
    vocab_size: int | None = option(
        "Keep at most so many of those pieces, the commonest.", None, bounds=Bounds(least=1)
    )
    vocab_min_count: int = option(
        "Keep only pieces that occur at least so often.", 1, bounds=Bounds(least=1)
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
    split: str | None = option(
        "Split to evaluate; test, or all of a single file, if not said.", None
    )
    batch_size: int | None = option(
        "Texts in a batch at most, as many as suit the device if not said; no score depends on it.",
        None,
        bounds=Bounds(least=1),
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
            self.split is None or re.fullmatch(r"\w[\w.-]*", self.split) is not None,
            "--split",
            self.split,
            "the name of a split has letters, digits, '_', '-' and '.' alone",
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

    def __post_init__(self) -> None:
        _check_groups(self)


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
    teacher_steps: int | None = option(
        "Steps of the teachers, instead of the scale's.", None, bounds=Bounds(least=1)
    )
    max_steps: int | None = option(
        "Steps of the students, instead of the scale's.", None, bounds=Bounds(least=1)
    )
    attention_target: Literal["scores", "probabilities"] = option(
        "As distill's: the paper's text does not settle which.", "scores"
    )
    own_rows: bool = option(
        "Add rows of this tool's own, marked as not the paper's: a calibrated start, and a vocabulary cut "
        "down to the data.",
        False,
    )
    plan: bool = option("Print the runs as shell commands in an order that works, and stop.", False)
    jobs: int | None = option(
        "Runs at a time; one a GPU where there are several, else one.",
        None,
        bounds=Bounds(least=1, most=1024),
    )
    device: str = option("auto (CUDA where there is a GPU, else CPU), cpu, cuda or cuda:N.", "auto")
    output_dir: Path | None = option(
        "Where runs and reports go, of several experiments and from several processes at once; "
        "reproduction-SCALE if not said.",
        None,
        flags=("-o", "--output-dir"),
    )

    def __post_init__(self) -> None:
        _check_groups(self)
        _check_device(self.device)
        for seed in self.seeds or ():
            _check_number("--seeds", seed, int, Bounds(least=0, most=_LARGEST_SEED))
        for flag, names in (
            ("--models", self.models),
            ("--data", self.data),
            ("--seeds", self.seeds),
        ):
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
        _check_groups(self)
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
    named: list[str | Path | None] = [
        getattr(config, name, None) for name in ("data_dir", "label_map")
    ]
    for fields_of, built_in in (
        (("model", "teacher", "student", "base"), _OWN_MODELS),
        (("data", "vocab_from"), _NAMED_DATA),
    ):
        values = [getattr(config, name, None) for name in fields_of]
        named += [value for value in values if value not in built_in]
    paths = [Path(name).expanduser() for name in named if name]
    return [path for path in paths if path.exists()]


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
            pairs = {k: _typed(v) for k, v in value.items()}
            flags += [word for k, v in pairs.items() for word in (flag, f"{k}={v}")]
        else:
            flags += [
                flag,
                ",".join(map(str, value)) if isinstance(value, tuple) else _typed(value),
            ]
    return shlex.join(["kdshrink", command, *arguments, *flags])


def _typed(value: object) -> str:
    """A value as it may be typed: a number as short as it stays the same."""
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value)


def _check_groups(config: object) -> None:
    """Check every field by itself, then run the checks of the groups that a config is built of."""
    _check_values(config)
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
