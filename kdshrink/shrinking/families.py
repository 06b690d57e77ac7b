"""Architectures described as data: which tensors there are, and what each of their axes is.

One engine slices, drops layers and trims rows by these tables. A new family is a new table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import ModelError

HIDDEN, FFN, VOCABULARY, WHOLE = "hidden", "ffn", "vocabulary", "whole"
EMBEDDING, GROUP = "embedding", "group"
"""What an axis is; axes of positions, token types and classes stay whole.

EMBEDDING is the width of the embedding tables, which ELECTRA and DeBERTa may have narrower than the
layers, and GROUP what a group of a convolution reads; both are mostly the hidden width itself.
"""

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
        language_model: Those of its head for masked language modelling.
        tied: Patterns of that head's tensors that are others' too, unless config.json unties them.
        left_out: Patterns of tensors that serve pretraining alone, and of buffers.
        bare: Class of the encoder without a head.
    """

    prefix: str
    rows: tuple[Row, ...]
    language_model: tuple[Row, ...]
    tied: tuple[str, ...]
    left_out: tuple[str, ...]
    bare: str

    def is_tied(self, name: str) -> bool:
        """Whether a tensor is a second copy of another, if the embeddings are tied."""
        return any(re.fullmatch(pattern, name) for pattern in self.tied)

    def find(self, name: str, *, language_model: bool = False) -> tuple[Row, int | None] | None:
        """The row of a tensor and the number of its layer, or None if it is left out.

        Args:
            language_model: Whether the head for masked language modelling is wanted.

        Raises:
            ModelError: No row describes it.
        """
        inner = name.removeprefix(f"{self.prefix}.")
        for row in (*self.rows, *(self.language_model if language_model else ())):
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


def _norm(name: str, part: str, axis: str = HIDDEN) -> Row:
    return Row(rf"{name}\.(?:weight|bias)", (axis,), part)


def _embeddings(width: str) -> tuple[Row, ...]:
    return (
        Row(r"embeddings\.word_embeddings\.weight", (VOCABULARY, width), "embeddings"),
        Row(
            r"embeddings\.(?:position|token_type)_embeddings\.weight", (WHOLE, width), "embeddings"
        ),
    )


_EMBEDDINGS = (*_embeddings(HIDDEN), _norm(r"embeddings\.LayerNorm", "embeddings"))


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


def _bert_language_model(width: str) -> tuple[Row, ...]:
    at = r"cls\.predictions\."
    return (
        *_linear(rf"{at}transform\.dense", width, HIDDEN, "head"),
        _norm(rf"{at}transform\.LayerNorm", "head", width),
        *_linear(rf"{at}decoder", VOCABULARY, width, "head"),
        Row(rf"{at}bias", (VOCABULARY,), "head"),
    )


_POOLER = _linear(r"pooler\.dense", HIDDEN, HIDDEN, "head")
_CLASSIFIER = _linear("classifier", WHOLE, HIDDEN, "head")
_DEEP_CLASSIFIER = (
    *_linear(r"classifier\.dense", HIDDEN, HIDDEN, "head"),
    *_linear(r"classifier\.out_proj", WHOLE, HIDDEN, "head"),
)
_BERT_LAYER = _layer("query|key|value")
_BUFFERS = (r"embeddings\.position_ids", r"embeddings\.token_type_ids")
_BERT_TIED = (r"cls\.predictions\.decoder\.(?:weight|bias)",)

_ROBERTA = Family(
    prefix="roberta",
    rows=(*_EMBEDDINGS, *_BERT_LAYER, *_POOLER, *_CLASSIFIER, *_DEEP_CLASSIFIER),
    language_model=(
        *_linear(r"lm_head\.dense", HIDDEN, HIDDEN, "head"),
        _norm(r"lm_head\.layer_norm", "head"),
        *_linear(r"lm_head\.decoder", VOCABULARY, HIDDEN, "head"),
        Row(r"lm_head\.bias", (VOCABULARY,), "head"),
    ),
    tied=(r"lm_head\.decoder\.(?:weight|bias)",),
    left_out=(*_BUFFERS, r"lm_head\..*"),
    bare="RobertaModel",
)

_BERT = Family(
    prefix="bert",
    rows=(*_EMBEDDINGS, *_BERT_LAYER, *_POOLER, *_CLASSIFIER),
    language_model=_bert_language_model(HIDDEN),
    tied=_BERT_TIED,
    left_out=(*_BUFFERS, r"cls\..*"),
    bare="BertModel",
)

_ELECTRA = Family(
    prefix="electra",
    rows=(
        *_embeddings(EMBEDDING),
        _norm(r"embeddings\.LayerNorm", "embeddings", EMBEDDING),
        *_linear("embeddings_project", HIDDEN, EMBEDDING, "embeddings"),
        *_BERT_LAYER,
        *_CLASSIFIER,
        *_DEEP_CLASSIFIER,
    ),
    language_model=(
        *_linear(r"generator_predictions\.dense", EMBEDDING, HIDDEN, "head"),
        _norm(r"generator_predictions\.LayerNorm", "head", EMBEDDING),
        *_linear("generator_lm_head", VOCABULARY, EMBEDDING, "head"),
    ),
    tied=(r"generator_lm_head\.weight",),
    left_out=(*_BUFFERS, r"(?:discriminator_predictions|generator_\w+)\..*"),
    bare="ElectraModel",
)

_DEBERTA_V2 = Family(
    prefix="deberta",
    rows=(
        *_embeddings(EMBEDDING),
        _norm(r"embeddings\.LayerNorm", "embeddings"),
        Row(r"embeddings\.embed_proj\.weight", (HIDDEN, EMBEDDING), "embeddings"),
        *_layer("query_proj|key_proj|value_proj|pos_key_proj|pos_query_proj"),
        Row(r"encoder\.rel_embeddings\.weight", (WHOLE, HIDDEN), "embeddings"),
        _norm(r"encoder\.LayerNorm", "embeddings"),
        Row(r"encoder\.conv\.conv\.weight", (HIDDEN, GROUP, WHOLE), "layers"),
        Row(r"encoder\.conv\.conv\.bias", (HIDDEN,), "layers"),
        _norm(r"encoder\.conv\.LayerNorm", "layers"),
        *_POOLER,
        *_CLASSIFIER,
    ),
    language_model=(
        *_bert_language_model(EMBEDDING),
        *_linear(r"lm_predictions\.lm_head\.dense", HIDDEN, HIDDEN, "head"),
        _norm(r"lm_predictions\.lm_head\.LayerNorm", "head"),
        Row(r"lm_predictions\.lm_head\.bias", (VOCABULARY,), "head"),
    ),
    tied=_BERT_TIED,
    left_out=(*_BUFFERS, r"(?:lm_predictions|mask_predictions|cls)\..*"),
    bare="DebertaV2Model",
)

FAMILIES: Mapping[str, Family] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": replace(_ROBERTA, bare="XLMRobertaModel"),
    "camembert": replace(_ROBERTA, bare="CamembertModel"),
    "deberta-v2": _DEBERTA_V2,
    "electra": _ELECTRA,
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
