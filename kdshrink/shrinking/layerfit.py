"""One layer of a student fitted to a block of the teacher's layers, of which it stands for the last.

In passes over the text, since each map is fitted to what the student really computes up to it. The
teacher's layers that have no counterpart are taken up by the FFN: its units are chosen from those of
all the block's layers, and its output is fitted to all that the student lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .activations import Batch
from .calibration import Affine, ChannelFit, Regression, score_bases, value_basis
from .stream import BRANCH, MINE, SUM, THEIRS, WEIGHT, Stream, dropped_middle
from .views import LayerView, normalise

PASSES = 7
"""How often a layer goes over the text."""

OfBatch = Callable[[Batch], Tensor]


def put(module: nn.Linear | nn.LayerNorm, solution: Affine) -> None:
    """Overwrite a module's weight and bias."""
    module.weight.copy_(solution.weight)
    module.bias.copy_(solution.bias)


def fit_layer(stream: Stream, block: Sequence[LayerView], mine: LayerView, ridge: float) -> float:
    """Overwrite a layer of the student.

    Args:
        stream: Holds the input of the teacher's block and of the student's layer; after it their
            outputs.
        block: The teacher's layers that the student's replaces, rising.
        ridge: λ in units of the mean diagonal of the inputs' moments.

    Returns:
        The relative error of the student's output (`finish`).
    """
    *dropped, theirs = block
    for number, layer in enumerate(dropped):
        for batch in stream.batches():
            middle = layer.middle(stream.read(THEIRS, batch), batch)
            stream.write(dropped_middle(number), batch, middle)
            stream.write(THEIRS, batch, layer.upper(middle))
    outward = _fit_attention(stream, theirs, mine, ridge)
    _fit_mix(stream, mine, outward, ridge)

    def mixed(batch: Batch) -> Tensor:
        return mine.mix(stream.read(BRANCH, batch)) + stream.read(MINE, batch)

    def their_middle(batch: Batch) -> Tensor:
        return theirs.middle_norm(stream.read(SUM, batch))

    fit_norm(stream, mine.middle_norm, mixed, their_middle)
    units = _fit_inner(stream, block, mine, ridge)
    _fit_outer(stream, block, mine, units, ridge)

    def summed(batch: Batch) -> Tensor:
        middle = stream.read(BRANCH, batch)
        return mine.outer(mine.activation(mine.inner(middle))) + middle

    def their_output(batch: Batch) -> Tensor:
        return theirs.norm(stream.read(SUM, batch))

    fit_norm(stream, mine.norm, summed, their_output)
    return finish(stream, mine.norm, their_output)


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


def _fit_attention(stream: Stream, theirs: LayerView, mine: LayerView, ridge: float) -> Tensor:
    """Fit queries, keys and values; leave the teacher's sum after attention in the stream.

    The regression is on all of the teacher's dimensions, and maps to fewer of them are put behind its
    solution: that is the same as regressing on what they put out. Relative positions have queries and
    keys too (c2p and p2c are dot products as c2c is): they are pooled with the tokens', each side
    weighing as much as the other.

    Returns:
        What the teacher does with the student's context, (student's width, heads · size).
    """
    heads, size = theirs.heads, mine.query.out_features // theirs.heads
    pair = Regression(stream.project(torch.cat([theirs.query.weight, theirs.key.weight])))
    values = Regression(stream.project(theirs.value.weight))
    moments = torch.zeros(3, heads, *[theirs.query.out_features // heads] * 2, dtype=torch.float64)
    moments = moments.to(stream.device)
    count = 0.0
    for batch in stream.batches():
        x, weight = stream.read(THEIRS, batch), stream.read(WEIGHT, batch)
        q, k, v = theirs.query(x), theirs.key(x), theirs.value(x)
        own = stream.read(MINE, batch)
        pair.add(own, torch.cat([q, k], 1), weight)
        values.add(own, v, weight)
        moments += _head_moments(torch.stack([q, k, v]), weight, heads)
        count += float(weight.sum())
        stream.write(SUM, batch, theirs.mix(theirs.context(x, batch)) + x)
    if stream.positions is not None:
        x, own = stream.positions
        weight = torch.full_like(x[:, :1], count / len(x))
        q = (theirs.position_query or theirs.query)(x)
        k = (theirs.position_key or theirs.key)(x)
        moments[:2] += _head_moments(torch.stack([q, k]), weight, heads)
        if theirs.position_query is None and theirs.position_key is None:
            pair.add(own, torch.cat([q, k], 1), weight)
    outward = stream.project_out(theirs.mix.weight).unflatten(1, (heads, -1)).transpose(0, 1)
    map_values, back = value_basis(moments[2] / count, outward, size)
    map_queries, map_keys = score_bases(moments[0], moments[1], size)
    solution = pair.solve(ridge)
    query, key = zip(solution.weight.chunk(2), solution.bias.chunk(2), strict=True)
    put(mine.query, _behind(map_queries, Affine(*query)))
    put(mine.key, _behind(map_keys, Affine(*key)))
    put(mine.value, _behind(map_values, values.solve(ridge)))
    _fit_position(stream, theirs.position_query, mine.position_query, map_queries, ridge)
    _fit_position(stream, theirs.position_key, mine.position_key, map_keys, ridge)
    return (outward.to(back) @ back).transpose(0, 1).flatten(1)


def _head_moments(rows: Tensor, weight: Tensor, heads: int) -> Tensor:
    """Second moments of each head, (kinds, heads, d, d), of rows (kinds, n, heads · d)."""
    split = rows.unflatten(-1, (heads, -1))
    return torch.einsum("pnhd,pnhe->phde", split * weight[:, :, None], split).double()


def _fit_position(
    stream: Stream, theirs: nn.Linear | None, mine: nn.Linear | None, maps: Tensor, ridge: float
) -> None:
    """Fit a projection that relative positions have for themselves, if there is one."""
    if theirs is None or mine is None or stream.positions is None:
        return
    x, own = stream.positions
    fit = Regression(stream.project(theirs.weight))
    fit.add(own, theirs(x), torch.ones_like(x[:, :1]))
    put(mine, _behind(maps, fit.solve(ridge)))


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


def _fit_inner(stream: Stream, block: Sequence[LayerView], mine: LayerView, ridge: float) -> Tensor:
    """Fit the inner half of the FFN to the units of the block's layers that serve best.

    That is by the root mean square of a unit's activation, times the norm of what it puts out, times
    the share of its variance before activation that the student can tell. Leaves the student's middle
    states in the branch, and the teacher's sum after the FFN.

    Returns:
        The units, numbered through the block's layers, ascending.
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
    importance = energy.sqrt() * _outward(stream, block).norm(dim=0) * fit.explained(solution)
    units = importance.topk(mine.inner.out_features).indices.sort().values
    put(mine.inner, Affine(solution.weight[units], solution.bias[units]))
    return units


def _outward(stream: Stream, block: Sequence[LayerView]) -> Tensor:
    """What the units of a block's layers put out, (student's width, units)."""
    return stream.project_out(torch.cat([layer.outer.weight for layer in block], 1))


def _fit_outer(
    stream: Stream, block: Sequence[LayerView], mine: LayerView, units: Tensor, ridge: float
) -> None:
    """Fit the outer half of the FFN to what the teacher's sum has beyond the student's."""
    fit = Regression(_outward(stream, block)[:, units])
    for batch in stream.batches():
        middle = stream.read(BRANCH, batch)
        target = stream.project(stream.read(SUM, batch)) - middle
        fit.add(mine.activation(mine.inner(middle)), target, stream.read(WEIGHT, batch))
    put(mine.outer, fit.solve(ridge))
