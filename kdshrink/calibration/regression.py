"""Weighted least squares in closed form, accumulated over batches of activations.

Memory does not grow with the text: only sums of a fixed size are kept. Sums and solutions are in double
precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

JITTER = 1e-9


@dataclass(frozen=True)
class Affine:
    """x ↦ x Wᵀ + b, with a weight (out, in) and a bias (out,)."""

    weight: Tensor
    bias: Tensor


class SymmetricSum:
    """A sum of symmetric products xᵀx in double precision, of which only one half is computed."""

    _BLOCK = 576

    def __init__(self) -> None:
        self._sum: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """Add xᵀx of a batch x (n, width)."""
        width = x.shape[1]
        if self._sum is None:
            self._sum = torch.zeros(width, width, dtype=torch.float64, device=x.device)
        for begin, end in self._blocks(width):
            self._sum[begin:end, :end] += x[:, begin:end].T @ x[:, :end]

    def total(self) -> Tensor:
        """The sum, (width, width)."""
        assert self._sum is not None
        for begin, end in self._blocks(len(self._sum)):
            self._sum[:begin, begin:end] = self._sum[begin:end, :begin].T
        return self._sum

    def _blocks(self, width: int) -> Iterator[tuple[int, int]]:
        starts = range(0, width, self._BLOCK)
        return ((begin, min(begin + self._BLOCK, width)) for begin in starts)


@dataclass(frozen=True)
class _Moments:
    """Centred second moments of a regression's inputs x and rests r.

    Attributes:
        inputs: (in, in), of x with itself.
        cross: (in, out), of x with r.
        rest: (out, out), of r with itself.
    """

    inputs: Tensor
    cross: Tensor
    rest: Tensor


class Regression:
    """Ridge regression towards a prior, fed in batches: min over W, b of Σw‖xWᵀ + b − y‖² + λ‖W − W₀‖².

    The bias is free. With r = y − xW₀ᵀ and centred sums G = Σw x xᵀ and C = Σw x rᵀ the solution is
    Wᵀ = W₀ᵀ + (G + λI)⁻¹C, b = r̄ − (W − W₀)x̄ (Hoerl and Kennard 1970). So where the prior
    fits exactly, it is the solution. Sums are taken about the means of the first batch, so that large
    means cost no precision; products within a batch have the activations' precision, all else is double.

    Args:
        prior: W₀ (out, in); None for the identity.
    """

    def __init__(self, prior: Tensor | None) -> None:
        self._prior = prior
        self._origin: Tensor | None = None
        self._sum: Tensor | float = 0.0
        self._products = SymmetricSum()
        self._count = 0.0

    def add(self, x: Tensor, y: Tensor, weights: Tensor) -> None:
        """Add a batch of inputs x (n, in) and targets y (n, out), with a weight for each row, (n, 1)."""
        rest = y - (x if self._prior is None else x @ self._prior.to(x).T)
        pairs = torch.cat([x, rest], 1)
        if self._origin is None:
            self._origin = pairs.double().mean(0)
            self._inputs = x.shape[1]
        roots = weights.sqrt()
        pairs.sub_(self._origin.to(pairs)).mul_(roots)
        self._sum = self._sum + (roots.T @ pairs).double()[0]
        self._products.add(pairs)
        self._count += float(weights.double().sum())

    def solve(self, ridge: float, inputs: Tensor | None = None) -> Affine:
        """The solution, in double precision.

        Args:
            ridge: λ in units of the mean diagonal of G.
            inputs: Indices of the inputs to regress on, with the others left out; None for all.

        Raises:
            torch.linalg.LinAlgError: The rows do not determine a solution.
        """
        (x, rest), prior, moments = self._means(), self._dense_prior(), self._moments()
        gram, cross = moments.inputs, moments.cross
        if inputs is not None:
            others = torch.ones(len(x), dtype=torch.bool, device=x.device)
            others[inputs] = False
            # The part of the target that the others' prior explained is for these to explain now.
            rest = rest + prior[:, others] @ x[others]
            cross = cross[inputs] + gram[inputs][:, others] @ prior[:, others].T
            x, gram, prior = x[inputs], gram[inputs][:, inputs], prior[:, inputs]
        factor = torch.linalg.cholesky(_ridged(gram, ridge))
        change = torch.cholesky_solve(cross, factor).T
        return Affine(prior + change, rest - change @ x)

    def prune(self, ridge: float, count: int, rounds: int = 4) -> Tensor:
        """Select the inputs that jointly predict the target best, by backward elimination.

        Removing input j from the solution W, with the other weights refitted, adds the squared error
        ‖W_j‖² / [H⁻¹]_jj, where H = G + λI: the Optimal Brain Surgeon (Hassibi and Stork 1993). The inputs
        of least cost are removed in a few rounds, with costs computed anew in each, since inputs may be
        redundant. H is inverted once: without the removed inputs S, the inverse of what is left is its
        Schur complement, [H⁻¹]_KK − [H⁻¹]_KS [H⁻¹]_SS⁻¹ [H⁻¹]_SK, and W changes alike.

        Args:
            ridge: λ in units of the mean diagonal of G, here towards zero.
            count: How many inputs to keep.
            rounds: In how many rounds to remove the others.

        Returns:
            Indices of the kept inputs, (count,), ascending.
        """
        moments = self._moments()
        kept = torch.arange(self._inputs, device=moments.inputs.device)
        surplus = self._inputs - count
        if not surplus:
            return kept
        target = moments.cross + moments.inputs @ self._dense_prior().T
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(_ridged(moments.inputs, ridge)))
        weight = inverse @ target
        for left in range(rounds - 1, -1, -1):
            costs = weight.pow(2).sum(1) / inverse.diagonal()
            order = costs.argsort(descending=True, stable=True)
            stays, goes = order.tensor_split([count + surplus * left // rounds])
            stays = stays.sort().values
            kept = kept[stays]
            if left and len(goes):
                between = inverse[goes]
                factor = torch.linalg.cholesky(between[:, goes])
                between = between[:, stays]
                removed = torch.cholesky_solve(torch.cat([between, weight[goes]], 1), factor)
                inverse = inverse[stays][:, stays] - between.T @ removed[:, : len(stays)]
                weight = weight[stays] - between.T @ removed[:, len(stays) :]
        return kept

    def explained(self, solution: Affine, readout: Tensor | None = None) -> Tensor:
        """The share of each output's variance that a solution explains, (out,), from 0 to 1.

        Args:
            readout: (units, out), for the shares of these linear functions of the outputs: (units,).
        """
        moments, change = self._moments(), solution.weight - self._dense_prior()
        shift = change @ moments.cross
        left = moments.rest + change @ moments.inputs @ change.T - shift - shift.T
        _, whole = self.targets()
        if readout is None:
            unexplained, variance = left.diagonal(), whole.diagonal()
        else:
            rows = readout.double()
            unexplained, variance = (((rows @ one) * rows).sum(1) for one in (left, whole))
        return (1 - unexplained / variance.clamp_min(JITTER)).clamp(0, 1)

    def targets(self) -> tuple[Tensor, Tensor]:
        """The targets' mean (out,) and covariance (out, out)."""
        (x, rest), prior, moments = self._means(), self._dense_prior(), self._moments()
        shift = prior @ moments.cross
        covariance = moments.rest + prior @ moments.inputs @ prior.T + shift + shift.T
        return rest + prior @ x, covariance

    def _dense_prior(self) -> Tensor:
        if self._prior is not None:
            return self._prior.double()
        assert self._origin is not None
        return torch.eye(self._inputs, dtype=torch.float64, device=self._origin.device)

    def _means(self) -> tuple[Tensor, Tensor]:
        """The means of x and r."""
        assert self._origin is not None
        means = self._origin + self._sum / self._count
        return means[: self._inputs], means[self._inputs :]

    def _moments(self) -> _Moments:
        """The centred moments of x and r."""
        mean, n = self._sum / self._count, self._inputs
        assert isinstance(mean, Tensor)
        pairs = torch.addr(self._products.total(), mean, mean, beta=1 / self._count, alpha=-1)
        return _Moments(pairs[:n, :n], pairs[:n, n:], pairs[n:, n:])


def _ridged(gram: Tensor, ridge: float) -> Tensor:
    """G + λI, for λ in units of G's mean diagonal."""
    ridged = gram.clone()
    ridged.diagonal().add_(ridge * gram.diagonal().mean().clamp_min(JITTER))
    return ridged


class ChannelFit:
    """Fits a slope and an offset for each channel c: min over g, b of Σw(g_c z_c + b_c − y_c)².

    Sums are taken about the means of the first batch, as in `Regression`.
    """

    def __init__(self) -> None:
        self._origin: tuple[Tensor, Tensor] | None = None
        self._sums: Tensor | float = 0.0
        self._count = 0.0

    def add(self, z: Tensor, y: Tensor, weights: Tensor) -> None:
        """Add a batch of inputs z and targets y, both (n, channels), with a weight for each row, (n, 1)."""
        if self._origin is None:
            self._origin = z.double().mean(0), y.double().mean(0)
        z, y = (part - mean.to(part) for part, mean in zip((z, y), self._origin, strict=True))
        weighted = z * weights
        products = (weighted, y * weights, weighted * z, weighted * y)
        self._sums = self._sums + torch.stack([part.sum(0) for part in products]).double()
        self._count += float(weights.double().sum())

    def solve(self) -> Affine:
        """Slopes as the weight and offsets as the bias, both (channels,), in double precision."""
        assert isinstance(self._sums, Tensor)
        assert self._origin is not None
        z, y, zz, zy = self._sums / self._count
        slope = (zy - z * y) / (zz - z * z).clamp_min(JITTER)
        mean_z, mean_y = self._origin
        return Affine(slope, mean_y + y - slope * (mean_z + z))
