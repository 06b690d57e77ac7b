"""What a loss reads of a model: chosen hidden states and attention, and nothing else.

Hidden states are read by forward hooks. For attention there are two ways, of which a family's entry in
`architectures` names one, since sdpa shows none and DeBERTa-v2 has no interface for it:

- Scaled dot products go through transformers' AttentionInterface. The chosen layers compute attention
  eagerly and hand out their scores or probabilities; all others run sdpa.
- DeBERTa-v2 computes eagerly. A hook sees a layer's probabilities before dropout, and their logarithms
  less the mean over the real keys are the scores less theirs: what is lost is a constant a query, on
  which attention does not depend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from ..errors import ModelError
from .architectures import Attention, Head, family_of, find_module

_IMPLEMENTATION = "kdshrink_recorded"


def encoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The layers of a model of a supported family."""
    modules = family_of(model.config.to_dict(), "distilled").modules
    layers = model.base_model.get_submodule(modules.layers)
    assert isinstance(layers, nn.ModuleList)
    return layers


_sinks: dict[nn.Module, Callable[[Tensor, Tensor], None]] = {}
"""For the attention modules being recorded now: what takes their scores and probabilities."""


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as AttentionInterface calls it: recorded where a sink waits, else sdpa.

    Args:
        query, key, value: (B, heads, T, head size).
        attention_mask: (B, 1, T, T), true where a query may look, or None.
    """
    sink = _sinks.get(module)
    if sink is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (query @ key.transpose(-1, -2)) * factor
    masked = scores
    if attention_mask is not None:
        masked = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    probabilities = masked.softmax(-1)
    sink(scores, probabilities)
    dropped = functional.dropout(probabilities, dropout, module.training)
    return (dropped @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(_IMPLEMENTATION, _attention)
AttentionMaskInterface.register(_IMPLEMENTATION, sdpa_mask)


@dataclass(frozen=True)
class Activations:
    """What was read in one forward pass.

    Attributes:
        embedding: (B, T, H), the embedding output; None unless asked for.
        hidden: (B, T, H) for each of the layers, in their order; empty unless asked for.
        attention: (B, heads, T, T) for each of the layers; empty unless asked for.
    """

    embedding: Tensor | None
    hidden: tuple[Tensor, ...]
    attention: tuple[Tensor, ...]


class Recorder:
    """Runs a model and hands out what it computes at chosen layers.

    The model is as it was between two calls: nothing is registered on it, and its configuration names
    its own attention.

    Args:
        model: An encoder, bare or with a classification head.
        layers: Numbers of its layers, 1-based.
        hidden, embedding: Whether to read hidden states, and the embedding output.
        attention: What of attention to read. Scores of DeBERTa-v2 are centred: `centred` tells.
        heads: For each of the layers the heads to read in place of its own, of any layers.

    Raises:
        ModelError: The model's family is not supported, or it has no such layer or head.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Sequence[int],
        *,
        hidden: bool,
        attention: Literal["scores", "probabilities"] | None,
        embedding: bool,
        heads: Sequence[Sequence[Head]] | None = None,
    ) -> None:
        family = family_of(model.config.to_dict(), "distilled")
        count = model.config.num_hidden_layers
        if beyond := [number for number in layers if not 1 <= number <= count]:
            raise ModelError(f"The model has no layer {beyond[0]}: it has {count}, counted from 1.")
        for head in chain.from_iterable(heads or ()):
            if not (
                1 <= head.layer <= count and 1 <= head.head <= model.config.num_attention_heads
            ):
                raise ModelError(
                    f"The model has no head {head.head} in a layer {head.layer}: it has {count} layers "
                    f"of {model.config.num_attention_heads} heads, counted from 1."
                )
        self.model = model
        self.layers = tuple(layers)
        self.hidden = hidden
        self.attention = attention
        self.embedding = embedding
        self.heads = heads
        self._modules = family.modules
        self._has_interface = family.attention is Attention.DOT_PRODUCT

    @property
    def centred(self) -> bool:
        """Whether the attention that is read is scores less their mean over the real keys."""
        return not self._has_interface and self.attention == "scores"

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Any, Activations]:
        """Run the model on (B, T) ids; returns its output and what was asked for."""
        embedding: dict[int, Tensor] = {}
        hidden: dict[int, Tensor] = {}
        attention: dict[int, Tensor] = {}
        encoder: Any = self.model.base_model
        all_layers: Any = encoder_layers(self.model)
        with ExitStack() as stack:
            if self.embedding:
                module = find_module(encoder, *self._modules.hidden_0)
                stack.enter_context(_output_kept(module, embedding, 0))
            for number in set(self.layers) if self.hidden else ():
                convolution = find_module(encoder, self._modules.hidden_1) if number == 1 else None
                source = convolution or all_layers[number - 1]
                stack.enter_context(_output_kept(source, hidden, number))
            for number in self._attending:
                module = all_layers[number - 1].get_submodule(self._modules.layer.attention)
                if self._has_interface:
                    stack.enter_context(self._sink(module, attention, number))
                else:
                    stack.enter_context(_input_kept(module.dropout, attention, number))
            if self.attention is not None and self._has_interface:
                stack.enter_context(_recording_implementation(self.model))
            output = self.model(input_ids=input_ids, attention_mask=attention_mask)
        maps = self._maps(attention) if self.attention is not None else []
        if self.centred:
            mask = attention_mask.bool()
            maps = [centred_log_probabilities(probabilities, mask) for probabilities in maps]
        states = tuple(hidden[number] for number in self.layers) if self.hidden else ()
        return output, Activations(embedding.get(0), states, tuple(maps))

    @property
    def _attending(self) -> set[int]:
        """The layers whose attention is read."""
        if self.attention is None:
            return set()
        return set(self.layers) if self.heads is None else {h.layer for h in chain(*self.heads)}

    def _maps(self, attention: Mapping[int, Tensor]) -> list[Tensor]:
        """What was read of attention, by layer, as what is asked for."""
        if self.heads is None:
            return [attention[number] for number in self.layers]
        return [
            torch.stack([attention[head.layer][:, head.head - 1] for head in heads], 1)
            for heads in self.heads
        ]

    @contextmanager
    def _sink(self, module: nn.Module, store: dict[int, Tensor], key: int) -> Iterator[None]:
        wants_scores = self.attention == "scores"

        def keep(scores: Tensor, probabilities: Tensor) -> None:
            store[key] = scores if wants_scores else probabilities

        _sinks[module] = keep
        try:
            yield
        finally:
            del _sinks[module]


@contextmanager
def _recording_implementation(model: PreTrainedModel) -> Iterator[None]:
    config = model.config
    usual = config._attn_implementation
    config._attn_implementation = _IMPLEMENTATION
    try:
        yield
    finally:
        config._attn_implementation = usual


@contextmanager
def _output_kept(module: nn.Module, store: dict[int, Tensor], key: int) -> Iterator[None]:
    def keep(_: nn.Module, __: Any, output: Any) -> None:
        store[key] = output[0] if isinstance(output, tuple) else output

    handle = module.register_forward_hook(keep)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _input_kept(module: nn.Module, store: dict[int, Tensor], key: int) -> Iterator[None]:
    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        store[key] = inputs[0]

    handle = module.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def centre(scores: Tensor, mask: Tensor) -> Tensor:
    """Scores less their mean over the real keys of each query, which the softmax does not see.

    Args:
        scores: (B, heads, T, T).
        mask: (B, T), true at real tokens.
    """
    scores = scores.float()
    keys = mask[:, None, None, :]
    # At least 1: a row without real keys counts nowhere, but its 0/0 would reach the gradient.
    count = keys.sum(-1, keepdim=True).clamp_min(1)
    return scores - scores.masked_fill(~keys, 0.0).sum(-1, keepdim=True) / count


def centred_log_probabilities(probabilities: Tensor, mask: Tensor) -> Tensor:
    """log p less its mean over the real keys, which equals the scores less theirs.

    For log p = s − log Σ exp s, and the second part is the same for all keys of a query.
    Probabilities too small for their type count as its smallest normal number.

    Args:
        probabilities: (B, heads, T, T), each row a softmax over the real keys.
        mask: (B, T), true at real tokens.
    """
    values = probabilities.float()
    return centre(values.clamp_min(torch.finfo(torch.float32).tiny).log(), mask)
