"""Architectures described as data: which tensors there are, and what each of their axes is.

One engine slices, drops layers and trims rows by these tables. A new family is a new table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from ..errors import ModelError


@dataclass(frozen=True)
class _Places:
    """Names of the modules that are read.

    Attributes:
        embedding: What puts out hidden state 0: the first of these that the encoder has.
        layers: The encoder's list of layers.
        attention: A layer's attention.
    """

    embedding: tuple[str, ...] = ("embeddings",)
    layers: str = "encoder.layer"
    attention: str = "attention.self"


class Head(NamedTuple):
    """A head of attention: its layer's number and its own, both counted from 1."""

    layer: int
    head: int


_INTERFACE = {
    "bert": _Places(),
    "roberta": _Places(),
    "xlm-roberta": _Places(),
    "camembert": _Places(),
    # Where embeddings are narrower than the layers, hidden state 0 comes after the projection.
    "electra": _Places(embedding=("embeddings_project", "embeddings")),
    "distilbert": _Places(layers="transformer.layer", attention="attention"),
}
DEBERTA = {"deberta-v2": _Places()}


def check_recorded(config: Mapping[str, Any]) -> None:
    """Raise ModelError unless models of this config.json can be distilled."""
    kind, families = config.get("model_type"), _INTERFACE | DEBERTA
    if kind not in families:
        raise ModelError(
            f"Models of type {kind!r} cannot be distilled yet.\nSupported: {', '.join(families)}."
        )


def places_of(model: PreTrainedModel) -> _Places:
    check_recorded(model.config.to_dict())
    return (_INTERFACE | DEBERTA)[model.config.model_type]


HIDDEN, FFN, VOCABULARY, WHOLE = "hidden", "ffn", "vocabulary", "whole"
EMBEDDING, GROUP, CLASSES = "embedding", "group", "classes"
"""What an axis is; axes of positions and token types (WHOLE) and of classes stay whole.

EMBEDDING is the width of the embedding tables, which ELECTRA and DeBERTa may have narrower than the
layers, and GROUP what a group of a convolution reads; both are mostly the hidden width itself.
"""

Axes = tuple[str, ...]


Config = Mapping[str, Any]


def _always(config: Config) -> bool:
    return True


def _never(config: Config) -> bool:
    return False


def _head_of(*kinds: str) -> Callable[[Config], bool]:
    """Whether the first of a config's architectures is of one of these kinds."""
    return lambda config: (config.get("architectures") or [""])[0].endswith(kinds)


_SEQUENCE, _TOKEN = "ForSequenceClassification", "ForTokenClassification"
_models_language = _head_of("ForMaskedLM")


@dataclass(frozen=True)
class Row:
    """Tensors of one kind.

    Attributes:
        pattern: Of their names behind the prefix; but for `#`, a layer's number, it has alternatives alone.
        axes: What each of their axes is.
        part: The part of the model that they belong to.
        needed: Whether a model of this config.json has them.
    """

    pattern: str
    axes: Axes
    part: str
    needed: Callable[[Config], bool] = _always

    def names(self) -> Iterator[str]:
        """The names that the pattern stands for."""
        parts = re.split(r"\(\?:(.*?)\)", self.pattern.replace(r"\.", "."))
        return map("".join, product(*(part.split("|") for part in parts)))


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

    def needed(self, config: Config) -> dict[str, str]:
        """All tensors that a model of this config.json has: names behind the prefix, and their parts."""
        depth = config["num_hidden_layers"]
        return {
            name.replace("#", str(layer)): row.part
            for row in (*self.rows, *self.language_model)
            if row.needed(config)
            for name in row.names()
            if not self.is_tied(name)
            for layer in range(depth if "#" in name else 1)
        }

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


def _linear(
    name: str, out: str, into: str, part: str, needed: Callable[[Config], bool] = _always
) -> tuple[Row, ...]:
    return (
        Row(rf"{name}\.weight", (out, into), part, needed),
        Row(rf"{name}\.bias", (out,), part, needed),
    )


def _norm(
    name: str, part: str, axis: str = HIDDEN, needed: Callable[[Config], bool] = _always
) -> Row:
    return Row(rf"{name}\.(?:weight|bias)", (axis,), part, needed)


def _embeddings(width: str) -> tuple[Row, ...]:
    at = r"embeddings\."
    positions, kinds = (rf"{at}{name}_embeddings\.weight" for name in ("position", "token_type"))
    return (
        Row(rf"{at}word_embeddings\.weight", (VOCABULARY, width), "embeddings"),
        Row(
            positions, (WHOLE, width), "embeddings", lambda c: c.get("position_biased_input", True)
        ),
        Row(kinds, (WHOLE, width), "embeddings", _has_kinds),
    )


def _has_kinds(config: Config) -> bool:
    """Whether there are token types; config.json may leave the number to the family's default."""
    return bool(config.get("type_vocab_size", config.get("model_type") != "deberta-v2"))


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


def _bert_language_model(
    width: str, needed: Callable[[Config], bool] = _models_language
) -> tuple[Row, ...]:
    at = r"cls\.predictions\."
    return (
        *_linear(rf"{at}transform\.dense", width, HIDDEN, "head", needed),
        _norm(rf"{at}transform\.LayerNorm", "head", width, needed),
        *_linear(rf"{at}decoder", VOCABULARY, width, "head", needed),
        Row(rf"{at}bias", (VOCABULARY,), "head", needed),
    )


def _pooler(*heads: str) -> tuple[Row, ...]:
    """The pooler, which a bare encoder may have and these heads go through."""
    return _linear(r"pooler\.dense", HIDDEN, HIDDEN, "head", _head_of(*heads) if heads else _never)


def _classifier(*heads: str) -> tuple[Row, ...]:
    return _linear("classifier", CLASSES, HIDDEN, "head", _head_of(*heads))


_DEEP_CLASSIFIER = (
    *_linear(r"classifier\.dense", HIDDEN, HIDDEN, "head", _head_of(_SEQUENCE)),
    *_linear(r"classifier\.out_proj", CLASSES, HIDDEN, "head", _head_of(_SEQUENCE)),
)
_BERT_LAYER = _layer("query|key|value")
_BUFFERS = (r"embeddings\.position_ids", r"embeddings\.token_type_ids")
_BERT_TIED = (r"cls\.predictions\.decoder\.(?:weight|bias)",)

_ROBERTA = Family(
    prefix="roberta",
    rows=(*_EMBEDDINGS, *_BERT_LAYER, *_pooler(), *_classifier(_TOKEN), *_DEEP_CLASSIFIER),
    language_model=(
        *_linear(r"lm_head\.dense", HIDDEN, HIDDEN, "head", _models_language),
        _norm(r"lm_head\.layer_norm", "head", needed=_models_language),
        *_linear(r"lm_head\.decoder", VOCABULARY, HIDDEN, "head", _models_language),
        Row(r"lm_head\.bias", (VOCABULARY,), "head", _models_language),
    ),
    tied=(r"lm_head\.decoder\.(?:weight|bias)",),
    left_out=(*_BUFFERS, r"lm_head\..*"),
    bare="RobertaModel",
)

_BERT = Family(
    prefix="bert",
    rows=(*_EMBEDDINGS, *_BERT_LAYER, *_pooler(_SEQUENCE), *_classifier(_SEQUENCE, _TOKEN)),
    language_model=_bert_language_model(HIDDEN),
    tied=_BERT_TIED,
    left_out=(*_BUFFERS, r"cls\..*"),
    bare="BertModel",
)


def _has_narrow_tables(config: Config) -> bool:
    width = config["hidden_size"]
    return (config.get("embedding_size") or width) != width


_ELECTRA = Family(
    prefix="electra",
    rows=(
        *_embeddings(EMBEDDING),
        _norm(r"embeddings\.LayerNorm", "embeddings", EMBEDDING),
        *_linear("embeddings_project", HIDDEN, EMBEDDING, "embeddings", _has_narrow_tables),
        *_BERT_LAYER,
        *_classifier(_TOKEN),
        *_DEEP_CLASSIFIER,
    ),
    language_model=(
        *_linear(r"generator_predictions\.dense", EMBEDDING, HIDDEN, "head", _models_language),
        _norm(r"generator_predictions\.LayerNorm", "head", EMBEDDING, _models_language),
        *_linear("generator_lm_head", VOCABULARY, EMBEDDING, "head", _models_language),
    ),
    tied=(r"generator_lm_head\.weight",),
    left_out=(*_BUFFERS, r"(?:discriminator_predictions|generator_\w+)\..*"),
    bare="ElectraModel",
)


def _is_relative(config: Config) -> bool:
    return bool(config.get("relative_attention"))


def _has_convolution(config: Config) -> bool:
    return (config.get("conv_kernel_size") or 0) > 0


def _position_projection(name: str, kind: str) -> tuple[Row, ...]:
    """A layer's own projection of positions, where it does not share the one of the content."""
    return _linear(
        rf"encoder\.layer\.#\.attention\.self\.{name}",
        HIDDEN,
        HIDDEN,
        "layers",
        lambda config: (
            _is_relative(config)
            and not config.get("share_att_key")
            and kind in (config.get("pos_att_type") or ())
        ),
    )


_DEBERTA_V2 = Family(
    prefix="deberta",
    rows=(
        *_embeddings(EMBEDDING),
        _norm(r"embeddings\.LayerNorm", "embeddings"),
        Row(
            r"embeddings\.embed_proj\.weight",
            (HIDDEN, EMBEDDING),
            "embeddings",
            _has_narrow_tables,
        ),
        *_layer("query_proj|key_proj|value_proj"),
        *_position_projection("pos_key_proj", "c2p"),
        *_position_projection("pos_query_proj", "p2c"),
        Row(r"encoder\.rel_embeddings\.weight", (WHOLE, HIDDEN), "embeddings", _is_relative),
        _norm(
            r"encoder\.LayerNorm",
            "embeddings",
            needed=lambda c: _is_relative(c) and "layer_norm" in str(c.get("norm_rel_ebd", "")),
        ),
        Row(r"encoder\.conv\.conv\.weight", (HIDDEN, GROUP, WHOLE), "layers", _has_convolution),
        Row(r"encoder\.conv\.conv\.bias", (HIDDEN,), "layers", _has_convolution),
        _norm(r"encoder\.conv\.LayerNorm", "layers", needed=_has_convolution),
        *_pooler(_SEQUENCE),
        *_classifier(_SEQUENCE, _TOKEN),
    ),
    # It has been saved in two forms, of which a model has one.
    language_model=(
        *_bert_language_model(EMBEDDING, _never),
        *_linear(r"lm_predictions\.lm_head\.dense", HIDDEN, HIDDEN, "head", _never),
        _norm(r"lm_predictions\.lm_head\.LayerNorm", "head", needed=_never),
        Row(r"lm_predictions\.lm_head\.bias", (VOCABULARY,), "head", _never),
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
