"""Batches of texts without padding, and attention on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..data.batching import batches_by_length


@dataclass(frozen=True)
class Batch:
    """Texts of similar length, their non-padding tokens concatenated to one row per token.

    Attributes:
        texts: Indices of the texts.
        lengths: Tokens of each.
        begin: The row of the first token among those of all batches.
    """

    texts: tuple[int, ...]
    lengths: tuple[int, ...]
    begin: int

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    def mask(self, device: torch.device) -> Tensor:
        """(B, T), true at non-padding tokens."""
        lengths = torch.tensor(self.lengths, device=device)
        return torch.arange(max(self.lengths), device=device) < lengths[:, None]

    def firsts(self, device: torch.device) -> Tensor:
        """(B,), the row of each text's first token within the batch."""
        lengths = torch.tensor(self.lengths, device=device)
        return lengths.cumsum(0) - lengths


def make_batches(lengths: Sequence[int], most_tokens: int) -> list[Batch]:
    """Group texts of similar length into batches, the longest first.

    Args:
        lengths: Tokens of each text.
        most_tokens: Tokens of a batch at most, padding included.
    """
    batches, begin = [], 0
    for rows in batches_by_length(lengths, tokens=most_tokens, longest_first=True):
        texts = tuple(rows.tolist())
        sizes = tuple(lengths[text] for text in texts)
        batches.append(Batch(texts, sizes, begin))
        begin += sum(sizes)
    return batches


def attend(query: Tensor, key: Tensor, value: Tensor, batch: Batch, heads: int) -> Tensor:
    """Scaled dot-product attention within each text of a batch.

    Args:
        query, key, value: (tokens, heads · head size).

    Returns:
        The context vectors of all heads, concatenated: (tokens, heads · head size).
    """
    mask = batch.mask(query.device)

    def padded(rows: Tensor) -> Tensor:
        spread = rows.new_zeros(*mask.shape, rows.shape[-1])
        spread[mask] = rows
        return spread.unflatten(-1, (heads, -1)).transpose(1, 2)

    context = functional.scaled_dot_product_attention(
        padded(query), padded(key), padded(value), attn_mask=mask[:, None, None, :]
    )
    return context.transpose(1, 2).flatten(2)[mask]
