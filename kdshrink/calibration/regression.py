"""Weighted least squares in closed form, accumulated over batches of activations.

Memory does not grow with the text: only sums of a fixed size are kept. Sums and solutions are in double
precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

JITTER = 1e-9


@dataclass(frozen=True)
class Affine:
    """x ↦ x Wᵀ + b, with a weight (out, in) and a bias (out,)."""

    weight: Tensor
    bias: Tensor


class Regression:
    """Ridge regression towards a prior, fed in batches: min over W, b of Σw‖xWᵀ + b − y‖² + λ‖W − W₀‖².

    The bias is free. With r = y − xW₀ᵀ and centred sums G = Σw x xᵀ and C = Σw x rᵀ the solution is
    Wᵀ = W₀ᵀ + (G + λI)⁻¹C, b = r̄ − (W − W₀)x̄ (Hoerl and Kennard 1970). So where the prior
    fits exactly, it is the solution. Sums are taken about the means of the first batch, so that large
    means cost no precision; products within a batch have the activations' precision, all else is double.

    Args:
        prior: W₀ (out, in).
    """

    def __init__(self, prior: Tensor) -> None:
        self._prior = prior.double()
        self._origin: tuple[Tensor, ...] | None = None
        self._sums: list[Tensor] = []
        self._count = 0.0

    def add(self, x: Tensor, y: Tensor, weights: Tensor) -> None:
        """Add a batch of inputs x (n, in) and targets y (n, out), with a weight for each row, (n, 1)."""
        rest = y - x @ self._prior.to(x).T
        if self._origin is None:
            self._origin = tuple(part.double().mean(0) for part in (x, rest, y))
        x, rest, y = (
            part - mean.to(part) for part, mean in zip((x, rest, y), self._origin, strict=True)
        )
        weighted, weighted_rest, weighted_y = x * weights, rest * weights, y * weights
        sums = [
            weighted.sum(0),
            weighted_rest.sum(0),
            weighted.T @ x,
            weighted.T @ rest,
            (weighted_rest * rest).sum(0),
            weighted_y.sum(0),
            (weighted_y * y).sum(0),
        ]
        if self._sums:
            for total, new in zip(self._sums, sums, strict=True):
                total += new
        else:
            self._sums = [new.double() for new in sums]
        self._count += float(weights.double().sum())

    def solve(self, ridge: float, inputs: Tensor | None = None) -> Affine:
        """The solution, in double precision.

        Args:
            ridge: λ in units of the mean diagonal of G.
            inputs: Indices of the inputs to regress on, with the others left out; None for all.

        Raises:
            torch.linalg.LinAlgError: The rows do not determine a solution.
        """
        assert self._origin is not None
        x, rest, gram, cross = self._centred()
        x, rest, prior = self._origin[0] + x, self._origin[1] + rest, self._prior
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
        redundant.

        Args:
            ridge: λ in units of the mean diagonal of G, here towards zero.
            count: How many inputs to keep.
            rounds: In how many rounds to remove the others.

        Returns:
            Indices of the kept inputs, (count,), ascending.
        """
        _, _, gram, cross = self._centred()
        target = cross + gram @ self._prior.T
        gram = _ridged(gram, ridge)
        kept = torch.arange(len(gram), device=gram.device)
        surplus = len(kept) - count
        for left in range(rounds - 1, -1, -1) if surplus else ():
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram[kept][:, kept]))
            costs = (inverse @ target[kept]).pow(2).sum(1) / inverse.diagonal()
            kept = kept[costs.topk(count + surplus * left // rounds).indices.sort().values]
        return kept

    def explained(self, solution: Affine) -> Tensor:
        """The share of each output's variance that a solution explains, (out,), from 0 to 1."""
        _, rest, gram, cross = self._centred()
        change = solution.weight - self._prior
        squares, mean, mean_square = (total / self._count for total in self._sums[4:])
        left = squares - rest.pow(2) + ((change @ gram - 2 * cross.T) * change).sum(1)
        return (1 - left / (mean_square - mean.pow(2)).clamp_min(JITTER)).clamp(0, 1)

    def _centred(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Means of x and r about the origin, and the centred moments of x with itself and with r."""
        x, rest, gram, cross = (total / self._count for total in self._sums[:4])
        return x, rest, gram - x[:, None] * x, cross - x[:, None] * rest


def _ridged(gram: Tensor, ridge: float) -> Tensor:
    """G + λI, for λ in units of G's mean diagonal."""
    penalty = ridge * gram.diagonal().mean().clamp_min(JITTER)
    return gram + penalty * torch.eye(len(gram)).to(gram)


class ChannelFit:
    """Fits a slope and an offset for each channel c: min over g, b of Σw(g_c z_c + b_c − y_c)²."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._count = 0.0

    def add(self, z: Tensor, y: Tensor, weights: Tensor) -> None:
        """Add a batch of inputs z and targets y, both (n, channels), with a weight for each row, (n, 1)."""
        z, y, weights = z.double(), y.double(), weights.double()
        new = torch.stack([(part * weights).sum(0) for part in (z, y, z * z, z * y)])
        self._sums = new if self._sums is None else self._sums + new
        self._count += float(weights.sum())

    def solve(self) -> Affine:
        """Slopes as the weight and offsets as the bias, both (channels,), in double precision."""
        assert self._sums is not None
        z, y, zz, zy = self._sums / self._count
        slope = (zy - z * y) / (zz - z * z).clamp_min(JITTER)
        return Affine(slope, y - slope * z)
