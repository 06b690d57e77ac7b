"""One view of the encoders that can be calibrated: those of BERT's build, and DeBERTa-v2."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import ModelError
from .batch import Batch, attend

_DEBERTA = "deberta-v2"
CALIBRATED = ("xlm-roberta", "roberta", "camembert", "bert", _DEBERTA)
"""The types of models that there is a view of."""


@dataclass(frozen=True)
class LayerView:
    """A layer: attention, its output, a norm; the inner and outer half of the FFN, a norm.

    Attributes:
        context: From a layer's input (tokens, width) to the heads' contexts side by side.
        position_query, position_key: Projections of relative positions, where they have their own.
    """

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    mix: nn.Linear
    middle_norm: nn.LayerNorm
    inner: nn.Linear
    activation: Callable[[Tensor], Tensor]
    outer: nn.Linear
    norm: nn.LayerNorm
    heads: int
    context: Callable[[Tensor, Batch], Tensor]
    position_query: nn.Linear | None = None
    position_key: nn.Linear | None = None

    def __call__(self, x: Tensor, batch: Batch) -> Tensor:
        """The layer's output for its input, both (tokens, width)."""
        return self.upper(self.middle(x, batch))

    def middle(self, x: Tensor, batch: Batch) -> Tensor:
        """What is between attention and the FFN."""
        return self.middle_norm(self.mix(self.context(x, batch)) + x)

    def upper(self, middle: Tensor) -> Tensor:
        """The output, from what is between attention and the FFN."""
        return self.norm(self.outer(self.activation(self.inner(middle))) + middle)


@dataclass(frozen=True)
class HeadView:
    """What reads the last hidden states: an activated dense layer, an output layer, or both.

    Attributes:
        dense: As in BERT's pooler and RoBERTa's head; None where tokens are classified.
        output: The layer that puts out logits; None for a bare encoder.
    """

    dense: nn.Linear | None
    output: nn.Linear | None
    activation: Callable[[Tensor], Tensor] = torch.tanh

    def logits(self, x: Tensor) -> Tensor | None:
        """(n, classes) of hidden states (n, width), or None without an output layer."""
        if self.output is None:
            return None
        return self.output(x if self.dense is None else self.activation(self.dense(x)))


@dataclass(frozen=True)
class PositionsView:
    """DeBERTa's embeddings of relative positions, which the attention of every layer reads.

    Attributes:
        norm: None where they are read as they are.
    """

    table: nn.Embedding
    norm: nn.LayerNorm | None

    def states(self) -> Tensor:
        """(positions, width), as attention reads them."""
        return self.table.weight if self.norm is None else self.norm(self.table.weight)


@dataclass(frozen=True)
class EncoderView:
    """A model's parts.

    Attributes:
        embeddings: From ids to hidden state 0; ends in the norm.
        norm: The embeddings' own.
        tables: Embedding tables that are added up before the norm; the word embeddings first.
        head: None where nothing reads the hidden states.
    """

    embeddings: nn.Module
    norm: nn.LayerNorm
    tables: tuple[nn.Embedding, ...]
    layers: tuple[LayerView, ...]
    head: HeadView | None
    positions: PositionsView | None = None

    @property
    def reads_first(self) -> bool:
        """Whether the head reads the first token of a text alone."""
        return self.head is not None and self.head.dense is not None

    @property
    def classifies_tokens(self) -> bool:
        """Whether the head puts out logits for every token."""
        return self.head is not None and self.head.dense is None


def view(model: Any) -> EncoderView:
    """The view of a model with a head for classification, or of a bare encoder.

    Raises:
        ModelError: There is no view of its type.
    """
    check_supported(model.config.to_dict())
    base = model.base_model
    embeddings, encoder = base.embeddings, base.encoder
    names = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    tables = tuple(filter(None, (getattr(embeddings, name) for name in names)))
    deberta = model.config.model_type == _DEBERTA
    layers = tuple(
        (_deberta_layer if deberta else _layer)(layer, encoder) for layer in encoder.layer
    )
    head, positions = _head(model, base), None
    if deberta and encoder.relative_attention:
        positions = PositionsView(encoder.rel_embeddings, getattr(encoder, "LayerNorm", None))
    return EncoderView(embeddings, embeddings.LayerNorm, tables, layers, head, positions)


def check_supported(config: Mapping[str, Any]) -> None:
    """Raise ModelError unless models of this config.json can be calibrated."""
    kind, reason = config.get("model_type"), ""
    if kind == _DEBERTA and config.get("conv_kernel_size"):
        reason = " with a convolution"
    elif (
        kind == _DEBERTA
        and config.get("embedding_size", config["hidden_size"]) != config["hidden_size"]
    ):
        reason = " with narrow embedding tables"
    if kind not in CALIBRATED or reason:
        raise ModelError(
            f"--init calibrated: models of type {kind!r}{reason} cannot be calibrated yet.\n"
            f"Supported: {', '.join(CALIBRATED)}. --init copy serves all that can be shrunk."
        )


def _layer(layer: Any, _: Any) -> LayerView:
    attention = layer.attention.self
    parts, heads = (attention.query, attention.key, attention.value), attention.num_attention_heads

    def context(x: Tensor, batch: Batch) -> Tensor:
        query, key, value = (part(x) for part in parts)
        return attend(query, key, value, batch, heads)

    return LayerView(*parts, **_rest_of(layer), heads=heads, context=context)


def _deberta_layer(layer: Any, encoder: Any) -> LayerView:
    attention = layer.attention.self
    parts = (attention.query_proj, attention.key_proj, attention.value_proj)
    return LayerView(
        *parts,
        **_rest_of(layer),
        heads=attention.num_attention_heads,
        context=partial(_deberta_context, attention, encoder),
        position_query=getattr(attention, "pos_query_proj", None),
        position_key=getattr(attention, "pos_key_proj", None),
    )


def _deberta_context(attention: Any, encoder: Any, x: Tensor, batch: Batch) -> Tensor:
    """Disentangled attention by the model's own module, which is the only one who knows its ways."""
    mask = batch.mask(x.device)
    padded = x.new_zeros(*mask.shape, x.shape[-1])
    padded[mask] = x
    return attention(
        padded,
        encoder.get_attention_mask(mask.long()),
        relative_pos=encoder.get_rel_pos(padded),
        rel_embeddings=encoder.get_rel_embedding(),
    )[0][mask]


def _rest_of(layer: Any) -> dict[str, Any]:
    """What follows a layer's attention, by the names of a LayerView."""
    return {
        "mix": layer.attention.output.dense,
        "middle_norm": layer.attention.output.LayerNorm,
        "inner": layer.intermediate.dense,
        "activation": layer.intermediate.intermediate_act_fn,
        "outer": layer.output.dense,
        "norm": layer.output.LayerNorm,
    }


def _head(model: Any, base: Any) -> HeadView | None:
    classifier = getattr(model, "classifier", None)
    if classifier is not None and hasattr(classifier, "out_proj"):
        return HeadView(classifier.dense, classifier.out_proj)
    if model.config.model_type == _DEBERTA and hasattr(model, "pooler"):
        from transformers.activations import ACT2FN

        return HeadView(model.pooler.dense, classifier, ACT2FN[model.config.pooler_hidden_act])
    pooler = getattr(base, "pooler", None)
    dense = None if pooler is None else pooler.dense
    return None if dense is None and classifier is None else HeadView(dense, classifier)


def normalise(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """What a norm computes before its weight and bias."""
    return functional.layer_norm(x, norm.normalized_shape, eps=norm.eps)
