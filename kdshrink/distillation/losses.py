"""The distillation losses, as pure functions of tensors.

They are those of TinyBERT (Jiao et al. 2020, arXiv:1909.10351, eq. 7 to 10). Unlike its code, they count
non-padding tokens only, so that no loss depends on a batch's padding. Every function returns a sum and a
count, on the tensors' device: a mean over several batches needs no synchronisation for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor

from ..training.losses import Term


@dataclass(frozen=True)
class Counted:
    """What of a batch is compared: made once, for all layers and terms.

    Attributes:
        outside: True where a term looks away, in a shape that broadcasts to the layers'.
        units: How many tokens, or pairs of query and key, are compared: a scalar on the device.
    """

    outside: Tensor
    units: Tensor


def counted_tokens(mask: Tensor) -> Counted:
    """The tokens of a (B, T) mask that are no padding; `outside` is (B, T, 1)."""
    return Counted(~mask[..., None], mask.sum())


def counted_pairs(mask: Tensor) -> Counted:
    """The pairs of query and key that are no padding, of a (B, T) mask; `outside` is (B, 1, T, T)."""
    pairs = mask[:, None, :, None] & mask[:, None, None, :]
    return Counted(~pairs, pairs.sum())


def hidden_mse(student: Tensor, teacher: Tensor, tokens: Counted) -> Term:
    """Squared error of hidden states or embeddings, over non-padding tokens × width (eq. 8 and 9).

    Several layers, stacked in front, are summed.

    Args:
        student, teacher: (B, T, H), the student's projected to the teacher's width.
        tokens: As `counted_tokens` gives them.
    """
    error = student.float() - teacher
    return Term(_sum_of_squares(error, tokens), tokens.units * student.shape[-1])


def attention_mse(student: Tensor, teacher: Tensor, pairs: Counted) -> Term:
    """Squared error of attention, over non-padding queries × keys × heads (eq. 7).

    Where the head counts differ, groups of neighbouring heads on either side are averaged down to
    their greatest common divisor, and these averages are compared. Several layers, stacked in front, are
    summed.

    Args:
        student: (B, heads, T, T), scores or probabilities.
        teacher: (B, teacher's heads, T, T), the same kind.
        pairs: As `counted_pairs` gives them.
    """
    heads = gcd(student.shape[-3], teacher.shape[-3])
    error = group_heads(student.float(), heads) - group_heads(teacher, heads)
    return Term(_sum_of_squares(error, pairs), pairs.units * heads)


def group_heads(attention: Tensor, groups: int) -> Tensor:
    """(…, heads, T, T) → (…, groups, T, T): means in float32 over groups of neighbouring heads."""
    if attention.shape[-3] == groups:
        return attention
    return attention.float().unflatten(-3, (groups, -1)).mean(-3)


def _sum_of_squares(error: Tensor, counted: Counted) -> Tensor:
    # In float32, to which a teacher's bfloat16 was promoted within the subtraction.
    return error.masked_fill(counted.outside, 0.0).pow(2).sum()


def soft_cross_entropy(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, mask: Tensor | None = None
) -> Term:
    """−Σ_c softmax(z_T/t)_c · log softmax(z_S/t)_c, over examples or labelled tokens (eq. 10).

    Multiplied by t² where t is not 1 (Hinton et al. 2015), so that gradients keep their size.

    Args:
        student, teacher: Logits, (B, C) or (B, T, C).
        temperature: t.
        mask: (B,) or (B, T), true where the logits count; None counts all.
    """
    student, teacher = student.float(), teacher.float()
    if temperature != 1:
        student, teacher = student / temperature, teacher / temperature
    each = (teacher.softmax(-1) * student.log_softmax(-1)).sum(-1)
    return _over(each * -(temperature**2), mask)


def logits_mse(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Term:
    """Squared error of the logits, averaged over classes, over examples or labelled tokens.

    Args:
        student, teacher, mask: As in `soft_cross_entropy`.
    """
    return _over((student.float() - teacher.float()).pow(2).mean(-1), mask)


def _over(each: Tensor, mask: Tensor | None) -> Term:
    if mask is None:
        return Term(each.sum(), torch.full((), each.numel(), device=each.device))
    return Term(each.masked_fill(~mask, 0.0).sum(), mask.sum())
