"""What a smaller vocabulary costs: tokens of texts that it was not made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

if TYPE_CHECKING:
    pass
from .vocabulary import Text

_HELD_OUT_EVERY = 10


@dataclass(frozen=True)
class HeldOutCost:
    """What trimming costs text that it has not seen: means over a language's held-out texts."""

    texts: int
    tokens_before: float
    tokens_after: float
    unknown_before: float
    unknown_after: float


def held_out_cost(
    before: Tokenizer, after: Tokenizer, unknown: str | None, texts: Mapping[str, Sequence[Text]]
) -> dict[str, HeldOutCost]:
    """Tokens a text, and the share of unknown ones, of two tokenizers by language."""

    def cost(tokenizer: Tokenizer, batch: Sequence[Text]) -> tuple[float, float]:
        pretokenized = isinstance(batch[0], list)
        encoded = tokenizer.encode_batch(
            list(batch), is_pretokenized=pretokenized, add_special_tokens=False
        )
        # By id: Unigram shows an unknown piece's own text as its token.
        ids = [index for one in encoded for index in one.ids]
        unknown_id = tokenizer.token_to_id(unknown) if unknown else None
        unknowns = sum(index == unknown_id for index in ids)
        return len(ids) / len(batch), unknowns / max(1, len(ids))

    costs = {}
    for language, batch in texts.items():
        (tokens_before, unknown_before), (tokens_after, unknown_after) = (
            cost(tokenizer, batch) for tokenizer in (before, after)
        )
        costs[language] = HeldOutCost(
            len(batch), tokens_before, tokens_after, unknown_before, unknown_after
        )
    return costs


def is_held_out(row: int) -> bool:
    """Whether a row is of the tenth that the estimate counts on."""
    return row % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1
