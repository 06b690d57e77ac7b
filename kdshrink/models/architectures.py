"""The table of architectures: all that the tool knows of a family of models is its entry in FAMILIES.

What shrinks, records and calibrates models reads it, so that a new family, or something new that can be
done with one, is a change of this file and of tests. It imports neither torch nor transformers, since
`kdshrink shrink` reads it and most of the time it takes to start would be theirs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from itertools import product
from typing import Any, Literal, NamedTuple

from ..errors import ModelError


class Head(NamedTuple):
    """A head of attention: its layer's number and its own, both counted from 1."""

    layer: int
    head: int


Config = Mapping[str, Any]
"""A model's config.json."""


class Attention(Enum):
    """How a family computes attention, which decides how it is recorded and calibrated."""

    DOT_PRODUCT = auto()
    """The softmax of scaled dot products, recorded through transformers' AttentionInterface."""

    DISENTANGLED = auto()
    """DeBERTa's, which has no interface: a hook reads its probabilities."""


@dataclass(frozen=True)
class LayerModules:
    """Names of a layer's modules within it; by default BERT's.

    Attributes:
        position_query, position_key: Projections of relative positions, where a layer has its own.
    """

    attention: str = "attention.self"
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    attention_output: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    ffn_up: str = "intermediate.dense"
    activation: str = "intermediate.intermediate_act_fn"
    ffn_down: str = "output.dense"
    ffn_norm: str = "output.LayerNorm"
    position_query: str | None = None
    position_key: str | None = None


@dataclass(frozen=True)
class HeadModules:
    """Names within the model of what reads the last hidden states.

    Attributes:
        dense: The layer that reads the first token: the first of these that the model has.
        output: The layer that puts out logits: the first of these that the model has.
        activation: Of what the dense layer puts out: its name in transformers' ACT2FN.
    """

    dense: tuple[str, ...]
    output: tuple[str, ...] = ("classifier",)
    activation: Callable[[Config], str] = lambda config: "tanh"


@dataclass(frozen=True)
class Modules:
    """Names of a model's modules within its encoder; by default BERT's.

    Attributes:
        embeddings: From ids to what its norm puts out.
        tables: Embedding tables that are added up before that norm; the word embeddings first. A model
            need not have those of positions and token types.
        hidden_0: What puts out hidden state 0: the first of these that the encoder has.
        hidden_1: What puts out hidden state 1 in place of layer 1, in models that have it.
        positions, positions_norm: The table of relative positions and its norm, in models that have them.
        head: Within the model, not the encoder.
    """

    head: HeadModules
    embeddings: str = "embeddings"
    embeddings_norm: str = "embeddings.LayerNorm"
    tables: tuple[str, ...] = (
        "embeddings.word_embeddings",
        "embeddings.position_embeddings",
        "embeddings.token_type_embeddings",
    )
    layers: str = "encoder.layer"
    layer: LayerModules = LayerModules()
    hidden_0: tuple[str, ...] = ("embeddings",)
    hidden_1: str | None = None
    positions: str | None = None
    positions_norm: str | None = None


HIDDEN, FFN, VOCABULARY, WHOLE = "hidden", "ffn", "vocabulary", "whole"
EMBEDDING, GROUP, CLASSES = "embedding", "group", "classes"
"""What an axis is; axes of positions and token types (WHOLE) and of classes stay whole.

EMBEDDING is the width of the embedding tables, which ELECTRA and DeBERTa may have narrower than the
layers, and GROUP what a group of a convolution reads; both are mostly the hidden width itself.
"""

Axes = tuple[str, ...]


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


Ability = Literal["shrunk", "distilled", "calibrated"]
"""What can be done with the models of a family, as a refusal says it. What can be shrunk can be trimmed."""


class Variant(NamedTuple):
    """Models of a family that differ from its others.

    Attributes:
        name: As a refusal says it behind the family's type.
        includes: Whether a model of this config.json is one.
    """

    name: str
    includes: Callable[[Config], bool]


@dataclass(frozen=True)
class Family:
    """An architecture: where its parts are, what its tensors are, and what can be done with its models.

    Attributes:
        prefix: What stands before an encoder's names where there is a head.
        bare: Class of the encoder without a head.
        modules: Where its parts are.
        attention: How it computes attention; None if its models cannot be recorded and so distilled.
        rows: Its tensors; `#` in a pattern is the number of a layer, from 0. Without them its models
            cannot be shrunk, nor their vocabulary trimmed.
        language_model: Those of its head for masked language modelling.
        tied: Patterns of that head's tensors that are others' too, unless config.json unties them.
        left_out: Patterns of tensors that serve pretraining alone, and of buffers.
        calibrated: Whether its models can be calibrated, which takes `rows` and `attention` too.
        uncalibrated: Those of them that cannot be calibrated yet.
        config_keys: Its own names of sizes in config.json, by the usual ones.
        counts_behind_padding: Whether positions are counted from behind the padding's id.
        paper_name: What the paper calls the model of this family that it measured.
    """

    prefix: str
    bare: str
    modules: Modules
    attention: Attention | None
    rows: tuple[Row, ...] = ()
    language_model: tuple[Row, ...] = ()
    tied: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    calibrated: bool = False
    uncalibrated: tuple[Variant, ...] = ()
    config_keys: Mapping[str, str] = field(default_factory=dict)
    counts_behind_padding: bool = False
    paper_name: str | None = None

    def can_be(self, ability: Ability) -> bool:
        """Whether it can be done with models of this family; a `Variant` may be excepted."""
        return {
            "shrunk": bool(self.rows),
            "distilled": self.attention is not None,
            "calibrated": self.calibrated,
        }[ability]

    def key(self, size: str) -> str:
        """The name of a size (`hidden_size`, say) in config.json."""
        return self.config_keys.get(size, size)

    def is_tied(self, name: str) -> bool:
        """Whether a tensor is a second copy of another, if the embeddings are tied."""
        return any(re.fullmatch(pattern, name) for pattern in self.tied)

    def needed(self, config: Config) -> dict[str, str]:
        """All tensors that a model of this config.json has: names behind the prefix, and their parts."""
        depth = config[self.key("num_hidden_layers")]
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
    bare="RobertaModel",
    modules=Modules(
        HeadModules(
            dense=("classifier.dense", "pooler.dense"),
            output=("classifier.out_proj", "classifier"),
        )
    ),
    attention=Attention.DOT_PRODUCT,
    rows=(*_EMBEDDINGS, *_BERT_LAYER, *_pooler(), *_classifier(_TOKEN), *_DEEP_CLASSIFIER),
    language_model=(
        *_linear(r"lm_head\.dense", HIDDEN, HIDDEN, "head", _models_language),
        _norm(r"lm_head\.layer_norm", "head", needed=_models_language),
        *_linear(r"lm_head\.decoder", VOCABULARY, HIDDEN, "head", _models_language),
        Row(r"lm_head\.bias", (VOCABULARY,), "head", _models_language),
    ),
    tied=(r"lm_head\.decoder\.(?:weight|bias)",),
    left_out=(*_BUFFERS, r"lm_head\..*"),
    calibrated=True,
    counts_behind_padding=True,
)

_BERT = Family(
    prefix="bert",
    bare="BertModel",
    modules=Modules(HeadModules(dense=("bert.pooler.dense", "pooler.dense"))),
    attention=Attention.DOT_PRODUCT,
    rows=(*_EMBEDDINGS, *_BERT_LAYER, *_pooler(_SEQUENCE), *_classifier(_SEQUENCE, _TOKEN)),
    language_model=_bert_language_model(HIDDEN),
    tied=_BERT_TIED,
    left_out=(*_BUFFERS, r"cls\..*"),
    calibrated=True,
)


def _has_narrow_tables(config: Config) -> bool:
    width = config["hidden_size"]
    return (config.get("embedding_size") or width) != width


_ELECTRA = Family(
    prefix="electra",
    bare="ElectraModel",
    modules=Modules(
        HeadModules(
            dense=("classifier.dense",),
            output=("classifier.out_proj", "classifier"),
            activation=lambda config: "gelu",
        ),
        # Where embeddings are narrower than the layers, hidden state 0 comes after the projection.
        hidden_0=("embeddings_project", "embeddings"),
    ),
    attention=Attention.DOT_PRODUCT,
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
    bare="DebertaV2Model",
    modules=Modules(
        HeadModules(dense=("pooler.dense",), activation=lambda config: config["pooler_hidden_act"]),
        layer=LayerModules(
            query="attention.self.query_proj",
            key="attention.self.key_proj",
            value="attention.self.value_proj",
            position_query="attention.self.pos_query_proj",
            position_key="attention.self.pos_key_proj",
        ),
        hidden_1="encoder.conv",
        positions="encoder.rel_embeddings",
        positions_norm="encoder.LayerNorm",
    ),
    attention=Attention.DISENTANGLED,
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
    calibrated=True,
    uncalibrated=(
        Variant("with a convolution", _has_convolution),
        Variant("with narrow embedding tables", _has_narrow_tables),
    ),
    paper_name="mDeBERTa",
)

_DISTILBERT = Family(
    prefix="distilbert",
    bare="DistilBertModel",
    modules=Modules(
        HeadModules(dense=("pre_classifier",), activation=lambda config: "relu"),
        layers="transformer.layer",
        layer=LayerModules(
            attention="attention",
            query="attention.q_lin",
            key="attention.k_lin",
            value="attention.v_lin",
            attention_output="attention.out_lin",
            attention_norm="sa_layer_norm",
            ffn_up="ffn.lin1",
            activation="ffn.activation",
            ffn_down="ffn.lin2",
            ffn_norm="output_layer_norm",
        ),
    ),
    attention=Attention.DOT_PRODUCT,
    left_out=(*_BUFFERS, r"vocab_(?:transform|layer_norm|projector)\..*"),
    config_keys={
        "hidden_size": "dim",
        "intermediate_size": "hidden_dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
    },
)

FAMILIES: Mapping[str, Family] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": replace(_ROBERTA, bare="XLMRobertaModel", paper_name="XLM-R"),
    "camembert": replace(_ROBERTA, bare="CamembertModel"),
    "deberta-v2": _DEBERTA_V2,
    "electra": _ELECTRA,
    "distilbert": _DISTILBERT,
}
"""By the `model_type` of config.json. mDeBERTa and DeBERTa-v3 are of type deberta-v2."""


def find_family(config: Config) -> Family | None:
    """The family of a model, or None if it is of none of these."""
    return FAMILIES.get(str(config.get("model_type")))


def family_of(config: Config, ability: Ability) -> Family:
    """The family of a model with which this can be done.

    Raises:
        ModelError: It cannot be done with such models.
    """
    family, which = find_family(config), ""
    if family is not None and ability == "calibrated":
        names = (variant.name for variant in family.uncalibrated if variant.includes(config))
        which = next((f" {name}" for name in names), "")
    if family is not None and family.can_be(ability) and not which:
        return family
    supported = ", ".join(kind for kind, family in FAMILIES.items() if family.can_be(ability))
    told = (
        f"odels of type {config.get('model_type')!r}{which} cannot be {ability} yet.\n"
        f"Supported: {supported}."
    )
    if ability == "calibrated":
        raise ModelError(f"--init calibrated: m{told} --init copy serves all that can be shrunk.")
    raise ModelError(f"M{told}")


def find_module(root: Any, *names: str | None) -> Any:
    """The first module of these dotted names that there is within a module, or None (as for None)."""
    for name in filter(None, names):
        found = root
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is not None:
            return found
    return None


def config_keys(size: str) -> tuple[str, ...]:
    """The names that a size (`hidden_size`, say) has in config.json: the usual one, then families' own."""
    return (
        size,
        *dict.fromkeys(f.config_keys[size] for f in FAMILIES.values() if size in f.config_keys),
    )
