"""Cutting weights to a student's shape, from file to file, a tensor at a time."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError, ShapeError, listed
from ..models.labels import class_names
from ..models.tensors import TensorReader, TensorSpec, write_tensors
from ..progress import Progress, silent
from .families import CLASSES, EMBEDDING, FFN, GROUP, HIDDEN, VOCABULARY, Family, Row, family_of
from .layers import choose_layers
from .slices import even_indices

logger = logging.getLogger(__name__)

PARTS = ("embeddings", "layers", "head")
_LANGUAGE_MODEL = "ForMaskedLM"
LAYERS = "layers"
"""The size that is the number of layers, beside those of axes."""
_HEAD_CLASSES = ("ForSequenceClassification", "ForTokenClassification", _LANGUAGE_MODEL)


@dataclass(frozen=True)
class StudentPlan:
    """What a student takes of its teacher.

    Attributes:
        family: The teacher's architecture.
        layers: Numbers (1-based) of the teacher's layers, one for each of the student's.
        indices: For an axis (hidden, ffn, vocabulary) the teacher's units that are kept, in the
            student's order; an axis that is not there stays whole.
        sizes: The teacher's size of each axis, as its config.json has it.
        config: The student's config.json.
        keeps_head: Whether the teacher has a head for classification or masked language modelling,
            which is kept; others are left out.
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
    def keeps_language_model(self) -> bool:
        return self.keeps_head and self.config["architectures"][0].endswith(_LANGUAGE_MODEL)


@dataclass(frozen=True)
class Size:
    parameters: int = 0
    bytes: int = 0

    def plus(self, spec: TensorSpec) -> Size:
        return Size(self.parameters + spec.parameters, self.bytes + spec.bytes)


@dataclass(frozen=True)
class CopyReport:
    """Sizes by part (embeddings, layers, head), of the teacher's file and of the student's."""

    before: Mapping[str, Size]
    after: Mapping[str, Size]

    def to_dict(self) -> dict[str, Any]:
        """The keys of --json: totals, and the same by part."""

        def sizes(before: Sequence[Size], after: Sequence[Size]) -> dict[str, int]:
            return {
                "parameters_before": sum(size.parameters for size in before),
                "parameters_after": sum(size.parameters for size in after),
                "bytes_before": sum(size.bytes for size in before),
                "bytes_after": sum(size.bytes for size in after),
            }

        totals = sizes(list(self.before.values()), list(self.after.values()))
        parts = {part: sizes([self.before[part]], [self.after[part]]) for part in PARTS}
        return {**totals, "parts": parts}


def plan_student(
    config: Mapping[str, Any],
    layers: int | None = None,
    layer_map: str | None = None,
    hidden_size: int | None = None,
    intermediate_size: int | None = None,
    vocabulary: Sequence[int] | None = None,
    *,
    calibrated: bool = False,
) -> StudentPlan:
    """Plan a student of this shape; None leaves a size as it is.

    The number of heads stays, so that heads become narrower; where the sizes divide, a student's head
    draws on the teacher's head of the same number alone. One set of indices serves every axis of
    hidden width, another the inner axis of the FFN, in proportion unless `intermediate_size` says.

    Args:
        config: The teacher's config.json.
        vocabulary: Ids of the pieces to keep, in the student's order.
        calibrated: Whether the weights will be calibrated: then any number of layers will do, and a
            head for masked language modelling is left out.

    Raises:
        ShapeError: No such student can be cut.
        ModelError: The architecture is not supported.
    """
    family = family_of(config)
    sizes = _sizes(config)
    width, inner = sizes[HIDDEN], sizes[FFN]
    chosen = choose_layers(sizes[LAYERS], layers, layer_map, any_count=calibrated)
    student_width = hidden_size or width
    student_inner = intermediate_size or round(inner * student_width / width)
    _check_width(config, student_width)
    if student_inner > inner:
        raise ShapeError(
            f"--intermediate-size {student_inner}: the teacher's FFN has only {inner} units."
        )
    student: dict[str, Any] = {**config, "num_hidden_layers": len(chosen)}
    indices: dict[str, Sequence[int]] = {}
    if student_width != width:
        units = even_indices(width, student_width)
        indices |= {axis: units for axis in (HIDDEN, EMBEDDING, GROUP) if sizes[axis] == width}
        for key in ("hidden_size", "pooler_hidden_size", "embedding_size"):
            if config.get(key) == width:
                student[key] = student_width
        if config.get("attention_head_size"):
            student["attention_head_size"] = student_width // config["num_attention_heads"]
    if student_inner != inner:
        indices[FFN] = even_indices(inner, student_inner)
        student["intermediate_size"] = student_inner
    if vocabulary is not None:
        indices[VOCABULARY] = vocabulary
        student |= {"vocab_size": len(vocabulary), **_token_ids(config, vocabulary)}
    architecture = (config.get("architectures") or [""])[0]
    keeps_head = architecture.endswith(_HEAD_CLASSES)
    if calibrated and architecture.endswith(_LANGUAGE_MODEL):
        keeps_head = False
    if not keeps_head:
        student["architectures"] = [family.bare]
    # A name or path of the teacher's would send transformers to the wrong place.
    student.pop("_name_or_path", None)
    return StudentPlan(family, tuple(chosen), indices, sizes, student, keeps_head)


def _size(config: Mapping[str, Any], key: str) -> int:
    size = config.get(key)
    if not isinstance(size, int) or size < 1:
        raise ModelError(f"config.json has no {key}, or no sensible one: {size!r}.")
    return size


def _sizes(config: Mapping[str, Any]) -> dict[str, int]:
    """The size of each axis that config.json tells."""
    width = _size(config, "hidden_size")
    return {
        LAYERS: _size(config, "num_hidden_layers"),
        HIDDEN: width,
        FFN: _size(config, "intermediate_size"),
        VOCABULARY: _size(config, "vocab_size"),
        EMBEDDING: config.get("embedding_size") or width,
        GROUP: width // (config.get("conv_groups") or 1),
        CLASSES: len(class_names(config)),
    }


def _token_ids(config: Mapping[str, Any], vocabulary: Sequence[int]) -> dict[str, Any]:
    """The `*_token_id` of a config for the new ids; None where the piece has gone."""
    new_ids = {old: new for new, old in enumerate(vocabulary)}
    ids = {key: value for key, value in config.items() if key.endswith("_token_id")}
    return {
        key: [new_ids.get(old) for old in value] if isinstance(value, list) else new_ids.get(value)
        for key, value in ids.items()
    }


def _check_width(config: Mapping[str, Any], width: int) -> None:
    heads, teacher = _size(config, "num_attention_heads"), config["hidden_size"]
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
    if head_size and head_size * heads != teacher:
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


@dataclass(frozen=True)
class _Piece:
    """A tensor of the student: where it comes from, and what its axes are."""

    source: str
    row: Row
    spec: TensorSpec


def copy_weights(
    source: Path, target: Path, plan: StudentPlan, progress: Progress = silent
) -> CopyReport:
    """Write the student's weights, reading and writing one tensor at a time.

    Args:
        source: The teacher's directory.
        target: The safetensors file to write.

    Raises:
        ModelError: The teacher's weights are damaged, incomplete, or not as its family has them.
    """
    with TensorReader(source) as reader:
        pieces, before, dropped = _match(reader, plan)
        indices = {axis: torch.tensor(kept) for axis, kept in plan.indices.items()}
        specs = {name: piece.spec for name, piece in pieces.items()}
        produce = lambda name: _cut(reader.read(pieces[name].source), pieces[name].row, indices)  # noqa: E731
        write_tensors(target, specs, produce, progress)
    if dropped:
        logger.info("left out, since only pretraining needs it: %s", ", ".join(sorted(dropped)))
    after = dict.fromkeys(PARTS, Size())
    for piece in pieces.values():
        after[piece.row.part] = after[piece.row.part].plus(piece.spec)
    return CopyReport(before, after)


def check_weights(source: Path, config: Mapping[str, Any], plan: StudentPlan) -> None:
    """Raise ModelError where `copy_weights` would, or where a tensor is missing; none is read.

    Args:
        config: The teacher's config.json.
    """
    with TensorReader(source) as reader:
        there = {name.removeprefix(f"{plan.family.prefix}.") for name in reader.specs}
        _match(reader, plan)
    missing = {name: part for name, part in plan.family.needed(config).items() if name not in there}
    if not missing:
        return
    advice = "Save the whole model with save_pretrained(), or fetch or copy it again."
    told = "the weights do not belong to config.json, or not all are there."
    if set(missing.values()) == {"head"}:
        told = f"the head of {config['architectures'][0]} is not in the weights."
    raise ModelError(f"{source}: {told}\nMissing: {listed(missing, 3)}.\n{advice}")


def _match(
    reader: TensorReader, plan: StudentPlan
) -> tuple[dict[str, _Piece], dict[str, Size], set[str]]:
    """The student's tensors by name, in the order of the teacher's file; the teacher's sizes; and the
    modules that are left out."""
    family = plan.family
    numbers = {layer - 1: new for new, layer in enumerate(plan.layers)}
    tied = plan.config.get("tie_word_embeddings", True)
    pieces: dict[str, _Piece] = {}
    stored: dict[str, str] = {}
    sizes = dict.fromkeys(PARTS, Size())
    dropped = set()
    for name, spec in reader.specs.items():
        if tied and family.is_tied(name):
            continue
        found = family.find(name, language_model=plan.keeps_language_model)
        if found is None:
            if spec.dtype.is_floating_point:
                sizes["head"] = sizes["head"].plus(spec)
                dropped.add(name.split(".")[0])
            continue
        row, layer = found
        _check_shape(reader, name, spec, row, plan)
        inner = name.removeprefix(f"{family.prefix}.")
        if (other := stored.setdefault(inner, name)) != name:
            raise ModelError(
                f"{reader.directory}: {other} and {name} are both there.\n"
                "Save the whole model with save_pretrained(), or fetch or copy it again."
            )
        if layer is not None and layer >= plan.depth:
            raise ModelError(
                f"{reader.directory}: config.json has {plan.depth} layers, and the weights another: "
                f"{name}.\nSave the whole model with save_pretrained(), or fetch or copy it again."
            )
        sizes[row.part] = sizes[row.part].plus(spec)
        if layer is not None and layer not in numbers:
            continue
        new_name = name if plan.keeps_head else inner
        if layer is not None:
            new_name = new_name.replace(f".layer.{layer}.", f".layer.{numbers[layer]}.", 1)
        shape = tuple(
            len(plan.indices[axis]) if axis in plan.indices else size
            for axis, size in zip(row.axes, spec.shape, strict=True)
        )
        pieces[new_name] = _Piece(name, row, TensorSpec(shape, spec.dtype))
    _check_layers(reader, pieces, plan)
    return pieces, sizes, dropped


def _check_shape(
    reader: TensorReader, name: str, spec: TensorSpec, row: Row, plan: StudentPlan
) -> None:
    if not spec.dtype.is_floating_point:
        raise ModelError(
            f"{reader.directory}: {name} holds whole numbers, and weights are none.\n"
            "Give the model before it was quantised."
        )
    expected = [plan.sizes.get(axis) for axis in row.axes]
    if len(expected) != len(spec.shape) or any(
        size not in (None, found) for size, found in zip(expected, spec.shape, strict=True)
    ):
        told = " × ".join("?" if size is None else str(size) for size in expected)
        raise ModelError(
            f"{reader.directory}: the weights do not belong to config.json.\n"
            f"{name} is {' × '.join(map(str, spec.shape))}, and should be {told}."
        )


def _check_layers(reader: TensorReader, pieces: Mapping[str, _Piece], plan: StudentPlan) -> None:
    """Raise ModelError unless every layer that is taken has all the tensors that any has."""
    number = re.compile(r"\.layer\.\d+\.")
    kinds = sorted({number.sub(".layer.#.", name) for name in pieces if number.search(name)})
    for new, old in enumerate(plan.layers):
        missing = [kind for kind in kinds if kind.replace("#", str(new)) not in pieces]
        if missing or not kinds:
            missed = f" {missing[0].replace('#', str(old - 1))} is missing." if missing else ""
            raise ModelError(
                f"{reader.directory}: the weights do not belong to config.json, or not all are there.\n"
                f"There is no whole layer {old}.{missed}"
            )


def _cut(tensor: Tensor, row: Row, indices: Mapping[str, Tensor]) -> Tensor:
    """The units of a tensor that the student keeps."""
    for dimension, axis in enumerate(row.axes):
        if axis in indices:
            tensor = tensor.index_select(dimension, indices[axis])
    return tensor
