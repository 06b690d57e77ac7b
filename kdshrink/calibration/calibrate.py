"""Calibrating a student that stands on disk: text encoded, models loaded, weights written back."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..data.encoding import encode
from ..errors import ModelError
from ..models.architectures import Head
from ..models.devices import to_device
from ..models.loading import fitting_length, load_tokenizer, load_weights
from ..models.source import Source, find_model
from ..models.tensors import TensorReader, TensorSpec, write_tensors
from ..progress import Progress, silent
from ..shrinking.plan import StudentPlan
from .batch import make_batches
from .encoder_view import view
from .sweep import Settings, calibrate
from .texts import CalibrationData, Texts

logger = logging.getLogger(__name__)

BASIS = "basis.safetensors"
"""The file of a narrower student's basis, beside its weights."""

_BATCH_TOKENS = 4096


@dataclass(frozen=True)
class CalibrationReport:
    """What calibrating read, and how near the student came.

    Attributes:
        texts: Texts read, by language.
        tokens: Tokens of them all and of their disturbed copies.
        errors: After the embeddings and after each layer, the relative squared error of the student's
            hidden states.
        basis: P (teacher's width, student's width); None where the widths are equal.
        heads: For each layer, the teacher's head that each of its heads stands for.
    """

    texts: dict[str, int]
    tokens: int
    errors: tuple[float, ...]
    basis: Tensor | None
    heads: tuple[tuple[Head, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """What --json and a record say of it."""
        errors = [round(error, 6) for error in self.errors]
        return {
            "texts": self.texts,
            "tokens": self.tokens,
            "relative_error": errors,
            "basis": None if self.basis is None else BASIS,
        }


def calibrate_student(
    source: Source,
    folder: Path,
    plan: StudentPlan,
    data: CalibrationData,
    device: torch.device,
    *,
    kept: Sequence[int] | None = None,
    settings: Settings | None = None,
    progress: Progress = silent,
) -> CalibrationReport:
    """Overwrite the weights of a copied student by calibrated ones; a narrower one's basis goes beside.

    Args:
        source: The teacher.
        folder: The student's directory, with its tokenizer, as `shrink_source` writes it.
        kept: Ids of the teacher's tokens that the student has, in its order; None for all.

    Raises:
        ModelError: Such models cannot be calibrated, or one is damaged.
    """
    copied = find_model(str(folder), source.access)
    tokenizer = load_tokenizer(copied, data.task)
    length = fitting_length(data.max_length, tokenizer, source.config)
    encoded = encode(data.table, tokenizer, task=data.task, max_length=length, label_ids=None)
    teacher_ids = None if kept is None else torch.tensor(kept, device=device)
    texts = Texts(encoded, tokenizer, teacher_ids, device, data.copies)
    teacher = to_device(load_weights(source, copied.task), device).eval()
    student = to_device(load_weights(copied, copied.task), device).eval()
    batches = make_batches(texts.lengths, _BATCH_TOKENS)
    tokens = sum(batch.tokens for batch in batches)
    with (
        _solving(source, tokens),
        tempfile.TemporaryDirectory(prefix=".activations.", dir=folder) as spilled,
    ):
        result = calibrate(
            view(teacher),
            view(student),
            batches,
            texts,
            plan.layers,
            Path(spilled),
            teacher_ids=teacher_ids,
            settings=settings,
            progress=progress,
        )
    _check_finite(source, result.errors)
    _write(folder / "model.safetensors", student.state_dict())
    if result.basis is not None:
        write_basis(folder, result.basis)
    return CalibrationReport(data.counts(), tokens, result.errors, result.basis, result.heads)


def _check_finite(source: Source, errors: Sequence[float]) -> None:
    if not all(map(math.isfinite, errors)):
        raise ModelError(
            f"--init calibrated: the hidden states of {source.name} are not finite, so nothing can be fitted "
            "to them.\nIts weights are damaged, or too large. Take an earlier checkpoint."
        )


@contextmanager
def _solving(source: Source, tokens: int) -> Iterator[None]:
    """Tell of too little text, and of equations that have no solution for that reason."""
    if tokens < source.width:
        logger.warning(
            "calibrating on %d tokens, for a width of %d: more text does better",
            tokens,
            source.width,
        )
    try:
        yield
    except torch.linalg.LinAlgError as error:
        raise ModelError(
            f"--init calibrated: {source.name} cannot be calibrated on {tokens} tokens of text: what it makes "
            f"of them does not tell {source.width} channels apart.\n"
            "Give more text with --data, or raise --calibration-samples."
        ) from error


def _write(path: Path, state: dict[str, Tensor]) -> None:
    """Rewrite a weights file with the tensors of a model: the same names and types."""
    with TensorReader(path.parent) as reader:
        specs = dict(reader.specs)
    path.unlink()
    write_tensors(path, specs, lambda name: state[name].to("cpu", specs[name].dtype))


def write_basis(folder: Path, basis: Tensor) -> None:
    """Write a basis beside a student's weights."""
    spec = TensorSpec(tuple(basis.shape), basis.dtype)
    write_tensors(folder / BASIS, {"basis": spec}, lambda _: basis)


def read_basis(student: Source) -> Tensor | None:
    """The basis that a student's record names, (teacher's width, student's width); None without one.

    Raises:
        ModelError: The record names one, and it is not there or damaged.
    """
    calibration = student.record.calibration
    if calibration is None or calibration.basis is None:
        return None
    name = calibration.basis
    try:
        return load_file(student.directory / Path(name).name)["basis"]
    except Exception as error:
        raise ModelError(
            f"{student.name}: its kdshrink.json names the basis {name}, which cannot be read.\n"
            f"{type(error).__name__}: {error}\nCopy it from where the student was made."
        ) from error
