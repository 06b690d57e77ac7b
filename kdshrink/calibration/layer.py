"""Fits one layer of a student to a block: the teacher's layers that it replaces.

Several passes over the texts, since each linear map is fitted on the student's actual activations up to
it. Heads and FFN units are chosen from all layers of the block, and their outputs are fitted to the
difference between the output of the block's last layer and the student's hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .bases import score_bases, value_basis
from .batch import Batch
from .encoder_view import LayerView, normalise
from .regression import Affine, ChannelFit, Regression
from .stream import (
    STUDENT_BRANCH,
    STUDENT_HIDDEN,
    TEACHER_HIDDEN,
    TEACHER_RESIDUAL,
    WEIGHT,
    Stream,
    dropped_post_attention,
)

PASSES = 7
"""Passes over the texts that fitting a layer takes."""

_CANDIDATES = 1.5
"""Candidates for the units of the student's FFN, as a multiple of their number."""

OfBatch = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class LayerFit:
    """The result of fitting a layer.

    Attributes:
        error: Relative squared error of its output, as `advance` gives it.
        heads: For each of its heads the teacher's head that it replaces, numbered from 0 across the
            block's layers.
    """

    error: float
    heads: list[int]


def assign(module: nn.Linear | nn.LayerNorm, solution: Affine) -> None:
    """Overwrite a module's weight and bias."""
    module.weight.copy_(solution.weight)
    module.bias.copy_(solution.bias)


def fit_layer(
    stream: Stream, block: Sequence[LayerView], student: LayerView, ridge: float
) -> LayerFit:
    """Overwrite the weights of a layer of the student.

    Args:
        stream: Holds the inputs of the teacher's block and of the student's layer, which are replaced by
            their outputs.
        block: The teacher's layers that the student's replaces, in ascending order.
        student: The layer to fit.
        ridge: λ in units of the mean diagonal of the inputs' moments.
    """
    teacher = block[-1]
    outward, heads = _fit_attention(stream, block, student, ridge)
    _fit_attention_output(stream, student, outward, ridge)

    def attention_sum(batch: Batch) -> Tensor:
        context, x = stream.read(STUDENT_BRANCH, batch), stream.read(STUDENT_HIDDEN, batch)
        return student.attention_output(context) + x

    def teacher_post_attention(batch: Batch) -> Tensor:
        return teacher.attention_norm(stream.read(TEACHER_RESIDUAL, batch))

    fit_norm(stream, student.attention_norm, attention_sum, teacher_post_attention)
    candidates = _fit_ffn_up(stream, block, student, ridge)
    _fit_ffn_down(stream, student, candidates, ridge)

    def ffn_sum(batch: Batch) -> Tensor:
        post_attention = stream.read(STUDENT_BRANCH, batch)
        return student.ffn_down(student.activation(student.ffn_up(post_attention))) + post_attention

    def teacher_output(batch: Batch) -> Tensor:
        return teacher.ffn_norm(stream.read(TEACHER_RESIDUAL, batch))

    fit_norm(stream, student.ffn_norm, ffn_sum, teacher_output)
    return LayerFit(advance(stream, student.ffn_norm, teacher_output), heads)


def fit_norm(stream: Stream, norm: nn.LayerNorm, student: OfBatch, teacher: OfBatch) -> None:
    """Fit a norm's weight and bias, channel by channel, to the teacher's projected output.

    The normalised input, before weight and bias, is left in STUDENT_BRANCH.

    Args:
        norm: The student's.
        student: Gives the input of the student's norm, (tokens, student's width).
        teacher: Gives the output of the teacher's norm, (tokens, teacher's width).
    """
    fit = ChannelFit()
    for batch in stream.batches():
        z = normalise(student(batch), norm)
        fit.add(z, stream.project(teacher(batch)), stream.read(WEIGHT, batch))
        stream.write(STUDENT_BRANCH, batch, z)
    assign(norm, fit.solve())


def advance(stream: Stream, norm: nn.LayerNorm, teacher: OfBatch) -> float:
    """Move both models' hidden states in the stream on, to the outputs of the norms just fitted.

    Args:
        norm: The student's, whose normalised input is in STUDENT_BRANCH.
        teacher: Gives the teacher's new hidden states, (tokens, teacher's width).

    Returns:
        Relative squared error: ‖student − teacher P‖² over the variance of teacher P.
    """
    width = norm.weight.numel()
    error, squares = (torch.zeros((), dtype=torch.float64) for _ in range(2))
    total, count = torch.zeros(width, dtype=torch.float64), 0
    for batch in stream.batches():
        student = stream.read(STUDENT_BRANCH, batch) * norm.weight + norm.bias
        target = teacher(batch)
        stream.write(STUDENT_HIDDEN, batch, student)
        stream.write(TEACHER_HIDDEN, batch, target)
        seen = stream.project(target).double()
        error += (student - seen).pow(2).sum().cpu()
        squares += seen.pow(2).sum().cpu()
        total += seen.sum(0).cpu()
        count += batch.tokens
    variance = squares - total.pow(2).sum() / count
    return float(error / variance.clamp_min(1e-12))


class _AttentionFit:
    """Regressions from the student's hidden states to a teacher layer's queries, keys and values.

    They predict all dimensions of the teacher's heads, and the projections to fewer (`score_bases`,
    `value_basis`) are composed with the solution, which gives the same as predicting the projected ones.
    DeBERTa's relative positions have queries and keys too (c2p and p2c are dot products as c2c is): these
    are pooled with those of the tokens, at equal total weight.

    Args:
        teacher: The teacher's layer.
        size: The student's head size.
    """

    def __init__(self, stream: Stream, teacher: LayerView, size: int) -> None:
        self._stream, self._teacher, self._size = stream, teacher, size
        outward = stream.project_out(teacher.attention_output.weight)
        self._outward = outward.unflatten(1, (teacher.heads, -1)).transpose(0, 1)
        self._pair = Regression(
            stream.project(torch.cat([teacher.query.weight, teacher.key.weight]))
        )
        self._values = Regression(stream.project(teacher.value.weight))
        width = teacher.query.out_features
        zeros = torch.zeros(4, teacher.heads, width // teacher.heads, width // teacher.heads)
        self._moments = zeros.double().to(stream.device)
        self._context = torch.zeros(width, dtype=torch.float64, device=stream.device)
        self._count = 0.0

    def add(self, student_hidden: Tensor, x: Tensor, context: Tensor, weight: Tensor) -> None:
        """Add a batch.

        Args:
            student_hidden: The input of the student's layer, (tokens, student's width).
            x: The input of the teacher's layer, (tokens, teacher's width).
            context: Its heads' context vectors, (tokens, heads · head size).
            weight: Of each token, (tokens, 1).
        """
        teacher = self._teacher
        q, k, v = teacher.query(x), teacher.key(x), teacher.value(x)
        self._pair.add(student_hidden, torch.cat([q, k], 1), weight)
        self._values.add(student_hidden, v, weight)
        rows = torch.stack([q, k, v, context])
        self._moments += _head_moments(rows, weight, teacher.heads)
        self._context += (context * weight).sum(0)
        self._count += float(weight.sum())

    def importance(self) -> Tensor:
        """For each head the variance of what it adds to the projected hidden states, (heads,)."""
        mean = (self._context / self._count).unflatten(0, (self._teacher.heads, -1))
        covariance = self._moments[3] / self._count - mean[:, :, None] * mean[:, None]
        outward = self._outward.double()
        return ((outward @ covariance) * outward).sum((1, 2))

    def solve(self, ridge: float) -> tuple[dict[str, Affine], Tensor]:
        """Solve the regressions, for all heads at the student's head size.

        Returns:
            Weights of the projections, by their names in LayerView; and the matching output projection
            of each head, (heads, student's width, size).
        """
        teacher = self._teacher
        queries, keys, values, _ = self._moments
        if self._stream.positions is not None:
            x, student_positions = self._stream.positions
            weight = torch.full_like(x[:, :1], self._count / len(x))
            q = (teacher.position_query or teacher.query)(x)
            k = (teacher.position_key or teacher.key)(x)
            more = _head_moments(torch.stack([q, k]), weight, teacher.heads)
            queries, keys = queries + more[0], keys + more[1]
            if teacher.position_query is None and teacher.position_key is None:
                self._pair.add(student_positions, torch.cat([q, k], 1), weight)
        map_values, back = value_basis(values / self._count, self._outward, self._size)
        map_queries, map_keys = score_bases(queries, keys, self._size)
        solution = self._pair.solve(ridge)
        query, key = zip(solution.weight.chunk(2), solution.bias.chunk(2), strict=True)
        parts = {
            "query": _compose_per_head(map_queries, Affine(*query)),
            "key": _compose_per_head(map_keys, Affine(*key)),
            "value": _compose_per_head(map_values, self._values.solve(ridge)),
        }
        for name, maps in (("position_query", map_queries), ("position_key", map_keys)):
            if (linear := getattr(teacher, name)) is not None:
                parts[name] = _compose_per_head(maps, self._position(linear, ridge))
        return parts, self._outward.to(back) @ back

    def _position(self, teacher: nn.Linear, ridge: float) -> Affine:
        """Fit a separate projection of relative positions to the teacher's."""
        assert self._stream.positions is not None
        x, student_positions = self._stream.positions
        fit = Regression(self._stream.project(teacher.weight))
        fit.add(student_positions, teacher(x), torch.ones_like(x[:, :1]))
        return fit.solve(ridge)


def _fit_attention(
    stream: Stream, block: Sequence[LayerView], student: LayerView, ridge: float
) -> tuple[Tensor, list[int]]:
    """Fit queries, keys and values to the most important heads of the block (`importance`).

    Leaves in the stream the residual sum after the attention of the block's last layer, and for the
    other layers their states between attention and FFN.

    Returns:
        The teacher's output projection for the chosen heads, (student's width, heads · size); and their
        numbers, from 0 across the block's layers.
    """
    size = student.query.out_features // student.heads
    fits = [_AttentionFit(stream, layer, size) for layer in block]
    for batch in stream.batches():
        x, student_hidden = stream.read(TEACHER_HIDDEN, batch), stream.read(STUDENT_HIDDEN, batch)
        weight = stream.read(WEIGHT, batch)
        for number, (layer, fit) in enumerate(zip(block, fits, strict=True)):
            context = layer.context(x, batch)
            fit.add(student_hidden, x, context, weight)
            summed = layer.attention_output(context) + x
            if layer is block[-1]:
                stream.write(TEACHER_RESIDUAL, batch, summed)
            else:
                post_attention = layer.attention_norm(summed)
                stream.write(dropped_post_attention(number), batch, post_attention)
                x = layer.ffn(post_attention)
    importance = torch.cat([fit.importance() for fit in fits])
    chosen = importance.topk(student.heads).indices.sort().values
    parts, outward = zip(*(fit.solve(ridge) for fit in fits), strict=True)
    for name in parts[0]:
        weight, bias = (
            torch.cat([getattr(part[name], which) for part in parts])
            .unflatten(0, (-1, size))[chosen]
            .flatten(0, 1)
            for which in ("weight", "bias")
        )
        assign(getattr(student, name), Affine(weight, bias))
    return torch.cat(outward)[chosen].transpose(0, 1).flatten(1), chosen.tolist()


def _head_moments(rows: Tensor, weight: Tensor, heads: int) -> Tensor:
    """Weighted second moments of each head, (kinds, heads, d, d), of rows (kinds, n, heads · d)."""
    split = rows.unflatten(-1, (heads, -1))
    return torch.einsum("pnhd,pnhe->phde", split * weight[:, :, None], split).double()


def _compose_per_head(maps: Tensor, linear: Affine) -> Affine:
    """Compose an affine map to (heads · d,) with each head's projection Mᵀ, where M is (heads, d, size)."""
    heads = maps.shape[0]
    weight = maps.mT @ linear.weight.unflatten(0, (heads, -1))
    bias = maps.mT @ linear.bias.unflatten(0, (heads, -1))[..., None]
    return Affine(weight.flatten(0, 1), bias.flatten())


def _fit_attention_output(stream: Stream, student: LayerView, prior: Tensor, ridge: float) -> None:
    """Fit the output projection of attention; leave the student's context vectors in STUDENT_BRANCH."""
    fit = Regression(prior)
    for batch in stream.batches():
        x = stream.read(STUDENT_HIDDEN, batch)
        context = student.context(x, batch)
        target = stream.project(stream.read(TEACHER_RESIDUAL, batch)) - x
        fit.add(context, target, stream.read(WEIGHT, batch))
        stream.write(STUDENT_BRANCH, batch, context)
    assign(student.attention_output, fit.solve(ridge))


@dataclass(frozen=True)
class _Units:
    """Candidates for the units of the student's FFN.

    Attributes:
        ffn_up: Maps the student's post-attention states to the units before activation.
        outward: The teacher's ffn_down weight for them, projected: (student's width, units).
    """

    ffn_up: Affine
    outward: Tensor


def _fit_ffn_up(
    stream: Stream, block: Sequence[LayerView], student: LayerView, ridge: float
) -> _Units:
    """Select candidates among the FFN units of the block's layers, and fit ffn_up to them.

    They are ranked by the root mean square of a unit's activation, times the norm of its output weights,
    times the share of its variance before activation that the student's states explain. Leaves the
    student's post-attention states in STUDENT_BRANCH, and the residual sum after the FFN of the block's
    last layer in TEACHER_RESIDUAL.
    """
    *dropped, teacher = block
    fit = Regression(stream.project(torch.cat([layer.ffn_up.weight for layer in block])))
    energy: Tensor | float = 0.0
    for batch in stream.batches():
        normalised = stream.read(STUDENT_BRANCH, batch)
        post_attention = normalised * student.attention_norm.weight + student.attention_norm.bias
        x = teacher.attention_norm(stream.read(TEACHER_RESIDUAL, batch))
        weight = stream.read(WEIGHT, batch)
        others = [
            layer.ffn_up(stream.read(dropped_post_attention(number), batch))
            for number, layer in enumerate(dropped)
        ]
        before = torch.cat([*others, teacher.ffn_up(x)], 1)
        after = teacher.activation(before)
        fit.add(post_attention, before, weight)
        energy = energy + (after.double().pow(2) * weight).sum(0)
        stream.write(STUDENT_BRANCH, batch, post_attention)
        last = after[:, -teacher.ffn_up.out_features :]
        stream.write(TEACHER_RESIDUAL, batch, teacher.ffn_down(last) + x)
    assert isinstance(energy, Tensor)
    solution = fit.solve(ridge)
    outward = stream.project_out(torch.cat([layer.ffn_down.weight for layer in block], 1))
    importance = energy.sqrt() * outward.norm(dim=0) * fit.explained(solution)
    count = min(len(importance), round(_CANDIDATES * student.ffn_up.out_features))
    units = importance.topk(count).indices.sort().values
    return _Units(Affine(solution.weight[units], solution.bias[units]), outward[:, units])


def _fit_ffn_down(stream: Stream, student: LayerView, units: _Units, ridge: float) -> None:
    """Choose the candidates that jointly predict best (`Regression.prune`), and fit ffn_down.

    The target is the teacher's projected residual sum minus the student's post-attention states.
    """
    fit = Regression(units.outward)
    weight, bias = units.ffn_up.weight.float(), units.ffn_up.bias.float()
    for batch in stream.batches():
        post_attention = stream.read(STUDENT_BRANCH, batch)
        target = stream.project(stream.read(TEACHER_RESIDUAL, batch)) - post_attention
        after = student.activation(functional.linear(post_attention, weight, bias))
        fit.add(after, target, stream.read(WEIGHT, batch))
    chosen = fit.prune(ridge, student.ffn_up.out_features)
    assign(student.ffn_up, Affine(units.ffn_up.weight[chosen], units.ffn_up.bias[chosen]))
    assign(student.ffn_down, fit.solve(ridge, chosen))
