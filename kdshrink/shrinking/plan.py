"""Plans a student's config, layers and hidden units from the teacher's config.json; reads no weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ModelError, ShapeError
from ..models.architectures import (
    CLASSES,
    EMBEDDING,
    FFN,
    GROUP,
    HIDDEN,
    VOCABULARY,
    Family,
    family_of,
)
from ..models.labels import class_names
from .layer_map import choose_layers, even_indices

_LANGUAGE_MODEL = "ForMaskedLM"
LAYERS = "layers"
"""The key of the number of layers in `StudentPlan.sizes`, beside those of the axes."""
_HEAD_CLASSES = ("ForSequenceClassification", "ForTokenClassification", _LANGUAGE_MODEL)


@dataclass(frozen=True)
class Shape:
    """The requested shape of a student; None keeps the teacher's size.

    Attributes:
        layer_map: Which of the teacher's layers to take, as in `choose_layers`.
    """

    layers: int | None = None
    layer_map: str | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    attention_heads: int | None = None


@dataclass(frozen=True)
class StudentPlan:
    """The parts of a teacher that its student takes, and the student's config.

    Attributes:
        family: The teacher's architecture.
        layers: Numbers (1-based) of the teacher's layers, one for each of the student's.
        indices: For each axis that shrinks (hidden, ffn, vocabulary, …), the teacher's units that are
            kept, in the student's order.
        sizes: The teacher's size of each axis, by its config.json.
        config: The student's config.json.
        keeps_head: Whether the student gets the teacher's head for classification or masked language
            modelling; other heads are left out.
    """

    family: Family
    layers: tuple[int, ...]
    indices: Mapping[str, Sequence[int]]
    sizes: Mapping[str, int]
    config: dict[str, Any]
    keeps_head: bool

    @property
    def depth(self) -> int:
        """The number of the teacher's layers."""
        return self.sizes[LAYERS]

    @property
    def width(self) -> int:
        """The size of the student's hidden states."""
        return self.config[self.family.key("hidden_size")]

    @property
    def keeps_language_model(self) -> bool:
        return self.keeps_head and self.config["architectures"][0].endswith(_LANGUAGE_MODEL)


def plan_student(
    config: Mapping[str, Any],
    shape: Shape,
    vocabulary: Sequence[int] | None = None,
    *,
    calibrated: bool = False,
) -> StudentPlan:
    """Plan a student of this shape.

    The number of heads stays unless the shape names it, so that heads become narrower; where the sizes
    divide, each of a copied student's heads consists of units of the teacher's head of the same number. One
    set of indices applies to all axes of hidden width, another to the FFN's intermediate axis, whose size
    shrinks in proportion to the hidden size unless the shape names it.

    Args:
        config: The teacher's config.json.
        vocabulary: Ids of the tokens to keep, in the student's order; None for all.
        calibrated: Whether the weights will be calibrated: then any number of layers is possible, and fewer
            attention heads, and a head for masked language modelling is left out.

    Raises:
        ShapeError: The teacher cannot be shrunk to this shape.
        ModelError: The architecture is not supported.
    """
    family = family_of(config, "shrunk")
    sizes = _sizes(family, config)
    width, ffn = sizes[HIDDEN], sizes[FFN]
    chosen = choose_layers(sizes[LAYERS], shape.layers, shape.layer_map, any_count=calibrated)
    student_width = shape.hidden_size or width
    student_ffn = shape.intermediate_size or round(ffn * student_width / width)
    if shape.attention_heads is not None:
        _check_heads(family, config, shape.attention_heads, student_width, calibrated)
    heads = shape.attention_heads or _size(config, family.key("num_attention_heads"))
    _check_width(family, config, student_width, heads)
    if student_ffn > ffn:
        raise ShapeError(
            f"--intermediate-size {student_ffn}: the teacher's FFN has only {ffn} units."
        )
    student: dict[str, Any] = {**config, family.key("num_hidden_layers"): len(chosen)}
    indices: dict[str, Sequence[int]] = {}
    if student_width != width:
        units = even_indices(width, student_width)
        indices |= {axis: units for axis in (HIDDEN, EMBEDDING, GROUP) if sizes[axis] == width}
        student |= _widths(family, config, student_width, heads)
    if student_ffn != ffn:
        indices[FFN] = even_indices(ffn, student_ffn)
        student[family.key("intermediate_size")] = student_ffn
    if vocabulary is not None:
        indices[VOCABULARY] = vocabulary
        student |= {"vocab_size": len(vocabulary), **_token_ids(config, vocabulary)}
    architecture = (config.get("architectures") or [""])[0]
    keeps_head = architecture.endswith(_HEAD_CLASSES)
    if calibrated and architecture.endswith(_LANGUAGE_MODEL):
        keeps_head = False
    if not keeps_head:
        student["architectures"] = [family.bare]
    # The teacher's name or path would make transformers look there.
    student.pop("_name_or_path", None)
    return StudentPlan(family, tuple(chosen), indices, sizes, student, keeps_head)


def _widths(family: Family, config: Mapping[str, Any], width: int, heads: int) -> dict[str, int]:
    """The entries of config.json that follow from another hidden size, with their new values."""
    hidden = family.key("hidden_size")
    widths = {
        key: width
        for key in (hidden, "pooler_hidden_size", "embedding_size")
        if config.get(key) == config[hidden]
    }
    if config.get("attention_head_size"):
        widths["attention_head_size"] = width // heads
    return {**widths, family.key("num_attention_heads"): heads}


def _size(config: Mapping[str, Any], key: str) -> int:
    size = config.get(key)
    if not isinstance(size, int) or size < 1:
        raise ModelError(f"config.json has no {key}, or no valid one: {size!r}.")
    return size


def _sizes(family: Family, config: Mapping[str, Any]) -> dict[str, int]:
    """The size of each axis by config.json, and the number of layers."""
    width = _size(config, family.key("hidden_size"))
    return {
        LAYERS: _size(config, family.key("num_hidden_layers")),
        HIDDEN: width,
        FFN: _size(config, family.key("intermediate_size")),
        VOCABULARY: _size(config, "vocab_size"),
        EMBEDDING: config.get("embedding_size") or width,
        GROUP: width // (config.get("conv_groups") or 1),
        CLASSES: len(class_names(config)),
    }


def _token_ids(config: Mapping[str, Any], vocabulary: Sequence[int]) -> dict[str, Any]:
    """The `*_token_id` fields of a config with the new ids; None for a token that was removed."""
    new_ids = {old: new for new, old in enumerate(vocabulary)}
    ids = {key: value for key, value in config.items() if key.endswith("_token_id")}
    return {
        key: [new_ids.get(old) for old in value] if isinstance(value, list) else new_ids.get(value)
        for key, value in ids.items()
    }


def _check_heads(
    family: Family, config: Mapping[str, Any], heads: int, width: int, calibrated: bool
) -> None:
    """Raise ShapeError unless a student of this width can take so many of the teacher's heads."""
    most = _size(config, family.key("num_attention_heads"))
    size = config[family.key("hidden_size")] // most
    if not calibrated:
        raise ShapeError(
            f"--attention-heads {heads}: heads are copied all, and chosen only for a calibrated student.\n"
            "Give --init calibrated, or leave it out."
        )
    if heads > most:
        raise ShapeError(f"--attention-heads {heads}: the teacher has only {most} in a layer.")
    if width > heads * size:
        raise ShapeError(
            f"--attention-heads {heads}: heads of the teacher are {size} wide, so that a width of {width} needs "
            f"at least {-(-width // size)}."
        )


def _check_width(family: Family, config: Mapping[str, Any], width: int, heads: int) -> None:
    teacher = config[family.key("hidden_size")]
    if width > teacher:
        raise ShapeError(f"--hidden-size {width}: the teacher is only {teacher} wide.")
    if teacher % heads and width == teacher and not config.get("attention_head_size"):
        raise ModelError(
            f"config.json: the num_attention_heads {heads} do not divide the hidden_size {teacher}."
        )
    if width % heads:
        below = width - width % heads
        near = [size for size in (below, below + heads) if 0 < size <= teacher]
        raise ShapeError(
            f"--hidden-size {width}: the {heads} attention heads do not divide it.\n"
            f"Near it, {' and '.join(map(str, near))} would do."
        )
    if width == teacher:
        return
    head_size = config.get("attention_head_size")
    if head_size and head_size * config[family.key("num_attention_heads")] != teacher:
        raise ShapeError(
            f"--hidden-size {width}: heads of size {head_size} beside a width of {teacher} cannot be "
            "sliced by rule."
        )
    if width == config.get("embedding_size"):
        raise ShapeError(
            f"--hidden-size {width}: it is the width of the embedding tables, and a model of equal "
            "widths has\nno projection between them, which this one needs. Take another size."
        )
    if config.get("conv_kernel_size") and (groups := config.get("conv_groups") or 1) > 1:
        raise ShapeError(
            f"--hidden-size {width}: a convolution in {groups} groups cannot be sliced by rule."
        )
