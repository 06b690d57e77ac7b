"""One view of the encoders that can be calibrated: BERT's and those of its build."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from ..errors import ModelError
from .activations import Batch, attend

CALIBRATED = ("xlm-roberta", "roberta", "camembert", "bert")
"""The types of models that there is a view of."""


@dataclass(frozen=True)
class LayerView:
    """A layer: attention, its output, a norm; the inner and outer half of the FFN, a norm."""

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

    def __call__(self, x: Tensor, batch: Batch) -> Tensor:
        """The layer's output for its input, both (tokens, width)."""
        return self.upper(self.middle(x, batch))

    def middle(self, x: Tensor, batch: Batch) -> Tensor:
        """What is between attention and the FFN."""
        context = attend(self.query(x), self.key(x), self.value(x), batch, self.heads)
        return self.middle_norm(self.mix(context) + x)

    def upper(self, middle: Tensor) -> Tensor:
        """The output, from what is between attention and the FFN."""
        return self.norm(self.outer(self.activation(self.inner(middle))) + middle)


@dataclass(frozen=True)
class HeadView:
    """What reads the last hidden states: a dense layer with tanh, an output layer, or both.

    Attributes:
        dense: As in BERT's pooler and RoBERTa's head; None where tokens are classified.
        output: The layer that puts out logits; None for a bare encoder.
    """

    dense: nn.Linear | None
    output: nn.Linear | None

    def logits(self, x: Tensor) -> Tensor | None:
        """(n, classes) of hidden states (n, width), or None without an output layer."""
        if self.output is None:
            return None
        return self.output(x if self.dense is None else self.dense(x).tanh())


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
    check_type(model.config.model_type)
    base = model.base_model
    embeddings = base.embeddings
    tables = (
        embeddings.word_embeddings,
        embeddings.position_embeddings,
        embeddings.token_type_embeddings,
    )
    layers = tuple(
        LayerView(
            layer.attention.self.query,
            layer.attention.self.key,
            layer.attention.self.value,
            layer.attention.output.dense,
            layer.attention.output.LayerNorm,
            layer.intermediate.dense,
            layer.intermediate.intermediate_act_fn,
            layer.output.dense,
            layer.output.LayerNorm,
            model.config.num_attention_heads,
        )
        for layer in base.encoder.layer
    )
    return EncoderView(embeddings, embeddings.LayerNorm, tables, layers, _head(model, base))


def check_type(kind: str) -> None:
    """Raise ModelError unless models of this type can be calibrated."""
    if kind not in CALIBRATED:
        raise ModelError(
            f"--init calibrated: models of type {kind!r} cannot be calibrated yet.\n"
            f"Supported: {', '.join(CALIBRATED)}. --init copy serves all that can be shrunk."
        )


def _head(model: Any, base: Any) -> HeadView | None:
    classifier = getattr(model, "classifier", None)
    if classifier is not None and hasattr(classifier, "out_proj"):
        return HeadView(classifier.dense, classifier.out_proj)
    pooler = getattr(base, "pooler", None)
    dense = None if pooler is None else pooler.dense
    return None if dense is None and classifier is None else HeadView(dense, classifier)


def normalise(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """What a norm computes before its weight and bias."""
    return functional.layer_norm(x, norm.normalized_shape, eps=norm.eps)
