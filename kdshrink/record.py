"""kdshrink.json, the record of how a directory was made: its fields, reading and writing.

huggingface_hub's `strict` dataclasses are not used because they check types, but neither parse nested
dataclasses nor keep unknown keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import ModelError, short
from .files import read_json

if TYPE_CHECKING:
    from typing import Self

RECORD = "kdshrink.json"
SCHEMA = 1
"""The schema version of the files that are written; older files have none."""

_WANTED = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
_BOOKKEEPING = ("keys", "other")


class _UnfitError(ValueError):
    """A value whose type does not fit its field; the message names the field."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """An object of kdshrink.json: fields of known types, and any other keys.

    Attributes:
        keys: The keys in the order in which they were read, so that they are written back in it.
        other: The values of the keys that are not fields.
    """

    keys: tuple[str, ...] = field(default=(), repr=False, compare=False)
    other: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], name: str = RECORD) -> Self:
        """Undo `to_dict`.

        Args:
            name: The file's name in errors.

        Raises:
            ModelError: A field has a value of the wrong type, or a required field is missing.
        """
        try:
            return cls.parse(content, "")
        except _UnfitError as error:
            raise ModelError(
                f"{name} is damaged: {error}.\n"
                "Fetch or copy it again, or correct that field. Without the file the model still loads, but "
                "without its history."
            ) from error

    @classmethod
    @cache
    def _known(cls) -> dict[str, tuple[Field[Any], Any]]:
        """The fields by name, with their types."""
        kinds = get_type_hints(cls)
        known = [item for item in fields(cls) if item.name not in _BOOKKEEPING]
        return {item.name: (item, kinds[item.name]) for item in known}

    @classmethod
    def parse(cls, content: Mapping[str, Any], prefix: str) -> Self:
        known = cls._known()
        values = {}
        for name, (item, kind) in known.items():
            if name in content:
                values[name] = _value(kind, content[name], prefix + name)
            elif _is_required(item):
                raise _UnfitError(f"{prefix}{name} is missing")
        other = {name: value for name, value in content.items() if name not in known}
        return cls(**values, keys=tuple(content), other=other)

    def to_dict(self) -> dict[str, Any]:
        """The object for JSON; a field with its default value is left out, unless it was read."""
        known = self._known()
        given = [name for name, (item, _) in known.items() if getattr(self, name) != _default(item)]
        names = dict.fromkeys((*self.keys, *given, *self.other))
        return {
            name: _written(getattr(self, name) if name in known else self.other[name])
            for name in names
        }


def _default(item: Field[Any]) -> Any:
    return item.default if item.default_factory is MISSING else item.default_factory()


def _is_required(item: Field[Any]) -> bool:
    return _default(item) is MISSING


def _value(kind: Any, value: Any, name: str) -> Any:
    """Convert a JSON value to a field's type: lists become tuples, objects become parts."""
    form, inner = get_origin(kind) or kind, get_args(kind)
    if form is Any:
        return value
    if form in (Union, UnionType):  # of a type with None
        return None if value is None else _value(inner[0], value, name)
    if form is Literal:
        _require(value in inner, value, name, " or ".join(inner))
        return value
    if form is tuple:
        _require(isinstance(value, list | tuple), value, name, "a list")
        kinds = inner if inner[-1] is not Ellipsis else inner[:1] * len(value)
        _require(len(kinds) == len(value), value, name, f"a list of {len(kinds)}")
        return tuple(_value(one, value[i], f"{name}[{i}]") for i, one in enumerate(kinds))
    if form is Mapping:
        _require(isinstance(value, Mapping), value, name, "an object")
        return {key: _value(inner[1], one, f"{name}.{key}") for key, one in value.items()}
    if issubclass(form, Part):
        _require(isinstance(value, Mapping), value, name, "an object")
        return form.parse(value, f"{name}.")
    fits = isinstance(value, int | float if form is float else form)
    _require(fits and isinstance(value, bool) == (form is bool), value, name, _WANTED[form])
    return value


def _require(fits: bool, value: object, name: str, wanted: str) -> None:
    if not fits:
        shown = short(json.dumps(value, ensure_ascii=False, default=str))
        raise _UnfitError(f"{name} is {shown}, and should be {wanted}")


def _written(value: Any) -> Any:
    """Undo `_value`."""
    if isinstance(value, Part):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: _written(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_written(one) for one in value]
    return value


Metric = Literal["macro_f1", "entity_f1", "negative_loss"]


@dataclass(frozen=True, kw_only=True)
class ModelReference(Part):
    """A model that a command read.

    Attributes:
        revision: The commit, if it came from the Hub.
    """

    model: str
    revision: str | None


@dataclass(frozen=True, kw_only=True)
class DataReference(Part):
    """Data that a command read.

    Attributes:
        hub_id, revision: The data set on the Hub, and the commit.
        fingerprint: SHA-256 over the files that it was read from.
        examples: The number of examples by split; absent in the steps of a chain.
    """

    name: str
    hub_id: str | None = None
    revision: str | None = None
    fingerprint: str | None = None
    languages: tuple[str, ...] = ()
    examples: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Step(Part):
    """One command of the chain that led to a model."""

    command: str
    kdshrink_version: str
    models: tuple[ModelReference, ...]
    data: DataReference | None


@dataclass(frozen=True, kw_only=True)
class Licence(Part):
    """A licence, by the metadata fields of a model card."""

    license: str
    license_name: str | None = None
    license_link: str | None = None


@dataclass(frozen=True, kw_only=True)
class ModelSizes(Part):
    """The size of a model; bytes in float32."""

    layers: int
    hidden_size: int
    vocabulary: int
    parameters: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Calibration(Part):
    """How a student was calibrated.

    Attributes:
        texts: The number of texts, by language.
        basis: The name of the file with the basis of a narrower student, in the same directory.
    """

    texts: Mapping[str, int]
    basis: str | None = None


@dataclass(frozen=True, kw_only=True)
class LanguageScore(Part):
    score: float | None
    examples: int


@dataclass(frozen=True, kw_only=True)
class Scores(Part):
    """Scores of one model on one split: pooled, and by language."""

    metric: Metric
    score: float | None
    per_language: Mapping[str, LanguageScore]
    mean_over_languages: float | None = None


@dataclass(frozen=True, kw_only=True)
class ComparedModel(Part):
    """A model's scores on the languages that the student was trained on, and on the others."""

    seen: Scores | None
    unseen: Scores | None


@dataclass(frozen=True, kw_only=True)
class Comparison(Part):
    """The student beside its teacher on the test set."""

    metric: Metric
    models: Mapping[str, ComparedModel]


@dataclass(frozen=True, kw_only=True)
class PartSizes(Part):
    """Parameters and bytes of a part of a model, before and after shrinking."""

    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True, kw_only=True)
class Results(Part):
    """The result of a command, as in its --json; each command writes some of these fields.

    Attributes:
        score: Over the examples of all languages; after training, on the development set.
        development: All scores on the development set.
        vocabulary: How the vocabulary was trimmed.
    """

    metric: Metric | None = None
    score: float | None = None
    mean_over_languages: float | None = None
    per_language: Mapping[str, LanguageScore] | None = None
    steps: int | None = None
    train_seconds: float | None = None
    examples_per_second: float | None = None
    peak_memory_bytes: int | None = None
    best_step: int | None = None
    development: Scores | None = None
    comparison: Comparison | None = None
    seen: Scores | None = None
    unseen: Scores | None = None
    random_score: float | None = None
    majority_accuracy: float | None = None
    parameters_before: int | None = None
    parameters_after: int | None = None
    bytes_before: int | None = None
    bytes_after: int | None = None
    parts: Mapping[str, PartSizes] | None = None
    vocabulary: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class LanguageDrop(Part):
    """What a language lost by another precision, in points of 100.

    Attributes:
        judged: Whether it had enough examples to tell.
    """

    score: float
    drop: float
    examples: int
    judged: bool


@dataclass(frozen=True, kw_only=True)
class Quantization(Part):
    """A scheme of fp16 or int8 that was tried.

    Attributes:
        drop: Points lost over all languages pooled.
        kept_in_fp32: The parts of the model that stayed in it.
        bytes: The size of its file.
        difference: The largest relative difference of its logits from those of fp32; None where it was not
            measured, or one of them was not a number.
    """

    scheme: str
    passed: bool
    score: float
    drop: float
    bytes: int
    per_language: Mapping[str, LanguageDrop]
    precision: str = "int8"
    kept_in_fp32: tuple[str, ...] = ()
    difference: float | None = None


@dataclass(frozen=True, kw_only=True)
class Export(Part):
    """The graphs of a model in ONNX, and what they lose on the split that they were scored on.

    Attributes:
        score, per_language: Of fp32.
        difference: The largest relative difference of its logits from the model's.
        changed: How many predictions that made others.
        max_drop: The points that fp16 and int8 were allowed to lose.
        too_few_examples: The languages that the gate could not judge.
        passed: Whether they kept within that, as far as they were wanted.
        schemes: The one of each that did, among those tried.
        files: Bytes of each.
        unread: By runtime what it is known not to read.
    """

    metric: Metric
    score: float
    per_language: Mapping[str, LanguageScore]
    difference: float
    changed: int
    max_drop: float
    passed: bool
    files: Mapping[str, int]
    split: str | None = None
    schemes: Mapping[str, str] = field(default_factory=dict)
    tried: tuple[Quantization, ...] = ()
    too_few_examples: tuple[str, ...] = ()
    unread: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Record(Part):
    """The content of kdshrink.json. Each command writes the fields that it knows; the rest are absent.

    Attributes:
        command: The subcommand that wrote it, such as "distill".
        config: Its options, by the names of its config's fields.
        chain: The commands that led to this model, the earliest first and its own last.
        licences: The licences of the models that it was made from.
        source, teacher: The model that was shrunk, trained or scored; the teacher of a distillation.
        student, start: The value of --student, and how the student was initialized.
        base: The pretrained model, before it was trained for any task.
        unlabelled: The data of --unlabelled.
        multilingual_sentences: Number of shipped sentences, with repetitions, that were trained on.
        task: The task of its head; None without one.
        sizes: Model sizes, by the name of the model in the card.
        layers, of_layers: The layers of its source or teacher that its own correspond to, 1-based, and the
            number of layers of that model.
        heads: For each layer and head, the layer and head of the source that it corresponds to.
        run: What determines the result, as in `training.checkpoints.Identity`.
        resumed_from: The step that the run was last resumed from.
        export: What export wrote.
        files: The files that the command wrote.
    """

    schema: int | None = None
    kdshrink_version: str | None = None
    command: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    device: str | None = None
    chain: tuple[Step, ...] = ()
    licences: tuple[Licence, ...] = ()
    source: ModelReference | None = None
    teacher: ModelReference | None = None
    sizes: Mapping[str, ModelSizes] = field(default_factory=dict)
    student: str | None = None
    start: str | None = None
    calibration: Calibration | None = None
    base: str | None = None
    data: DataReference | None = None
    unlabelled: DataReference | None = None
    multilingual_sentences: int | None = None
    task: Literal["sequence", "token"] | None = None
    layers: tuple[int, ...] = ()
    of_layers: int | None = None
    heads: tuple[tuple[tuple[int, int], ...], ...] | None = None
    training_languages: tuple[str, ...] = ()
    max_length: int | None = None
    bf16: bool | None = None
    processes: int | None = None
    run: Mapping[str, Any] | None = None
    resumed_from: int | None = None
    results: Results | None = None
    export: Export | None = None
    files: tuple[str, ...] | None = None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], name: str = RECORD) -> Self:
        """Undo `to_dict` (`ModelError` also if a newer kdshrink wrote it)."""
        schema = content.get("schema")
        if isinstance(schema, int) and schema > SCHEMA:
            raise ModelError(
                f"{name} was written by a newer kdshrink: its schema is {schema}, and this one reads up "
                f"to {SCHEMA}.\nUpdate kdshrink: pip install -U kdshrink."
            )
        return super().from_dict(content, name)


def read_record(directory: Path) -> Record | None:
    """The record in a directory; None without one.

    Raises:
        ModelError: It is damaged, or a newer kdshrink wrote it.
    """
    content = read_json(directory / RECORD)
    return None if content is None else Record.from_dict(content, str(directory / RECORD))
