"""DeBERTa's relative positions: those that a batch of texts has, in place of all.

transformers scores every token with the whole table of them, 512 rows as a rule, whatever the length of the texts,
and gathers the scores that it needs. For short texts that is most of a model's work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


def cut_relative_positions(model: PreTrainedModel) -> None:
    """Let a DeBERTa-v2 score only the positions that its texts can have; what it computes is the same.

    Between calls it is as transformers has it. So it is, too, where torch compiles or exports it: for lengths
    that it does not know then. Other models are left alone.
    """
    if model.config.model_type != "deberta-v2":
        return
    from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2Encoder

    for encoder in model.modules():
        if isinstance(encoder, DebertaV2Encoder) and encoder.relative_attention:
            vars(encoder)["get_rel_embedding"] = MethodType(_middle_rows, encoder)
            encoder.register_forward_pre_hook(_narrow)
            encoder.register_forward_hook(_widen, always_call=True)


@contextmanager
def present_positions(encoder: Any, tokens: int) -> Iterator[Tensor | None]:
    """The embeddings of the relative positions in texts of so many tokens, (positions, H); None without such positions.

    Within it the layers of a `DebertaV2Encoder` take these in place of all.
    """
    if not encoder.relative_attention:
        yield None
        return
    _narrow_to(encoder, tokens)
    try:
        yield _middle_rows(encoder)
    finally:
        _set_span(encoder, _span(encoder))


def _middle_rows(encoder: Any) -> Tensor:
    """The embeddings of the positions from minus the span to the span, (2 · span, H)."""
    rows = type(encoder).get_rel_embedding(encoder)
    span = encoder.layer[0].attention.self.pos_ebd_size
    middle = len(rows) // 2
    return rows[middle - span : middle + span]


def _narrow(encoder: Any, inputs: tuple[Any, ...]) -> None:
    if not torch.compiler.is_compiling():
        _narrow_to(encoder, inputs[0].shape[1])


def _narrow_to(encoder: Any, tokens: int) -> None:
    farthest = _farthest(tokens, encoder.position_buckets, encoder.max_relative_positions)
    _set_span(encoder, min(farthest + 1, _span(encoder)))


def _widen(encoder: Any, *_: Any) -> None:
    if not torch.compiler.is_compiling():
        _set_span(encoder, _span(encoder))


def _span(encoder: Any) -> int:
    return int(encoder.rel_embeddings.num_embeddings) // 2


def _set_span(encoder: Any, span: int) -> None:
    for layer in encoder.layer:
        layer.attention.self.pos_ebd_size = span


@cache
def _farthest(tokens: int, buckets: int, most: int) -> int:
    """The greatest relative position in a text of so many tokens, of buckets where the model has them."""
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    distances = torch.arange(tokens)
    if buckets > 0 and most > 0:
        distances = make_log_bucket_position(distances, buckets, most)
    return int(distances.max())
