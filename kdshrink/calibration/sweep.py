"""Fits a student's weights to its teacher's activations, layer by layer, without labels or gradients.

From the embeddings to the head, every linear map is fitted by a ridge regression from the student's
actual activations to the teacher's at the corresponding place, projected to the student's width. So
later maps correct errors of earlier ones; none depends on a later one, so one sweep is enough. This is
the layer-wise reconstruction of SparseGPT (Frantar and Alistarh 2023) in a basis like SliceGPT's
(Ashkboos et al. 2024), extended to students with fewer layers.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..models.architectures import Head
from ..progress import Progress, silent
from .bases import principal_basis
from .batch import Batch
from .encoder_view import EncoderView, PositionsView, normalise
from .layer import PASSES, advance, assign, fit_layer, fit_norm
from .regression import Affine, ChannelFit, Regression, SymmetricSum
from .stream import STUDENT_HIDDEN, TEACHER_HIDDEN, WEIGHT, Ids, Stream

logger = logging.getLogger(__name__)

_RAREST = 1e-4
"""Lower bound of a class's share of the tokens, where tokens are weighted by it."""


@dataclass(frozen=True)
class Settings:
    """Penalty and token weights of the regressions.

    Attributes:
        ridge: λ in units of the mean diagonal of the inputs' moments.
        rare_classes: For token classification, a token's weight is the frequency of the class that the
            teacher predicts for it, to the power of minus this.
    """

    ridge: float = 1e-3
    rare_classes: float = 0.5


@dataclass(frozen=True)
class Calibration:
    """The result of a calibration, beside the student's weights.

    Attributes:
        basis: P (teacher's width, student's width), orthonormal columns; None where widths are equal.
        errors: After the embeddings and after each layer, the squared error of the student's hidden
            states against the teacher's projected ones, over the variance of these.
        heads: For each layer of the student, the teacher's head that each of its heads replaces.
    """

    basis: Tensor | None
    errors: tuple[float, ...]
    heads: tuple[tuple[Head, ...], ...]


@torch.no_grad()
def calibrate(
    teacher: EncoderView,
    student: EncoderView,
    batches: Sequence[Batch],
    ids: Ids,
    layers: Sequence[int],
    folder: Path,
    *,
    teacher_ids: Tensor | None = None,
    settings: Settings | None = None,
    progress: Progress = silent,
) -> Calibration:
    """Overwrite a student's weights so that its activations match its teacher's on given texts.

    Args:
        teacher, student: Views of two models in eval mode and on one device.
        ids: Gives the input ids of a batch.
        layers: Numbers (1-based) of the teacher's layers that the student's are matched with, ascending.
        folder: Where activations are stored, in float32: per token 2 × the student's width + (1 + the
            most layers that one of the student's replaces) × the teacher's width + 1.
        teacher_ids: For each of the student's tokens the teacher's id; None if the vocabularies are the
            same.

    Raises:
        torch.linalg.LinAlgError: There is too little text to solve a regression.
        OSError: The disk has no room for the activations.
    """
    settings = settings or Settings()
    widths = teacher.norm.weight.numel(), student.norm.weight.numel()
    below = [0, *layers[:-1]]
    blocks = [teacher.layers[a:b] for a, b in zip(below, layers, strict=True)]
    device = student.norm.weight.device
    stream = Stream(
        batches,
        ids,
        widths,
        dropped=max(map(len, blocks)) - 1,
        passes=5 + PASSES * len(layers) + len(teacher.layers) - layers[-1],
        folder=folder,
        device=device,
        progress=progress,
    )
    _survey(stream, teacher, widths[1], settings)
    errors = [_embed(stream, teacher, student, teacher_ids)]
    heads = []
    for start, number, block, layer in zip(below, layers, blocks, student.layers, strict=True):
        fit = fit_layer(stream, block, layer, settings.ridge)
        errors.append(fit.error)
        places = (divmod(head, block[0].heads) for head in fit.heads)
        heads.append(tuple(Head(start + above + 1, head + 1) for above, head in places))
        logger.info("calibrated to layer %d: relative error %.4f", number, fit.error)
    for above in teacher.layers[layers[-1] :]:
        for batch in stream.batches():
            stream.write(TEACHER_HIDDEN, batch, above(stream.read(TEACHER_HIDDEN, batch), batch))
    _fit_head(stream, teacher, student, settings.ridge)
    basis = None if stream.basis is None else stream.basis.cpu()
    return Calibration(basis, tuple(errors), tuple(heads))


def _survey(stream: Stream, teacher: EncoderView, width: int, settings: Settings) -> None:
    """Compute the tokens' weights, and the basis of a narrower student.

    The basis spans the leading eigenvectors of the uncentred second moment of the teacher's hidden
    states, pooled over tokens and layers.
    """
    wide = teacher.norm.weight.numel()
    products = SymmetricSum()
    counts: Tensor | float = 0.0
    for batch in stream.batches():
        stream.write(WEIGHT, batch, torch.ones(batch.tokens, 1))
        if width == wide and not teacher.classifies_tokens:
            continue
        x = teacher.embeddings(stream.ids(batch)[0])[batch.mask(stream.device)]
        products.add(x)
        for layer in teacher.layers:
            x = layer(x, batch)
            products.add(x)
        if teacher.classifies_tokens:
            assert teacher.head is not None
            logits = teacher.head.logits(x)
            assert logits is not None
            classes = logits.argmax(-1)
            counts = counts + torch.bincount(classes, minlength=logits.shape[-1]).double()
            stream.write(WEIGHT, batch, classes[:, None].float())
    if width < wide:
        stream.basis = principal_basis(products.total(), width).float()
    if isinstance(counts, Tensor):
        share = (counts / counts.sum()).clamp_min(_RAREST)
        weights = share.pow(-settings.rare_classes)
        weights = (weights / (weights * share).sum()).float()
        for batch in stream.batches():
            stream.write(WEIGHT, batch, weights[stream.read(WEIGHT, batch).long()])


def _embed(
    stream: Stream, teacher: EncoderView, student: EncoderView, teacher_ids: Tensor | None
) -> float:
    """Project the embedding tables to the student's width and fit their norm; gives the relative error."""
    words, *others = zip(student.tables, teacher.tables, strict=True)
    for student_table, teacher_table in (words, *others):
        cut = teacher_ids is not None and student_table is words[0]
        rows = teacher_table.weight[teacher_ids] if cut else teacher_table.weight
        student_table.weight.copy_(stream.project(rows))
    # With a weight of 1 and a bias of 0 the output of the embeddings is the normalised sum itself.
    assign(student.norm, Affine(torch.ones(()), torch.zeros(())))

    def teacher_output(batch: Batch) -> Tensor:
        x = teacher.embeddings(stream.ids(batch)[0])[batch.mask(stream.device)]
        stream.write(TEACHER_HIDDEN, batch, x)
        return x

    def student_output(batch: Batch) -> Tensor:
        return student.embeddings(stream.ids(batch)[1])[batch.mask(stream.device)]

    fit_norm(stream, student.norm, student_output, teacher_output)
    if teacher.positions is not None and student.positions is not None:
        stream.positions = _fit_positions(stream, teacher.positions, student.positions)
    return advance(stream, student.norm, lambda batch: stream.read(TEACHER_HIDDEN, batch))


def _fit_positions(
    stream: Stream, teacher: PositionsView, student: PositionsView
) -> tuple[Tensor, Tensor]:
    """Project the embeddings of relative positions and fit their norm; gives both models', normed."""
    student.table.weight.copy_(stream.project(teacher.table.weight))
    if student.norm is not None:
        fit, rows = ChannelFit(), student.table.weight
        target = stream.project(teacher.states())
        fit.add(normalise(rows, student.norm), target, torch.ones_like(rows[:, :1]))
        assign(student.norm, fit.solve())
    return teacher.states(), student.states()


def _fit_head(stream: Stream, teacher: EncoderView, student: EncoderView, ridge: float) -> None:
    """Fit the dense layer to the teacher's most important units, and the output layer to its logits."""
    teacher_head, student_head = teacher.head, student.head
    if teacher_head is None or student_head is None:
        return

    def rows(batch: Batch, name: str) -> Tensor:
        x = stream.read(name, batch)
        return x[batch.firsts(stream.device)] if teacher.reads_first else x

    units = None
    if teacher_head.dense is not None and student_head.dense is not None:
        fit = Regression(stream.project(teacher_head.dense.weight))
        energy = torch.zeros(
            teacher_head.dense.out_features, dtype=torch.float64, device=stream.device
        )
        for batch in stream.batches():
            before = teacher_head.dense(rows(batch, TEACHER_HIDDEN))
            fit.add(rows(batch, STUDENT_HIDDEN), before, rows(batch, WEIGHT))
            energy += teacher_head.activation(before).double().pow(2).sum(0)
        if teacher_head.output is not None:
            energy *= teacher_head.output.weight.double().pow(2).sum(0)
        units = energy.topk(student_head.dense.out_features).indices.sort().values
        solution = fit.solve(ridge)
        assign(student_head.dense, Affine(solution.weight[units], solution.bias[units]))
    if teacher_head.output is not None and student_head.output is not None:
        weight = teacher_head.output.weight
        fit = Regression(stream.project(weight) if units is None else weight[:, units])
        for batch in stream.batches():
            x = rows(batch, STUDENT_HIDDEN)
            x = x if student_head.dense is None else student_head.activation(student_head.dense(x))
            logits = teacher_head.logits(rows(batch, TEACHER_HIDDEN))
            assert logits is not None
            fit.add(x, logits, rows(batch, WEIGHT))
        assign(student_head.output, fit.solve(ridge))
