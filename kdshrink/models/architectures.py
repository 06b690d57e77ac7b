"""The table of architectures: everything that is specific to a family of models is its entry in FAMILIES.

Shrinking, recording and calibration read it, so that a new family is a change of this file and of tests.
It imports neither torch nor transformers, since `kdshrink shrink` reads it, and importing these takes
most of the time that a command needs to start.
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
    """An attention head: the number of its layer and its own within it, both 1-based."""

    layer: int
    head: int


Config = Mapping[str, Any]
"""A model's config.json."""


class Attention(Enum):
    """How a family computes attention, which decides how it is recorded and calibrated."""

    DOT_PRODUCT = auto()
    """Scaled dot-product attention, recorded through transformers' AttentionInterface."""

    DISENTANGLED = auto()
    """DeBERTa's disentangled attention, which has no such interface: a hook records its probabilities."""


@dataclass(frozen=True)
class LayerModules:
    """Names of a layer's modules, relative to the layer; by default BERT's.

    Attributes:
        position_query, position_key: Separate projections of relative positions, where there are any.
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
    """Names of the modules of pooler and classification head, relative to the model.

    Attributes:
        dense: The layer on the first token: the first of these that the model has.
        output: The layer that gives the logits: the first of these that the model has.
        activation: The activation after the dense layer, by its name in transformers' ACT2FN.
    """

    dense: tuple[str, ...]
    output: tuple[str, ...] = ("classifier",)
    activation: Callable[[Config], str] = lambda config: "tanh"


@dataclass(frozen=True)
class Modules:
    """Names of a model's modules, relative to its encoder; by default BERT's.

    Attributes:
        head: Relative to the model, not the encoder.
        embeddings: Maps ids to the output of `embeddings_norm`.
        tables: Embedding tables that are summed before that norm; the word embeddings first. A model may
            lack those of positions and token types.
        hidden_0: The module whose output is hidden state 0: the first of these that the encoder has.
        hidden_1: The module whose output is hidden state 1 instead of layer 1's, in models that have it.
        positions, positions_norm: The table of relative positions and its norm, in models that have them.
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
"""Kinds of axes of tensors; those of positions and token types (WHOLE) and of classes are never cut.

EMBEDDING is the width of the embedding tables, which may be narrower than the layers in ELECTRA and
DeBERTa; GROUP is the number of input channels of a convolution's group. Both are mostly the hidden width.
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
    """A row of the table: tensors with the same axes.

    Attributes:
        pattern: A regular expression of their names without the encoder's prefix. It may contain `#`, a
            layer's number from 0, and alternatives (?:a|b).
        axes: The kind of each axis.
        part: The part of the model that they belong to: embeddings, layers or head.
        needed: Whether a model with this config.json has them.
    """

    pattern: str
    axes: Axes
    part: str
    needed: Callable[[Config], bool] = _always

    def names(self) -> Iterator[str]:
        """All names that match the pattern, with `#` for the layer's number."""
        parts = re.split(r"\(\?:(.*?)\)", self.pattern.replace(r"\.", "."))
        return map("".join, product(*(part.split("|") for part in parts)))


Ability = Literal["shrunk", "distilled", "calibrated"]
"""What can be done with a family's models, as error messages say it; what can be shrunk can be trimmed."""


class Variant(NamedTuple):
    """Models of a family that an ability excludes.

    Attributes:
        name: Their description in error messages, after the model type.
        includes: Whether a model with this config.json is one.
    """

    name: str
    includes: Callable[[Config], bool]


@dataclass(frozen=True)
class Family:
    """An architecture: its modules, its tensors, and what can be done with its models.

    Attributes:
        prefix: The prefix of the encoder's names in models with a head.
        bare: The class of the encoder without a head.
        modules: The names of its modules.
        attention: How it computes attention; None if its models cannot be recorded and so distilled.
        rows: Its tensors. Without them its models cannot be shrunk, nor their vocabulary trimmed.
        language_model: The tensors of its head for masked language modelling.
        tied: Patterns of that head's tensors that share others' values, unless config.json unties them.
        left_out: Patterns of tensors that only pretraining uses, and of buffers.
        calibrated: Whether its models can be calibrated, which also needs `rows` and `attention`.
        uncalibrated: Those of its models that cannot be calibrated yet.
        config_keys: Its own names of sizes in config.json, by the usual ones.
        counts_behind_padding: Whether positions are counted from the padding's id + 1.
        paper_name: The paper's name of the model of this family that it measured.
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
        """Whether models of this family have an ability, apart from excluded variants."""
        return {
            "shrunk": bool(self.rows),
            "distilled": self.attention is not None,
            "calibrated": self.calibrated,
        }[ability]

    def key(self, size: str) -> str:
        """The name of a size (`hidden_size`, say) in config.json."""
        return self.config_keys.get(size, size)

    def is_tied(self, name: str) -> bool:
        """Whether a tensor is a copy of another, where embeddings are tied."""
        return any(re.fullmatch(pattern, name) for pattern in self.tied)

    def needed(self, config: Config) -> dict[str, str]:
        """For each tensor of a model with this config.json, its part by its name without the prefix."""
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
        """The row of a tensor, and the number of its layer if it has one; None if it is left out.

        Args:
            language_model: Whether to include the head for masked language modelling.

        Raises:
            ModelError: The table has no such tensor.
        """
        inner = name.removeprefix(f"{self.prefix}.")
        for row in (*self.rows, *(self.language_model if language_model else ())):
            if match := re.fullmatch(row.pattern.replace("#", r"(\d+)"), inner):
                return row, int(match[1]) if match.groups() else None
        if any(re.fullmatch(pattern, inner) for pattern in self.left_out):
            return None
        raise ModelError(
            f"The model has a tensor that this architecture does not: {name}.\n"
            "So it cannot be shrunk, and nothing was written."
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
    """Whether there are token types; without the field in config.json, by the family's default."""
    return bool(config.get("type_vocab_size", config.get("model_type") != "deberta-v2"))


_EMBEDDINGS = (*_embeddings(HIDDEN), _norm(r"embeddings\.LayerNorm", "embeddings"))


def _layer(attention: str) -> tuple[Row, ...]:
    """A layer like BERT's; the axis of all heads together has the hidden width."""
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
    """The pooler, which a bare encoder may have, and models with these heads do."""
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
    """A layer's separate projection of positions, where it does not share that of the content."""
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
            needed=lambda c: "layer_norm" in str(c.get("norm_rel_ebd", "")),
        ),
        Row(r"encoder\.conv\.conv\.weight", (HIDDEN, GROUP, WHOLE), "layers", _has_convolution),
        Row(r"encoder\.conv\.conv\.bias", (HIDDEN,), "layers", _has_convolution),
        _norm(r"encoder\.conv\.LayerNorm", "layers", needed=_has_convolution),
        *_pooler(_SEQUENCE),
        *_classifier(_SEQUENCE, _TOKEN),
    ),
    # Saved in one of two forms.
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
"""The families by the `model_type` of config.json. mDeBERTa and DeBERTa-v3 are of type deberta-v2."""


def find_family(config: Config) -> Family | None:
    """The family of a model; None if the table does not have it."""
    return FAMILIES.get(str(config.get("model_type")))


def family_of(config: Config, ability: Ability) -> Family:
    """The family of a model with this ability.

    Raises:
        ModelError: Such models do not have it.
    """
    family, which = find_family(config), ""
    if family is not None and ability == "calibrated":
        names = (variant.name for variant in family.uncalibrated if variant.includes(config))
        which = next((f" {name}" for name in names), "")
    if family is not None and family.can_be(ability) and not which:
        return family
    supported = ", ".join(kind for kind, family in FAMILIES.items() if family.can_be(ability))
    reason = (
        f"odels of type {config.get('model_type')!r}{which} cannot be {ability} yet.\n"
        f"Supported: {supported}."
    )
    if ability == "calibrated":
        raise ModelError(
            f"--init calibrated: m{reason} --init copy works for all that can be shrunk."
        )
    raise ModelError(f"M{reason}")


def can_be(config: Config, ability: Ability) -> bool:
    """Whether a model has this ability."""
    try:
        family_of(config, ability)
    except ModelError:
        return False
    return True


def find_module(root: Any, *names: str | None) -> Any:
    """The first of these dotted names that a module has a submodule for; None if there is none."""
    for name in filter(None, names):
        found = root
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is not None:
            return found
    return None


def config_keys(size: str) -> tuple[str, ...]:
    """Names of a size (such as `hidden_size`) in config.json: the usual one, then those of families."""
    return (
        size,
        *dict.fromkeys(f.config_keys[size] for f in FAMILIES.values() if size in f.config_keys),
    )
