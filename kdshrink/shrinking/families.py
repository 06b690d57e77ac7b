"""Architectures described as data: which tensors there are, and what each of their axes is.

One engine slices, drops layers and trims rows by these tables. A new family is a new table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ModelError

HIDDEN, FFN, VOCABULARY, WHOLE = "hidden", "ffn", "vocabulary", "whole"
"""What an axis is; axes of positions, token types and classes stay whole."""

Axes = tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """Tensors of one kind: a pattern of their names behind the prefix, their axes, and their part."""

    pattern: str
    axes: Axes
    part: str


@dataclass(frozen=True)
class Family:
    """An architecture.

    Attributes:
        prefix: What stands before an encoder's names where there is a head.
        rows: Its tensors; `#` in a pattern is the number of a layer, from 0.
        left_out: Patterns of tensors that serve pretraining alone, and of buffers.
        bare: Class of the encoder without a head.
    """

    prefix: str
    rows: tuple[Row, ...]
    left_out: tuple[str, ...]
    bare: str

    def find(self, name: str) -> tuple[Row, int | None] | None:
        """The row of a tensor and the number of its layer, or None if it is left out.

        Raises:
            ModelError: No row describes it.
        """
        inner = name.removeprefix(f"{self.prefix}.")
        for row in self.rows:
            if match := re.fullmatch(row.pattern.replace("#", r"(\d+)"), inner):
                return row, int(match[1]) if match.groups() else None
        if any(re.fullmatch(pattern, inner) for pattern in self.left_out):
            return None
        raise ModelError(
            f"The model has a tensor that this architecture does not: {name}.\n"
            "It cannot be cut to size by rule, so nothing was written."
        )


def _linear(name: str, out: str, into: str, part: str) -> tuple[Row, ...]:
    return Row(rf"{name}\.weight", (out, into), part), Row(rf"{name}\.bias", (out,), part)


def _norm(name: str, part: str) -> Row:
    return Row(rf"{name}\.(?:weight|bias)", (HIDDEN,), part)


_EMBEDDINGS = (
    Row(r"embeddings\.word_embeddings\.weight", (VOCABULARY, HIDDEN), "embeddings"),
    Row(r"embeddings\.(?:position|token_type)_embeddings\.weight", (WHOLE, HIDDEN), "embeddings"),
    _norm(r"embeddings\.LayerNorm", "embeddings"),
)


def _layer(attention: str) -> tuple[Row, ...]:
    """A layer of BERT's kind; the axis of all heads together is one of hidden width."""
    at = r"encoder\.layer\.#\."
    return (
        *_linear(rf"{at}attention\.self\.(?:{attention})", HIDDEN, HIDDEN, "layers"),
        *_linear(rf"{at}attention\.output\.dense", HIDDEN, HIDDEN, "layers"),
        _norm(rf"{at}attention\.output\.LayerNorm", "layers"),
        *_linear(rf"{at}intermediate\.dense", FFN, HIDDEN, "layers"),
        *_linear(rf"{at}output\.dense", HIDDEN, FFN, "layers"),
        _norm(rf"{at}output\.LayerNorm", "layers"),
    )


_POOLER = _linear(r"pooler\.dense", HIDDEN, HIDDEN, "head")
_CLASSIFIER = _linear("classifier", WHOLE, HIDDEN, "head")
_BERT_LAYER = _layer("query|key|value")
_BUFFERS = (r"embeddings\.position_ids", r"embeddings\.token_type_ids")

_ROBERTA = Family(
    prefix="roberta",
    rows=(
        *_EMBEDDINGS,
        *_BERT_LAYER,
        *_POOLER,
        *_CLASSIFIER,
        *_linear(r"classifier\.dense", HIDDEN, HIDDEN, "head"),
        *_linear(r"classifier\.out_proj", WHOLE, HIDDEN, "head"),
    ),
    left_out=(*_BUFFERS, r"lm_head\..*"),
    bare="RobertaModel",
)

_BERT = Family(
    prefix="bert",
    rows=(*_EMBEDDINGS, *_BERT_LAYER, *_POOLER, *_CLASSIFIER),
    left_out=(*_BUFFERS, r"cls\..*"),
    bare="BertModel",
)

_DEBERTA_V2 = Family(
    prefix="deberta",
    rows=(
        *_EMBEDDINGS,
        *_layer("query_proj|key_proj|value_proj|pos_key_proj|pos_query_proj"),
        Row(r"encoder\.rel_embeddings\.weight", (WHOLE, HIDDEN), "embeddings"),
        _norm(r"encoder\.LayerNorm", "embeddings"),
        Row(r"encoder\.conv\.conv\.weight", (HIDDEN, HIDDEN, WHOLE), "layers"),
        Row(r"encoder\.conv\.conv\.bias", (HIDDEN,), "layers"),
        _norm(r"encoder\.conv\.LayerNorm", "layers"),
        *_POOLER,
        *_CLASSIFIER,
    ),
    left_out=(*_BUFFERS, r"(?:lm_predictions|mask_predictions|cls)\..*"),
    bare="DebertaV2Model",
)

FAMILIES: Mapping[str, Family] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": Family(_ROBERTA.prefix, _ROBERTA.rows, _ROBERTA.left_out, "XLMRobertaModel"),
    "camembert": Family(_ROBERTA.prefix, _ROBERTA.rows, _ROBERTA.left_out, "CamembertModel"),
    "deberta-v2": _DEBERTA_V2,
}
"""By the `model_type` of config.json. mDeBERTa and DeBERTa-v3 are of type deberta-v2."""


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a model.

    Raises:
        ModelError: It is not supported.
    """
    kind = str(config.get("model_type"))
    if kind not in FAMILIES:
        raise ModelError(
            f"Models of type {kind!r} cannot be shrunk yet.\nSupported: {', '.join(FAMILIES)}."
        )
    return FAMILIES[kind]
