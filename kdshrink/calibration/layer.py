"""One layer of a student fitted to a block of the teacher's layers, of which it stands for the last.

In passes over the text, since each map is fitted to what the student really computes up to it. The
teacher's layers that have no counterpart are taken up too: the student's heads and the units of its FFN
are chosen from those of all the block's layers, and their outputs are fitted to all that it lacks.
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
from .stream import BRANCH, MINE, SUM, THEIRS, WEIGHT, Stream, dropped_middle

PASSES = 7
"""How often a layer goes over the text."""

_CANDIDATES = 1.5
"""Units of the FFN that are tried together, for each that the student has."""

OfBatch = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class LayerFit:
    """What a layer of the student became.

    Attributes:
        error: The relative error of its output (`finish`).
        heads: The heads that its own stand for, numbered from 0 through the block's layers.
    """

    error: float
    heads: list[int]


def put(module: nn.Linear | nn.LayerNorm, solution: Affine) -> None:
    """Overwrite a module's weight and bias."""
    module.weight.copy_(solution.weight)
    module.bias.copy_(solution.bias)


def fit_layer(
    stream: Stream, block: Sequence[LayerView], mine: LayerView, ridge: float
) -> LayerFit:
    """Overwrite a layer of the student.

    Args:
        stream: Holds the input of the teacher's block and of the student's layer; after it their
            outputs.
        block: The teacher's layers that the student's replaces, rising.
        ridge: λ in units of the mean diagonal of the inputs' moments.
    """
    theirs = block[-1]
    outward, heads = _fit_attention(stream, block, mine, ridge)
    _fit_mix(stream, mine, outward, ridge)

    def mixed(batch: Batch) -> Tensor:
        return mine.mix(stream.read(BRANCH, batch)) + stream.read(MINE, batch)

    def their_middle(batch: Batch) -> Tensor:
        return theirs.middle_norm(stream.read(SUM, batch))

    fit_norm(stream, mine.middle_norm, mixed, their_middle)
    candidates = _fit_inner(stream, block, mine, ridge)
    _fit_outer(stream, mine, candidates, ridge)

    def summed(batch: Batch) -> Tensor:
        middle = stream.read(BRANCH, batch)
        return mine.outer(mine.activation(mine.inner(middle))) + middle

    def their_output(batch: Batch) -> Tensor:
        return theirs.norm(stream.read(SUM, batch))

    fit_norm(stream, mine.norm, summed, their_output)
    return LayerFit(finish(stream, mine.norm, their_output), heads)


def fit_norm(stream: Stream, norm: nn.LayerNorm, mine: OfBatch, theirs: OfBatch) -> None:
    """Fit a norm's weight and bias, channel by channel, to the teacher's output in the basis.

    Args:
        mine: The student's sum before the norm; its normalised form is left in the stream's branch.
        theirs: The teacher's output of its norm.
    """
    fit = ChannelFit()
    for batch in stream.batches():
        z = normalise(mine(batch), norm)
        fit.add(z, stream.project(theirs(batch)), stream.read(WEIGHT, batch))
        stream.write(BRANCH, batch, z)
    put(norm, fit.solve())


def finish(stream: Stream, norm: nn.LayerNorm, theirs: OfBatch) -> float:
    """Make the normalised branch the student's hidden states, and `theirs` the teacher's.

    Returns:
        Their squared distance in the student's basis over the variance of the teacher's there.
    """
    width = norm.weight.numel()
    error, squares = (torch.zeros((), dtype=torch.float64) for _ in range(2))
    total, count = torch.zeros(width, dtype=torch.float64), 0
    for batch in stream.batches():
        mine, target = stream.read(BRANCH, batch) * norm.weight + norm.bias, theirs(batch)
        stream.write(MINE, batch, mine)
        stream.write(THEIRS, batch, target)
        seen = stream.project(target).double()
        error += (mine - seen).pow(2).sum().cpu()
        squares += seen.pow(2).sum().cpu()
        total += seen.sum(0).cpu()
        count += batch.tokens
    variance = squares - total.pow(2).sum() / count
    return float(error / variance.clamp_min(1e-12))


class _AttentionFit:
    """Queries, keys and values of a teacher's layer from the student's hidden states.

    The regression is on all of the layer's dimensions, and maps to fewer of them are put behind its
    solution: that is the same as regressing on what they put out. Relative positions have queries and
    keys too (c2p and p2c are dot products as c2c is): they are pooled with the tokens', each side
    weighing as much as the other.

    Args:
        size: The student's size of a head.
    """

    def __init__(self, stream: Stream, theirs: LayerView, size: int) -> None:
        self._stream, self._theirs, self._size = stream, theirs, size
        outward = stream.project_out(theirs.mix.weight)
        self._outward = outward.unflatten(1, (theirs.heads, -1)).transpose(0, 1)
        self._pair = Regression(stream.project(torch.cat([theirs.query.weight, theirs.key.weight])))
        self._values = Regression(stream.project(theirs.value.weight))
        width = theirs.query.out_features
        zeros = torch.zeros(4, theirs.heads, width // theirs.heads, width // theirs.heads)
        self._moments = zeros.double().to(stream.device)
        self._context = torch.zeros(width, dtype=torch.float64, device=stream.device)
        self._count = 0.0

    def add(self, own: Tensor, x: Tensor, context: Tensor, weight: Tensor) -> None:
        """Add a batch of the student's hidden states, of the layer's input and its heads' contexts."""
        theirs = self._theirs
        q, k, v = theirs.query(x), theirs.key(x), theirs.value(x)
        self._pair.add(own, torch.cat([q, k], 1), weight)
        self._values.add(own, v, weight)
        rows = torch.stack([q, k, v, context])
        self._moments += _head_moments(rows, weight, theirs.heads)
        self._context += (context * weight).sum(0)
        self._count += float(weight.sum())

    def importance(self) -> Tensor:
        """Of each head the variance of what it adds to the hidden states in the basis, (heads)."""
        mean = (self._context / self._count).unflatten(0, (self._theirs.heads, -1))
        covariance = self._moments[3] / self._count - mean[:, :, None] * mean[:, None]
        outward = self._outward.double()
        return ((outward @ covariance) * outward).sum((1, 2))

    def solve(self, ridge: float) -> tuple[dict[str, Affine], Tensor]:
        """By the names of a LayerView, each part in the student's head size; and what comes of it.

        Returns:
            The parts; and what the layer does with such contexts, (heads, student's width, size).
        """
        theirs = self._theirs
        queries, keys, values, _ = self._moments
        if self._stream.positions is not None:
            x, own = self._stream.positions
            weight = torch.full_like(x[:, :1], self._count / len(x))
            q = (theirs.position_query or theirs.query)(x)
            k = (theirs.position_key or theirs.key)(x)
            more = _head_moments(torch.stack([q, k]), weight, theirs.heads)
            queries, keys = queries + more[0], keys + more[1]
            if theirs.position_query is None and theirs.position_key is None:
                self._pair.add(own, torch.cat([q, k], 1), weight)
        map_values, back = value_basis(values / self._count, self._outward, self._size)
        map_queries, map_keys = score_bases(queries, keys, self._size)
        solution = self._pair.solve(ridge)
        query, key = zip(solution.weight.chunk(2), solution.bias.chunk(2), strict=True)
        parts = {
            "query": _behind(map_queries, Affine(*query)),
            "key": _behind(map_keys, Affine(*key)),
            "value": _behind(map_values, self._values.solve(ridge)),
        }
        for name, maps in (("position_query", map_queries), ("position_key", map_keys)):
            if (linear := getattr(theirs, name)) is not None:
                parts[name] = _behind(maps, self._position(linear, ridge))
        return parts, self._outward.to(back) @ back

    def _position(self, theirs: nn.Linear, ridge: float) -> Affine:
        """A projection that relative positions have for themselves."""
        assert self._stream.positions is not None
        x, own = self._stream.positions
        fit = Regression(self._stream.project(theirs.weight))
        fit.add(own, theirs(x), torch.ones_like(x[:, :1]))
        return fit.solve(ridge)


def _fit_attention(
    stream: Stream, block: Sequence[LayerView], mine: LayerView, ridge: float
) -> tuple[Tensor, list[int]]:
    """Fit queries, keys and values to those heads of the block's layers that add most.

    Leaves the teacher's sum after its last attention in the stream, and of the dropped layers their
    states before the FFN.

    Returns:
        What the teacher does with the student's contexts, (student's width, heads · size); and the
        heads that were chosen, numbered from 0 through the block's layers.
    """
    size = mine.query.out_features // mine.heads
    fits = [_AttentionFit(stream, layer, size) for layer in block]
    for batch in stream.batches():
        x, own = stream.read(THEIRS, batch), stream.read(MINE, batch)
        weight = stream.read(WEIGHT, batch)
        for number, (layer, fit) in enumerate(zip(block, fits, strict=True)):
            context = layer.context(x, batch)
            fit.add(own, x, context, weight)
            summed = layer.mix(context) + x
            if layer is block[-1]:
                stream.write(SUM, batch, summed)
            else:
                middle = layer.middle_norm(summed)
                stream.write(dropped_middle(number), batch, middle)
                x = layer.upper(middle)
    importance = torch.cat([fit.importance() for fit in fits])
    chosen = importance.topk(mine.heads).indices.sort().values
    parts, outward = zip(*(fit.solve(ridge) for fit in fits), strict=True)
    for name in parts[0]:
        weight, bias = (
            torch.cat([getattr(part[name], which) for part in parts])
            .unflatten(0, (-1, size))[chosen]
            .flatten(0, 1)
            for which in ("weight", "bias")
        )
        put(getattr(mine, name), Affine(weight, bias))
    return torch.cat(outward)[chosen].transpose(0, 1).flatten(1), chosen.tolist()


def _head_moments(rows: Tensor, weight: Tensor, heads: int) -> Tensor:
    """Second moments of each head, (kinds, heads, d, d), of rows (kinds, n, heads · d)."""
    split = rows.unflatten(-1, (heads, -1))
    return torch.einsum("pnhd,pnhe->phde", split * weight[:, :, None], split).double()


def _behind(maps: Tensor, linear: Affine) -> Affine:
    """A linear map (heads · d, in) with each head's dimensions mapped by Mᵀ, M of (heads, d, size)."""
    heads = maps.shape[0]
    weight = maps.mT @ linear.weight.unflatten(0, (heads, -1))
    bias = maps.mT @ linear.bias.unflatten(0, (heads, -1))[..., None]
    return Affine(weight.flatten(0, 1), bias.flatten())


def _fit_mix(stream: Stream, mine: LayerView, prior: Tensor, ridge: float) -> None:
    """Fit the attention's output projection; leave the student's contexts in the branch."""
    fit = Regression(prior)
    for batch in stream.batches():
        x = stream.read(MINE, batch)
        context = mine.context(x, batch)
        target = stream.project(stream.read(SUM, batch)) - x
        fit.add(context, target, stream.read(WEIGHT, batch))
        stream.write(BRANCH, batch, context)
    put(mine.mix, fit.solve(ridge))


@dataclass(frozen=True)
class _Units:
    """Candidates for the units of the student's FFN.

    Attributes:
        inner: From the student's middle states to their values before activation.
        outward: What the teacher does with them, (student's width, units).
    """

    inner: Affine
    outward: Tensor


def _fit_inner(stream: Stream, block: Sequence[LayerView], mine: LayerView, ridge: float) -> _Units:
    """Fit the inner half of the FFN to the units of the block's layers that promise most.

    That is by the root mean square of a unit's activation, times the norm of what it puts out, times
    the share of its variance before activation that the student can tell. There are more of them than
    the student has. Leaves the student's middle states in the branch, and the teacher's sum after the
    FFN.
    """
    *dropped, theirs = block
    fit = Regression(stream.project(torch.cat([layer.inner.weight for layer in block])))
    energy: Tensor | float = 0.0
    for batch in stream.batches():
        middle = stream.read(BRANCH, batch) * mine.middle_norm.weight + mine.middle_norm.bias
        x, weight = theirs.middle_norm(stream.read(SUM, batch)), stream.read(WEIGHT, batch)
        others = [
            layer.inner(stream.read(dropped_middle(number), batch))
            for number, layer in enumerate(dropped)
        ]
        before = torch.cat([*others, theirs.inner(x)], 1)
        after = theirs.activation(before)
        fit.add(middle, before, weight)
        energy = energy + (after.double().pow(2) * weight).sum(0)
        stream.write(BRANCH, batch, middle)
        own = after[:, -theirs.inner.out_features :]
        stream.write(SUM, batch, theirs.outer(own) + x)
    assert isinstance(energy, Tensor)
    solution = fit.solve(ridge)
    outward = stream.project_out(torch.cat([layer.outer.weight for layer in block], 1))
    importance = energy.sqrt() * outward.norm(dim=0) * fit.explained(solution)
    count = min(len(importance), round(_CANDIDATES * mine.inner.out_features))
    units = importance.topk(count).indices.sort().values
    return _Units(Affine(solution.weight[units], solution.bias[units]), outward[:, units])


def _fit_outer(stream: Stream, mine: LayerView, units: _Units, ridge: float) -> None:
    """Choose the units that serve best together, and fit what they put out.

    The target is what the teacher's sum has beyond the student's.
    """
    fit = Regression(units.outward)
    weight, bias = units.inner.weight.float(), units.inner.bias.float()
    for batch in stream.batches():
        middle = stream.read(BRANCH, batch)
        target = stream.project(stream.read(SUM, batch)) - middle
        after = mine.activation(functional.linear(middle, weight, bias))
        fit.add(after, target, stream.read(WEIGHT, batch))
    chosen = fit.prune(ridge, mine.inner.out_features)
    put(mine.inner, Affine(units.inner.weight[chosen], units.inner.bias[chosen]))
    put(mine.outer, fit.solve(ridge, chosen))
