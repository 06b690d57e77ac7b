"""Copies a teacher's weights into a smaller student, a block of rows at a time from file to file."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ModelError, listed
from ..files import write_json
from ..models.architectures import Row
from ..models.source import Source, require_plain, tokenizer_files
from ..models.tensors import TensorReader, TensorSpec, write_tensors
from ..progress import Progress, silent
from .plan import Shape, StudentPlan, plan_student

if TYPE_CHECKING:
    from .vocabulary import TrimmedTokenizer

logger = logging.getLogger(__name__)

PARTS = ("embeddings", "layers", "head")


@dataclass(frozen=True)
class Size:
    parameters: int = 0
    bytes: int = 0

    def plus(self, spec: TensorSpec) -> Size:
        return Size(self.parameters + spec.parameters, self.bytes + spec.bytes)


@dataclass(frozen=True)
class CopyReport:
    """Sizes of the teacher's and of the student's tensors, by part (embeddings, layers, head)."""

    before: Mapping[str, Size]
    after: Mapping[str, Size]

    def to_dict(self) -> dict[str, Any]:
        """Totals, and the same by part, under the keys of --json."""

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


@dataclass(frozen=True)
class _StudentTensor:
    """A tensor of the student.

    Attributes:
        source: The name of the teacher's tensor that it is cut from.
        row: Its row in the family's table.
    """

    source: str
    row: Row
    spec: TensorSpec


def copy_weights(
    source: Path, target: Path, plan: StudentPlan, progress: Progress = silent
) -> CopyReport:
    """Write the student's weights; only a few rows of one tensor at a time are in memory.

    Args:
        source: The teacher's directory.
        target: The safetensors file to write.

    Raises:
        ModelError: The teacher's weights are damaged, incomplete, or not those of its architecture.
    """
    with TensorReader(source) as reader:
        tensors, before, dropped = _match(reader, plan)
        specs = {name: tensor.spec for name, tensor in tensors.items()}
        write_tensors(
            target, specs, lambda name: _cut(reader, tensors[name], plan.indices), progress
        )
    if dropped:
        logger.info("left out, since only pretraining uses it: %s", ", ".join(sorted(dropped)))
    return _report(before, tensors)


def plan_copy(source: Path, plan: StudentPlan) -> CopyReport:
    """What `copy_weights` would report, with its errors; reads no tensor and writes nothing."""
    with TensorReader(source) as reader:
        tensors, before, _ = _match(reader, plan)
    return _report(before, tensors)


def _report(before: Mapping[str, Size], tensors: Mapping[str, _StudentTensor]) -> CopyReport:
    after = dict.fromkeys(PARTS, Size())
    for tensor in tensors.values():
        after[tensor.row.part] = after[tensor.row.part].plus(tensor.spec)
    return CopyReport(before, after)


def check_weights(source: Path, config: Mapping[str, Any], plan: StudentPlan) -> None:
    """Raise ModelError where `copy_weights` would, or where a tensor is missing; reads no tensor.

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
    fault = "the weights do not belong to config.json, or not all are there."
    if set(missing.values()) == {"head"}:
        fault = f"the head of {config['architectures'][0]} is not in the weights."
    raise ModelError(f"{source}: {fault}\nMissing: {listed(missing, 3)}.\n{advice}")


def _match(
    reader: TensorReader, plan: StudentPlan
) -> tuple[dict[str, _StudentTensor], dict[str, Size], set[str]]:
    """Match the teacher's tensors to the student's.

    Returns:
        The student's tensors by name, in the order of the teacher's file; the teacher's sizes by part;
        and the names of modules that are left out.
    """
    family = plan.family
    numbers = {layer - 1: new for new, layer in enumerate(plan.layers)}
    tied = plan.config.get("tie_word_embeddings", True)
    tensors: dict[str, _StudentTensor] = {}
    stored: dict[str, str] = {}
    sizes = dict.fromkeys(PARTS, Size())
    dropped = set()
    for name, spec in reader.specs.items():
        if tied and family.is_tied(name):
            continue
        found = family.find(name, language_model=plan.keeps_language_model)
        if found is None:
            if spec.is_floating_point:
                sizes["head"] = sizes["head"].plus(spec)
                dropped.add(name.split(".")[0])
            continue
        row, layer = found
        _check_shape(reader, name, spec, row, plan)
        bare_name = name.removeprefix(f"{family.prefix}.")
        if (other := stored.setdefault(bare_name, name)) != name:
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
        new_name = name if plan.keeps_head else bare_name
        if layer is not None:
            at = family.modules.layers
            new_name = new_name.replace(f"{at}.{layer}.", f"{at}.{numbers[layer]}.", 1)
        shape = tuple(
            len(plan.indices[axis]) if axis in plan.indices else size
            for axis, size in zip(row.axes, spec.shape, strict=True)
        )
        tensors[new_name] = _StudentTensor(name, row, TensorSpec(shape, spec.code))
    _check_layers(reader, tensors, plan)
    return tensors, sizes, dropped


def _check_shape(
    reader: TensorReader, name: str, spec: TensorSpec, row: Row, plan: StudentPlan
) -> None:
    if not spec.is_floating_point:
        raise ModelError(
            f"{reader.directory}: {name} holds integers, not weights.\n"
            "Give the model before it was quantised."
        )
    expected = [plan.sizes.get(axis) for axis in row.axes]
    if len(expected) != len(spec.shape) or any(
        size not in (None, found) for size, found in zip(expected, spec.shape, strict=True)
    ):
        wanted = " × ".join("?" if size is None else str(size) for size in expected)
        raise ModelError(
            f"{reader.directory}: the weights do not belong to config.json.\n"
            f"{name} is {' × '.join(map(str, spec.shape))}, and should be {wanted}."
        )


def _check_layers(
    reader: TensorReader, tensors: Mapping[str, _StudentTensor], plan: StudentPlan
) -> None:
    """Raise ModelError unless all layers that are taken have the same tensors."""
    at = plan.family.modules.layers
    number = re.compile(rf"{re.escape(at)}\.\d+\.")
    kinds = sorted({number.sub(f"{at}.#.", name) for name in tensors if number.search(name)})
    for new, old in enumerate(plan.layers):
        missing = [kind for kind in kinds if kind.replace("#", str(new)) not in tensors]
        if missing or not kinds:
            missed = f" {missing[0].replace('#', str(old - 1))} is missing." if missing else ""
            raise ModelError(
                f"{reader.directory}: the weights do not belong to config.json, or not all are there.\n"
                f"There is no whole layer {old}.{missed}"
            )


def _cut(
    reader: TensorReader, tensor: _StudentTensor, indices: Mapping[str, Sequence[int]]
) -> Iterator[np.ndarray]:
    """The student's units of a teacher's tensor, some rows at a time."""
    rows, *others = (indices.get(axis) for axis in tensor.row.axes)
    for block in reader.blocks(tensor.source, rows):
        for dimension, kept in enumerate(others, 1):
            if kept is not None:
                block = block.take(kept, dimension)
        yield block


def shrink_source(
    source: Source,
    shape: Shape,
    folder: Path,
    *,
    init: str = "copy",
    seed: int = 42,
    trimmed: TrimmedTokenizer | None = None,
    progress: Progress = silent,
) -> tuple[StudentPlan, CopyReport]:
    """Write a student's weights, config and tokenizer into an empty folder.

    Args:
        source: The teacher.
        init: "copy", "calibrated" (which copies too, as a start) or "scratch" (weights drawn at random).
        seed: For "scratch".
        trimmed: The student's tokenizer, if its vocabulary is smaller; None keeps the teacher's.

    Raises:
        ShapeError: The teacher cannot be shrunk to this shape.
        ModelError: The architecture is not supported, or the weights are damaged.
    """
    kept = None if trimmed is None else trimmed.kept
    plan = plan_student(source.config, shape, kept, calibrated=init == "calibrated")
    report = copy_weights(source.directory, folder / "model.safetensors", plan, progress)
    write_json(folder / "config.json", plan.config)
    if init == "scratch":
        _draw_weights(folder, seed)
    if trimmed is not None:
        trimmed.save(folder)
    elif (source.directory / "tokenizer.json").exists():
        for path in tokenizer_files(source):
            shutil.copy2(path, folder)
    else:
        from ..models.loading import load_tokenizer

        load_tokenizer(source).save_pretrained(folder)
    return plan, report


def check_source(source: Source, plan: StudentPlan) -> None:
    """Raise ModelError unless the weights are complete, and neither quantised nor an adapter's."""
    require_plain(source)
    check_weights(source.directory, source.config, plan)


def note_pipeline(source: Source) -> None:
    """Warn that only the transformer of a sentence-transformers model is copied."""
    if (source.directory / "modules.json").is_file():
        logger.warning(
            "%s is a sentence-transformers model, and only its transformer is copied: modules.json and the "
            "folders that it names are left out, so configure the pooling again where the student is used",
            source.name,
        )


def _draw_weights(folder: Path, seed: int) -> None:
    """Replace the weights in a folder, any head included, by random ones of the same shapes."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    architecture = getattr(transformers, config.architectures[0])
    transformers.set_seed(seed)
    architecture(config).save_pretrained(folder)
