"""Low-rank bases for the hidden states and attention heads of a narrower student."""

from __future__ import annotations

import torch
from torch import Tensor

from .regression import JITTER


def _root(second_moment: Tensor) -> Tensor:
    """The Cholesky factor L of a second moment L Lᵀ, after a small multiple of I is added to it."""
    jitter = 1e-7 * second_moment.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(JITTER)
    eye = torch.eye(second_moment.shape[-1]).to(second_moment)
    return torch.linalg.cholesky(second_moment + jitter[..., None, None] * eye)


def score_bases(queries: Tensor, keys: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Project each head's queries and keys to fewer dimensions with the least error of the scores q·k.

    With second moments C_q = L_q L_qᵀ and C_k = L_k L_kᵀ the expected squared error of the scores is
    minimal when L_qᵀ A Bᵀ L_k is the truncated SVD U S Vᵀ of L_qᵀ L_k (Eckart and Young 1936): so
    A = L_q⁻ᵀ U S^½ and B = L_k⁻ᵀ V S^½. Both are scaled by (size/d)^¼, since attention divides scores
    by the square root of the head size.

    Args:
        queries, keys: (heads, d, d), second moments over tokens, in double precision.
        size: The new head size, at most d.

    Returns:
        A and B, (heads, d, size): q ↦ Aᵀq, k ↦ Bᵀk. Identities where size is d.
    """
    heads, d, _ = queries.shape
    if size == d:
        same = torch.eye(d).to(queries).expand(heads, d, d)
        return same, same
    root_q, root_k = _root(queries), _root(keys)
    left, values, right = torch.linalg.svd(root_q.mT @ root_k)
    scale = values[:, None, :size].sqrt() * (size / d) ** 0.25
    a = torch.linalg.solve_triangular(root_q.mT, left[..., :size] * scale, upper=True)
    b = torch.linalg.solve_triangular(root_k.mT, right.mT[..., :size] * scale, upper=True)
    return a, b


def value_basis(values: Tensor, outward: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Project each head's values to fewer dimensions with the least error of the attention output.

    With the second moment C = L Lᵀ and the SVD W L = U S Vᵀ, where W is the head's part of the output
    projection, the values are whitened and their leading directions kept: v ↦ S_r^½ V_rᵀ L⁻¹ v, and
    back by L V_r S_r^-½. S is split evenly between the two maps, so that neither has weights much
    smaller than a step of Adam, whose size does not depend on the weights.

    Args:
        values: (heads, d, d), mean second moments over tokens, in double precision.
        outward: (heads, out, d), the output projection's weight for each head.
        size: The new head size, at most d.

    Returns:
        M and R, both (heads, d, size): the projection v ↦ Mᵀv, and its reconstruction v ≈ R Mᵀv.
    """
    heads, d, _ = values.shape
    if size == d:
        same = torch.eye(d).to(values).expand(heads, d, d)
        return same, same
    root = _root(values)
    _, strengths, right = torch.linalg.svd(outward.to(root) @ root, full_matrices=False)
    directions = right.mT[..., :size]
    floor = (1e-3 * strengths[:, :1]).clamp_min(JITTER)
    scale = strengths[:, None, :size].clamp_min(floor[:, None]).sqrt()
    inward = torch.linalg.solve_triangular(root.mT, directions * scale, upper=True)
    return inward, root @ directions / scale


def principal_basis(second_moment: Tensor, size: int) -> Tensor:
    """An orthonormal basis (H, size) of the leading eigenvectors of a second moment (H, H).

    LayerNorm subtracts the mean over channels, which removes one direction: that in which all channels
    are equal. A Householder reflection of the eigenvectors, sorted by falling eigenvalue, makes this
    direction the last and weakest of them, so that the norm loses as little as possible.

    Each eigenvector's sign, which the solver leaves open, makes its largest entry positive.
    """
    vectors = torch.linalg.eigh(second_moment).eigenvectors[:, -size:].flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    vectors = vectors * largest.sign()
    normal = vectors.new_full((size,), -(size**-0.5))
    normal[-1] += 1
    normal /= normal.norm().clamp_min(JITTER)
    return vectors - 2 * (vectors @ normal)[:, None] * normal
