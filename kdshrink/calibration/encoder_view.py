"""The modules of an encoder under uniform names, whichever of the supported architectures it has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN

from ..models.architectures import Attention, HeadModules, LayerModules, family_of, find_module
from ..models.positions import present_positions
from .batch import Batch, attend


@dataclass(frozen=True)
class LayerView:
    """The modules of a Transformer layer with normalisation after each residual sum (post-LN).

    Attributes:
        context: Maps a layer's input (tokens, width) to the concatenated context vectors of its heads.
        position_query, position_key: Projections of relative positions; None where they share those of
            the tokens, or there are none.
    """

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    attention_output: nn.Linear
    attention_norm: nn.LayerNorm
    ffn_up: nn.Linear
    activation: Callable[[Tensor], Tensor]
    ffn_down: nn.Linear
    ffn_norm: nn.LayerNorm
    heads: int
    context: Callable[[Tensor, Batch], Tensor]
    position_query: nn.Linear | None = None
    position_key: nn.Linear | None = None

    def __call__(self, x: Tensor, batch: Batch) -> Tensor:
        """The layer's output for its input, both (tokens, width)."""
        return self.ffn(self.post_attention(x, batch))

    def post_attention(self, x: Tensor, batch: Batch) -> Tensor:
        """The hidden states between attention and the FFN, (tokens, width), from the layer's input."""
        return self.attention_norm(self.attention_output(self.context(x, batch)) + x)

    def ffn(self, post_attention: Tensor) -> Tensor:
        """The layer's output, (tokens, width), from the hidden states between attention and the FFN."""
        return self.ffn_norm(
            self.ffn_down(self.activation(self.ffn_up(post_attention))) + post_attention
        )


@dataclass(frozen=True)
class HeadView:
    """The head on the last hidden states: a dense layer with activation, an output layer, or both.

    Attributes:
        dense: The layer of BERT's pooler or RoBERTa's head; None for token classification.
        output: The layer that gives the logits; None for a bare encoder.
    """

    dense: nn.Linear | None
    output: nn.Linear | None
    activation: Callable[[Tensor], Tensor]

    def logits(self, x: Tensor) -> Tensor | None:
        """(n, classes) of hidden states (n, width), or None without an output layer."""
        if self.output is None:
            return None
        return self.output(x if self.dense is None else self.activation(self.dense(x)))


@dataclass(frozen=True)
class PositionsView:
    """DeBERTa's embeddings of relative positions, which the attention of every layer reads.

    Attributes:
        norm: Applied to the table before use; None where there is none.
    """

    table: nn.Embedding
    norm: nn.LayerNorm | None

    def states(self) -> Tensor:
        """(positions, width), the embeddings after the norm."""
        return self.table.weight if self.norm is None else self.norm(self.table.weight)


@dataclass(frozen=True)
class EncoderView:
    """The modules of an encoder with an optional head.

    Attributes:
        embeddings: Maps ids to hidden state 0; its last module is `norm`.
        norm: The norm of the embeddings.
        tables: Embedding tables that are summed before the norm; the word embeddings first.
        head: None for an encoder without pooler or head.
    """

    embeddings: nn.Module
    norm: nn.LayerNorm
    tables: tuple[nn.Embedding, ...]
    layers: tuple[LayerView, ...]
    head: HeadView | None
    positions: PositionsView | None = None

    @property
    def reads_first(self) -> bool:
        """Whether the head reads only the first token of each text."""
        return self.head is not None and self.head.dense is not None

    @property
    def classifies_tokens(self) -> bool:
        """Whether the head classifies every token."""
        return self.head is not None and self.head.dense is None


def view(model: Any) -> EncoderView:
    """The view of a model with a classification head, or of a bare encoder.

    Raises:
        ModelError: Its architecture cannot be calibrated.
    """
    family = family_of(model.config.to_dict(), "calibrated")
    assert family.attention is not None
    base, modules = model.base_model, family.modules
    make_context = _CONTEXTS[family.attention]
    positions = find_module(base, modules.positions)
    return EncoderView(
        embeddings=find_module(base, modules.embeddings),
        norm=find_module(base, modules.embeddings_norm),
        tables=tuple(filter(None, (find_module(base, name) for name in modules.tables))),
        layers=tuple(
            _layer(layer, modules.layer, base, make_context)
            for layer in find_module(base, modules.layers)
        ),
        head=_head(model, modules.head),
        positions=None
        if positions is None
        else PositionsView(positions, find_module(base, modules.positions_norm)),
    )


Context = Callable[[Tensor, Batch], Tensor]


def _layer(
    layer: Any,
    names: LayerModules,
    base: Any,
    make_context: Callable[[Any, LayerModules, Any], Context],
) -> LayerView:
    return LayerView(
        query=find_module(layer, names.query),
        key=find_module(layer, names.key),
        value=find_module(layer, names.value),
        attention_output=find_module(layer, names.attention_output),
        attention_norm=find_module(layer, names.attention_norm),
        ffn_up=find_module(layer, names.ffn_up),
        activation=find_module(layer, names.activation),
        ffn_down=find_module(layer, names.ffn_down),
        ffn_norm=find_module(layer, names.ffn_norm),
        heads=base.config.num_attention_heads,
        context=make_context(layer, names, base),
        position_query=find_module(layer, names.position_query),
        position_key=find_module(layer, names.position_key),
    )


def _dot_product_context(layer: Any, names: LayerModules, base: Any) -> Context:
    parts = [find_module(layer, name) for name in (names.query, names.key, names.value)]

    def context(x: Tensor, batch: Batch) -> Tensor:
        query, key, value = (part(x) for part in parts)
        return attend(query, key, value, batch, base.config.num_attention_heads)

    return context


def _disentangled_context(layer: Any, names: LayerModules, base: Any) -> Context:
    """Disentangled attention, computed by the model's own module on padded hidden states."""
    attention, encoder = find_module(layer, names.attention), base.encoder

    def context(x: Tensor, batch: Batch) -> Tensor:
        mask = batch.mask(x.device)
        padded = x.new_zeros(*mask.shape, x.shape[-1])
        padded[mask] = x
        with present_positions(encoder, padded.shape[1]) as positions:
            return attention(
                padded,
                encoder.get_attention_mask(mask.long()),
                relative_pos=encoder.get_rel_pos(padded),
                rel_embeddings=positions,
            )[0][mask]

    return context


_CONTEXTS = {
    Attention.DOT_PRODUCT: _dot_product_context,
    Attention.DISENTANGLED: _disentangled_context,
}


def _head(model: Any, names: HeadModules) -> HeadView | None:
    dense, output = find_module(model, *names.dense), find_module(model, *names.output)
    if dense is None and output is None:
        return None
    return HeadView(dense, output, ACT2FN[names.activation(model.config.to_dict())])


def normalise(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """The output of a norm without its weight and bias."""
    return functional.layer_norm(x, norm.normalized_shape, eps=norm.eps)
