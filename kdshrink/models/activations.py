"""Captures hidden states and attention of selected layers in one forward pass.

Hidden states are captured by forward hooks. For attention there are two ways, and a family's entry in
`architectures` names one of them:

- Models with scaled dot-product attention go through transformers' AttentionInterface. The selected
  layers compute attention eagerly, which gives scores and probabilities; all others run sdpa. Where memory
  is scarcer than arithmetic, scores are computed beside sdpa, which keeps nothing of their size.
- DeBERTa-v2 has no such interface, and computes attention eagerly. A hook captures a layer's
  probabilities before dropout. Their logarithms minus the mean over non-padding keys equal the scores
  minus their mean: what is lost is a constant per query, which does not change the softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from ..errors import ModelError
from .architectures import Attention, Head, Modules, family_of, find_module
from .devices import ON_CPU, Execution

_IMPLEMENTATION = "kdshrink_recorded"


def encoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The layers of an encoder of a supported family (ModelError for others)."""
    modules = family_of(model.config.to_dict(), "distilled").modules
    layers = model.base_model.get_submodule(modules.layers)
    assert isinstance(layers, nn.ModuleList)
    return layers


@dataclass(frozen=True)
class _Sink:
    """What receives the attention of a layer.

    Attributes:
        keep: Gets scores or probabilities.
        probabilities: Whether it gets probabilities.
        fused: Whether the layer attends by sdpa; it computes scores for the sink alone.
    """

    keep: Callable[[Tensor], None]
    probabilities: bool
    fused: bool


_sinks: dict[nn.Module, _Sink] = {}
"""By attention module: what now receives its attention."""


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
    """Attention as AttentionInterface calls it: eager for modules with a sink, else sdpa.

    Args:
        query, key, value: (B, heads, T, head size).
        attention_mask: (B, 1, T or 1, T), true where a query attends to a key, or None.
    """
    sink = _sinks.get(module)
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    if sink is not None and sink.fused:
        # The factor goes to the queries, which are smaller than the scores.
        sink.keep((query * factor) @ key.transpose(-1, -2))
    if sink is None or sink.fused:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    scores = (query @ key.transpose(-1, -2)) * factor
    masked = scores
    if attention_mask is not None:
        masked = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    probabilities = masked.softmax(-1)
    sink.keep(probabilities if sink.probabilities else scores)
    dropped = functional.dropout(probabilities, dropout, module.training)
    return (dropped @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(_IMPLEMENTATION, _attention)
AttentionMaskInterface.register(_IMPLEMENTATION, sdpa_mask)


@dataclass(frozen=True)
class Activations:
    """The activations captured in one forward pass.

    Attributes:
        embedding: (B, T, H), the embedding output; None unless requested.
        hidden: (B, T, H) for each selected layer, in the order given; empty unless requested.
        attention: (B, heads, T, T) for each selected layer; empty unless requested.
    """

    embedding: Tensor | None
    hidden: tuple[Tensor, ...]
    attention: tuple[Tensor, ...]


class Recorder:
    """Runs a model and captures the activations of selected layers.

    Between calls the model is unchanged: no hooks are registered on it, and its configuration names its
    usual attention implementation.

    Args:
        model: An encoder, bare or with a classification head.
        layers: Numbers of the layers to capture, 1-based.
        hidden, embedding: Whether to capture hidden states, and the embedding output.
        attention: Whether to capture attention scores or probabilities. Scores of DeBERTa-v2 come
            centred (`centred`).
        heads: For each of the layers the heads to capture instead of its own; they may be of any layers.
        execution: How work is laid out on the model's device.

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
        execution: Execution = ON_CPU,
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
        self.execution = execution
        self._has_interface = family.attention is Attention.DOT_PRODUCT
        # Found once, since a step on a GPU takes less time than finding them.
        self._states = self._modules_of_states(family.modules)
        self._attentions = self._modules_of_attention(family.modules)

    @property
    def centred(self) -> bool:
        """Whether captured attention is scores minus their mean over non-padding keys."""
        return not self._has_interface and self.attention == "scores"

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Any, Activations]:
        """Run the model on (B, T) ids; gives its output and the activations."""
        states: dict[int, Tensor] = {}
        attention: dict[int, Tensor] = {}
        with ExitStack() as stack:
            for number, module in self._states.items():
                stack.enter_context(_output_kept(module, states, number))
            for number, module in self._attentions.items():
                if self._has_interface:
                    stack.enter_context(self._sink(module, attention, number))
                else:
                    stack.enter_context(_input_kept(module, attention, number))
            if self.attention is not None and self._has_interface:
                stack.enter_context(attention_implementation(self.model, _IMPLEMENTATION))
            mask = attention_mask
            if self.execution.expands_masks:
                mask = expanded_mask(self.model, attention_mask)
            output = self.model(input_ids=input_ids, attention_mask=mask)
        maps = self._maps(attention) if self.attention is not None else []
        if self.centred:
            mask = attention_mask.bool()
            maps = [centred_log_probabilities(probabilities, mask) for probabilities in maps]
        hidden = tuple(states[number] for number in self.layers) if self.hidden else ()
        return output, Activations(states.get(0), hidden, tuple(maps))

    def _modules_of_states(self, modules: Modules) -> dict[int, nn.Module]:
        """By the number of a hidden state to capture the module whose output it is; 0 is the embedding's."""
        encoder, layers = self.model.base_model, encoder_layers(self.model)
        found = {0: find_module(encoder, *modules.hidden_0)} if self.embedding else {}
        for number in sorted(set(self.layers)) if self.hidden else ():
            convolution = find_module(encoder, modules.hidden_1) if number == 1 else None
            found[number] = convolution or layers[number - 1]
        return found

    def _modules_of_attention(self, modules: Modules) -> dict[int, nn.Module]:
        """By the number of a layer whose attention to capture the module that gets it."""
        if self.attention is None:
            return {}
        used = self.layers if self.heads is None else {h.layer for h in chain(*self.heads)}
        layers = encoder_layers(self.model)
        found = {
            number: layers[number - 1].get_submodule(modules.layer.attention)
            for number in sorted(set(used))
        }
        if self._has_interface:
            return found
        return {number: module.get_submodule("dropout") for number, module in found.items()}

    def _maps(self, attention: Mapping[int, Tensor]) -> list[Tensor]:
        """Captured attention, ordered by the selected layers or composed of the selected heads."""
        if self.heads is None:
            return [attention[number] for number in self.layers]
        return [
            torch.stack([attention[head.layer][:, head.head - 1] for head in heads], 1)
            for heads in self.heads
        ]

    @contextmanager
    def _sink(self, module: nn.Module, store: dict[int, Tensor], key: int) -> Iterator[None]:
        probabilities = self.attention == "probabilities"
        fused = self.execution.fuses_attention and not probabilities
        _sinks[module] = _Sink(partial(store.__setitem__, key), probabilities, fused)
        try:
            yield
        finally:
            del _sinks[module]


def expanded_mask(model: PreTrainedModel, attention_mask: Tensor) -> Tensor:
    """A (B, T) mask of padding as one of attention, (B, 1, 1, T) bool, where the model attends by sdpa.

    transformers takes it as it is, and does not wait for the device to see whether there is padding.
    """
    if model.config._attn_implementation not in (_IMPLEMENTATION, "sdpa"):
        return attention_mask
    return attention_mask.bool()[:, None, None, :]


@contextmanager
def attention_implementation(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Let a model compute attention by another function of transformers' AttentionInterface."""
    config = model.config
    usual = config._attn_implementation
    config._attn_implementation = name
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
    """Scores minus their mean over each query's non-padding keys; the softmax of both is the same.

    Args:
        scores: (B, heads, T, T).
        mask: (B, T), true at non-padding tokens.
    """
    scores = scores.float()
    keys = mask[:, None, None, :]
    # At least 1: a row of padding alone is masked later, but its 0/0 would reach the gradient.
    count = keys.sum(-1, keepdim=True).clamp_min(1)
    return scores - scores.masked_fill(~keys, 0.0).sum(-1, keepdim=True) / count


def centred_log_probabilities(probabilities: Tensor, mask: Tensor) -> Tensor:
    """log p minus its mean over non-padding keys, which equals the scores minus their mean.

    For log p = s − log Σ exp s, and the second part is the same for all keys of a query.
    Probabilities that underflow count as float32's smallest normal number.

    Args:
        probabilities: (B, heads, T, T), each row a softmax over the non-padding keys.
        mask: (B, T), true at non-padding tokens.
    """
    values = probabilities.float()
    return centre(values.clamp_min(torch.finfo(torch.float32).tiny).log(), mask)
