"""Trims a vocabulary by texts, and estimates what that costs on held-out texts."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from ..progress import Progress
from .vocabulary import Text, TrimmedTokenizer, count_tokens, read_settings, trim_tokenizer

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_HELD_OUT_EVERY = 10


@dataclass(frozen=True)
class HeldOutCost:
    """Tokenisation of a language's held-out texts before and after trimming.

    Attributes:
        texts: Number of held-out texts.
        tokens_before, tokens_after: Mean tokens per text.
        unknown_before, unknown_after: Share of unknown tokens, from 0 to 1.
    """

    texts: int
    tokens_before: float
    tokens_after: float
    unknown_before: float
    unknown_after: float


def trim_by_texts(
    tokenizer: PreTrainedTokenizerBase,
    tables: Sequence[Dataset],
    *,
    vocab_size: int | None,
    min_count: int,
    progress: Progress,
) -> tuple[TrimmedTokenizer, dict[str, HeldOutCost]]:
    """Trim a tokenizer to the tokens of texts, and estimate the cost for each language.

    The cost is measured on every tenth text, with a tokenizer that is trimmed by the others only.

    Args:
        tables: The texts, with columns `text` and `language`.
        vocab_size: Tokens to keep at most, special ones included; None for all that the texts use.
        min_count: How often a token must occur.

    Returns:
        The tokenizer trimmed by all texts, and the cost by language.

    Raises:
        ModelError, ShapeError: As `trim_tokenizer`.
    """
    total = sum(map(len, tables))
    chosen = np.zeros(len(tokenizer), dtype=np.int64)
    held_counts = np.zeros_like(chosen)
    held_texts: dict[str, list[Text]] = {}
    done = 0
    for table in tables:
        for batch in table.select_columns(["text", "language"]).iter(1000):
            held = [is_held_out(done + i) for i in range(len(batch["text"]))]
            rest = [text for text, out in zip(batch["text"], held, strict=True) if not out]
            apart = [text for text, out in zip(batch["text"], held, strict=True) if out]
            if rest:
                chosen += count_tokens(tokenizer, [rest])
            if apart:
                held_counts += count_tokens(tokenizer, [apart])
            for text, language, out in zip(batch["text"], batch["language"], held, strict=True):
                if out:
                    held_texts.setdefault(language, []).append(text)
            done += len(held)
            progress("count tokens", done, total, {})
    limits: Any = {"vocab_size": vocab_size, "min_count": min_count}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        settings = read_settings(Path(folder))
    estimate = trim_tokenizer(tokenizer, chosen, settings, **limits)
    costs = held_out_cost(
        tokenizer.backend_tokenizer, estimate.backend(), tokenizer.unk_token, held_texts
    )
    return trim_tokenizer(tokenizer, chosen + held_counts, settings, **limits), costs


def held_out_cost(
    before: Tokenizer, after: Tokenizer, unknown: str | None, texts: Mapping[str, Sequence[Text]]
) -> dict[str, HeldOutCost]:
    """Compare two tokenizers on texts of each language.

    Args:
        unknown: The unknown token; None if there is none.
        texts: By language.
    """

    def cost(tokenizer: Tokenizer, batch: Sequence[Text]) -> tuple[float, float]:
        pretokenized = isinstance(batch[0], list)
        encoded = tokenizer.encode_batch(
            list(batch), is_pretokenized=pretokenized, add_special_tokens=False
        )
        # By id, since Unigram gives an unknown token's own text as its token.
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
    """Whether a row is held out for the estimate of the cost: every tenth is."""
    return row % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1
