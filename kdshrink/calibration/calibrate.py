"""Calibrates a student directory: encodes the texts, fits the weights, writes them back."""

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
from datasets import Dataset, concatenate_datasets
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.encoding import Collator, as_words, encode
from ..data.registry import Task
from ..errors import ModelError
from ..models.architectures import Head
from ..models.devices import execution_on, to_device
from ..models.loading import fitting_length, load_tokenizer, load_weights
from ..models.source import Source, find_model
from ..models.tensors import TensorReader, TensorSpec, to_array, write_tensors
from ..progress import Progress, silent
from ..shrinking.plan import StudentPlan
from .agreement import agreement
from .batch import make_batches
from .encoder_view import view
from .sweep import Settings, calibrate
from .texts import CalibrationData, Texts, known_rows

logger = logging.getLogger(__name__)

BASIS = "basis.safetensors"
"""The file in a student directory with the basis of its hidden states, if narrower than the teacher's."""

_MOST_TOKENS = 4096
"""Tokens of a batch at most: products within one are summed in float32."""


@dataclass(frozen=True)
class CalibrationReport:
    """The data that a calibration used, and the error that remains.

    Attributes:
        texts: Number of texts by language.
        sentences: Number of shipped sentences beside them.
        tokens: Tokens of all of these and of their noised copies.
        errors: Relative squared error of the student's hidden states, after the embeddings and after
            each layer.
        basis: P (teacher's width, student's width); None where the widths are equal.
        heads: For each layer of the student, the teacher's head that each of its heads replaces.
        agreement: By language, the share of predictions on other texts in which the untrained student
            agrees with its teacher (`agreement.agreement`); empty for a bare encoder.
    """

    texts: dict[str, int]
    sentences: int
    tokens: int
    errors: tuple[float, ...]
    basis: Tensor | None
    heads: tuple[tuple[Head, ...], ...]
    agreement: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """The content of `calibration` in --json and in kdshrink.json."""
        errors = [round(error, 6) for error in self.errors]
        return {
            "texts": self.texts,
            "multilingual_sentences": self.sentences,
            "tokens": self.tokens,
            "relative_error": errors,
            "agreement": {name: round(share, 6) for name, share in self.agreement.items()},
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
    """Replace a copied student's weights by calibrated ones; if it is narrower, write its basis too.

    Args:
        source: The teacher.
        folder: The student's directory, with its tokenizer, as `shrink_source` writes it.
        plan: How the student was cut out of the teacher.
        data: The texts to calibrate on.
        kept: For each of the student's tokens the teacher's id; None if the vocabularies are the same.

    Raises:
        ModelError: The architecture is not supported, or a model is damaged.
    """
    copied = find_model(str(folder), source.access)
    tokenizer = load_tokenizer(copied, data.task)
    length = fitting_length(data.max_length, tokenizer, source.config)
    encoded = _encoded(data, tokenizer, length)
    teacher_ids = None if kept is None else torch.tensor(kept, device=device)
    texts = Texts(encoded, tokenizer, teacher_ids, device, data.copies)
    teacher = to_device(load_weights(source, copied.task), device).eval()
    student = to_device(load_weights(copied, copied.task), device).eval()
    batches = make_batches(texts.lengths, min(execution_on(device).positions, _MOST_TOKENS))
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
    shares = _compared(teacher, student, copied, data, tokenizer, length, teacher_ids, device)
    sentences = len(encoded) - len(data.table)
    return CalibrationReport(
        data.counts(), sentences, tokens, result.errors, result.basis, result.heads, shares
    )


def _encoded(data: CalibrationData, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """The texts, then the sentences that have no token unknown to the vocabulary, tokenised."""

    def encoded_of(table: Dataset) -> Dataset:
        return encode(table, tokenizer, task=data.task, max_length=max_length, label_ids=None)

    texts = encoded_of(data.table)
    if not len(data.sentences):
        return texts
    sentences = encoded_of(data.sentences)
    return concatenate_datasets([texts, sentences.select(known_rows(sentences, tokenizer))])


def _compared(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    source: Source,
    data: CalibrationData,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    teacher_ids: Tensor | None,
    device: torch.device,
) -> dict[str, float]:
    """The student's agreement with its teacher on the held-out texts; empty for a bare encoder."""
    if source.task is None or not len(data.held_out):
        return {}
    words = source.task == "token" and data.task == "sequence"
    table = as_words(data.held_out) if words else data.held_out
    task: Task = "token" if words else data.task
    encoded = encode(table, tokenizer, task=task, max_length=max_length, label_ids=None)
    rows = known_rows(encoded, tokenizer)
    if not rows:
        return {}
    return agreement(
        teacher,
        student,
        table.select(rows),
        encoded.select(rows),
        task=source.task,
        collate=Collator(int(tokenizer.pad_token_id)),
        teacher_ids=teacher_ids,
        device=device,
    )


def _check_finite(source: Source, errors: Sequence[float]) -> None:
    if not all(map(math.isfinite, errors)):
        raise ModelError(
            f"--init calibrated: the hidden states of {source.name} are not finite, so nothing can be fitted "
            "to them.\nIts weights are damaged, or too large. Take an earlier checkpoint."
        )


@contextmanager
def _solving(source: Source, tokens: int) -> Iterator[None]:
    """Warn where there is little text, and raise ModelError where too little to solve the regressions."""
    if tokens < source.width:
        logger.warning(
            "calibrating on %d tokens, for a width of %d: more text gives better weights",
            tokens,
            source.width,
        )
    try:
        yield
    except torch.linalg.LinAlgError as error:
        raise ModelError(
            f"--init calibrated: {source.name} cannot be calibrated on {tokens} tokens of text: its "
            f"activations on them do not determine weights for a width of {source.width}.\n"
            "Give more text with --data, or raise --calibration-samples."
        ) from error


def _write(path: Path, state: dict[str, Tensor]) -> None:
    """Rewrite a weights file with the tensors of a model, under the same names and in the same types."""
    with TensorReader(path.parent) as reader:
        specs = dict(reader.specs)
    path.unlink()
    write_tensors(path, specs, lambda name: to_array(state[name].to("cpu", specs[name].torch_type)))


def write_basis(folder: Path, basis: Tensor) -> None:
    """Write a basis to a student's directory."""
    write_tensors(folder / BASIS, {"basis": TensorSpec.of(basis)}, lambda _: to_array(basis))


def read_basis(student: Source) -> Tensor | None:
    """The basis (teacher's width, student's width) that a student's kdshrink.json names; None without one.

    Raises:
        ModelError: The file is missing or damaged.
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
