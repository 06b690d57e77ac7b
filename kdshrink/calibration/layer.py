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
    outward, heads, energy = _fit_attention(stream, block, student, ridge)
    _fit_attention_output(stream, student, outward, ridge)

    def attention_sum(batch: Batch) -> Tensor:
        context, x = stream.read(STUDENT_BRANCH, batch), stream.read(STUDENT_HIDDEN, batch)
        return student.attention_output(context) + x

    def teacher_post_attention(batch: Batch) -> Tensor:
        return teacher.attention_norm(stream.read(TEACHER_RESIDUAL, batch))

    fit_norm(stream, student.attention_norm, attention_sum, teacher_post_attention)
    candidates = _fit_ffn_up(stream, block, student, energy, ridge)
    _fit_ffn_down(stream, student, candidates, ridge)

    def ffn_sum(batch: Batch) -> Tensor:
        post_attention = stream.read(STUDENT_BRANCH, batch)
        return student.ffn_down(student.activation(student.ffn_up(post_attention))) + post_attention

    def teacher_output(batch: Batch) -> Tensor:
        return teacher.ffn_norm(stream.read(TEACHER_HIDDEN, batch))

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
    error, squares, total, count = 0.0, 0.0, torch.zeros(()), 0
    for batch in stream.batches():
        student = stream.read(STUDENT_BRANCH, batch) * norm.weight + norm.bias
        target = teacher(batch)
        stream.write(STUDENT_HIDDEN, batch, student)
        stream.write(TEACHER_HIDDEN, batch, target)
        seen = stream.project(target)
        error += float((student - seen).square_().sum())
        squares += float(seen.square().sum())
        total = total + seen.sum(0).double().cpu()
        count += batch.tokens
    variance = squares - float(total.pow(2).sum()) / count
    return error / max(variance, 1e-12)


class _AttentionFit:
    """Fits queries, keys and values from the student's hidden states to a teacher layer's.

    All three are linear functions of the layer's input, so one regression to this input gives them: the
    solution is composed with the teacher's projections, which gives the same as a regression to what
    these put out. Projections of the heads to fewer dimensions (`score_bases`, `value_basis`) are composed
    with it too. DeBERTa's relative positions have queries and keys too (c2p and p2c are dot products as
    c2c is): these are pooled with those of the tokens, at equal total weight.

    Args:
        teacher: The teacher's layer.
        size: The student's head size.
    """

    def __init__(self, stream: Stream, teacher: LayerView, size: int) -> None:
        self._stream, self._teacher, self._size = stream, teacher, size
        outward = stream.project_out(teacher.attention_output.weight)
        self._outward = outward.unflatten(1, (teacher.heads, -1)).transpose(0, 1)
        self._input = Regression(stream.basis)
        self._context: Tensor | float = 0.0
        self._products: Tensor | float = 0.0
        self._count = 0.0

    def add(self, student_hidden: Tensor, x: Tensor, context: Tensor, weight: Tensor) -> None:
        """Add a batch.

        Args:
            student_hidden: The input of the student's layer, (tokens, student's width).
            x: The input of the teacher's layer, (tokens, teacher's width).
            context: Its heads' context vectors, (tokens, heads · head size).
            weight: Of each token, (tokens, 1).
        """
        self._input.add(student_hidden, x, weight)
        weighted, split = (
            rows.unflatten(1, (self._teacher.heads, -1)).transpose(0, 1)
            for rows in (context * weight, context)
        )
        self._context = self._context + weighted.sum(1).double()
        self._products = self._products + (weighted.mT @ split).double()
        self._count += float(weight.sum())

    def importance(self) -> Tensor:
        """For each head the variance of what it adds to the projected hidden states, (heads,)."""
        assert isinstance(self._context, Tensor)
        mean = self._context / self._count
        covariance = self._products / self._count - mean[:, :, None] * mean[:, None]
        outward = self._outward.double()
        return ((outward @ covariance) * outward).sum((1, 2))

    def solve(self, ridge: float) -> tuple[dict[str, Affine], Tensor]:
        """Solve the regressions, for all heads at the student's head size.

        Returns:
            Weights of the projections, by their names in LayerView; and the matching output projection
            of each head, (heads, student's width, size).
        """
        teacher = self._teacher
        mean, covariance = self._input.targets()
        second_moment = covariance + mean[:, None] * mean
        queries, keys, values = (
            self._head_moments(part, mean, second_moment)
            for part in (teacher.query, teacher.key, teacher.value)
        )
        solution = self._input.solve(ridge)
        value = compose(teacher.value, solution)
        shared = (teacher.position_query or teacher.position_key) is None
        if self._stream.positions is not None:
            x, student_positions = self._stream.positions
            rows = x.double()
            there = rows.mean(0), rows.T @ rows / len(rows)
            queries = queries + self._head_moments(teacher.position_query or teacher.query, *there)
            keys = keys + self._head_moments(teacher.position_key or teacher.key, *there)
            if shared:
                self._input.add(
                    student_positions, x, torch.full_like(x[:, :1], self._count / len(x))
                )
                solution = self._input.solve(ridge)
        map_values, back = value_basis(values, self._outward, self._size)
        map_queries, map_keys = score_bases(queries, keys, self._size)
        parts = {
            "query": _compose_per_head(map_queries, compose(teacher.query, solution)),
            "key": _compose_per_head(map_keys, compose(teacher.key, solution)),
            "value": _compose_per_head(map_values, value),
        }
        for name, maps in (("position_query", map_queries), ("position_key", map_keys)):
            if (linear := getattr(teacher, name)) is not None:
                parts[name] = _compose_per_head(maps, self._position(linear, ridge))
        return parts, self._outward.to(back) @ back

    def _head_moments(self, linear: nn.Linear, mean: Tensor, second_moment: Tensor) -> Tensor:
        """Mean second moments of each head's part of a projection, (heads, d, d).

        Args:
            mean, second_moment: Of the projection's inputs, (width,) and (width, width).
        """
        heads = self._teacher.heads
        weight = linear.weight.double().unflatten(0, (heads, -1))
        bias = linear.bias.double().unflatten(0, (heads, -1))
        shift = (weight @ mean)[:, :, None] * bias[:, None]
        constant = bias[:, :, None] * bias[:, None]
        return weight @ second_moment @ weight.mT + shift + shift.mT + constant

    def _position(self, teacher: nn.Linear, ridge: float) -> Affine:
        """Fit a separate projection of relative positions to the teacher's."""
        assert self._stream.positions is not None
        x, student_positions = self._stream.positions
        fit = Regression(self._stream.basis)
        fit.add(student_positions, x, torch.ones_like(x[:, :1]))
        return compose(teacher, fit.solve(ridge))


def _fit_attention(
    stream: Stream, block: Sequence[LayerView], student: LayerView, ridge: float
) -> tuple[Tensor, list[int], Tensor]:
    """Fit queries, keys and values to the most important heads of the block (`importance`).

    The teacher's block runs here, once. Leaves in the stream the residual sum after the attention of its
    last layer, for the other layers their states between attention and FFN, and as the teacher's hidden
    states the residual sum after the FFN of the last layer, before its norm.

    Returns:
        The teacher's output projection for the chosen heads, (student's width, heads · size); their
        numbers, from 0 across the block's layers; and the sum over tokens of the squared activation of
        each FFN unit of the block, (units,).
    """
    size = student.query.out_features // student.heads
    fits = [_AttentionFit(stream, layer, size) for layer in block]
    energy = torch.zeros(len(block), block[-1].ffn_up.out_features, dtype=torch.float64)
    energy = energy.to(stream.device)
    for batch in stream.batches():
        x, student_hidden = stream.read(TEACHER_HIDDEN, batch), stream.read(STUDENT_HIDDEN, batch)
        weight = stream.read(WEIGHT, batch)
        for number, (layer, fit) in enumerate(zip(block, fits, strict=True)):
            context = layer.context(x, batch)
            fit.add(student_hidden, x, context, weight)
            summed = layer.attention_output(context) + x
            post_attention = layer.attention_norm(summed)
            after = layer.activation(layer.ffn_up(post_attention))
            x = layer.ffn_down(after) + post_attention
            energy[number] += (after.square_().T @ weight)[:, 0]
            if layer is block[-1]:
                stream.write(TEACHER_RESIDUAL, batch, summed)
                stream.write(TEACHER_HIDDEN, batch, x)
            else:
                stream.write(dropped_post_attention(number), batch, post_attention)
                x = layer.ffn_norm(x)
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
    heads = torch.cat(outward)[chosen].transpose(0, 1).flatten(1)
    return heads, chosen.tolist(), energy.flatten()


def compose(linear: nn.Linear, states: Affine) -> Affine:
    """A linear layer of the teacher after an affine map to its inputs, in double precision."""
    weight = linear.weight.double()
    return Affine(weight @ states.weight, weight @ states.bias + linear.bias.double())


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
    stream: Stream, block: Sequence[LayerView], student: LayerView, energy: Tensor, ridge: float
) -> _Units:
    """Select candidates among the FFN units of the block's layers, and fit ffn_up to them.

    They are ranked by the root mean square of a unit's activation, times the norm of its output weights,
    times the share of its variance before activation that the student's states explain. Like queries and
    keys, all are fitted by a regression to the teacher's states that they are linear functions of. Leaves
    the student's post-attention states in STUDENT_BRANCH.

    Args:
        energy: The sum over tokens of each unit's squared activation, (units,).
    """
    *dropped, teacher = block
    fits = [Regression(stream.basis) for _ in block]
    for batch in stream.batches():
        normalised = stream.read(STUDENT_BRANCH, batch)
        post_attention = normalised * student.attention_norm.weight + student.attention_norm.bias
        stream.write(STUDENT_BRANCH, batch, post_attention)
        others = [
            stream.read(dropped_post_attention(number), batch) for number in range(len(dropped))
        ]
        x = teacher.attention_norm(stream.read(TEACHER_RESIDUAL, batch))
        for fit, target in zip(fits, (*others, x), strict=True):
            fit.add(post_attention, target, stream.read(WEIGHT, batch))
    solutions = [fit.solve(ridge) for fit in fits]
    ups = [compose(layer.ffn_up, states) for layer, states in zip(block, solutions, strict=True)]
    weight, bias = (torch.cat([getattr(up, which) for up in ups]) for which in ("weight", "bias"))
    explained = torch.cat(
        [
            fit.explained(states, layer.ffn_up.weight)
            for fit, states, layer in zip(fits, solutions, block, strict=True)
        ]
    )
    outward = stream.project_out(torch.cat([layer.ffn_down.weight for layer in block], 1))
    importance = energy.sqrt() * outward.norm(dim=0) * explained
    count = min(len(importance), round(_CANDIDATES * student.ffn_up.out_features))
    units = importance.topk(count).indices.sort().values
    return _Units(Affine(weight[units], bias[units]), outward[:, units])


def _fit_ffn_down(stream: Stream, student: LayerView, units: _Units, ridge: float) -> None:
    """Choose the candidates that jointly predict best (`Regression.prune`), and fit ffn_down.

    The target is the teacher's projected residual sum minus the student's post-attention states.
    """
    fit = Regression(units.outward)
    weight, bias = units.ffn_up.weight.float(), units.ffn_up.bias.float()
    for batch in stream.batches():
        post_attention = stream.read(STUDENT_BRANCH, batch)
        target = stream.project(stream.read(TEACHER_HIDDEN, batch)) - post_attention
        after = student.activation(functional.linear(post_attention, weight, bias))
        fit.add(after, target, stream.read(WEIGHT, batch))
    chosen = fit.prune(ridge, student.ffn_up.out_features)
    assign(student.ffn_up, Affine(units.ffn_up.weight[chosen], units.ffn_up.bias[chosen]))
    assign(student.ffn_down, fit.solve(ridge, chosen))
