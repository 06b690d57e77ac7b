"""The variances of the teacher's activations, which make the terms of unlike size comparable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from ..data.batching import batches_by_length
from ..data.encoding import examples_at, token_counts
from ..models.devices import execution_on
from .teacher import Teacher

_EXAMPLES = 512
_LEAST = 1e-12
"""Below this a target is constant, and its error is not scaled up to noise."""


@dataclass(frozen=True)
class TermScales:
    """What the mean squared errors of each matched layer are divided by.

    Attributes:
        embedding: For the embedding output.
        hidden, attention: For each matched layer.
    """

    embedding: float
    hidden: tuple[float, ...]
    attention: tuple[float, ...]

    @classmethod
    def raw(cls, layers: int) -> TermScales:
        """Those that leave the errors as they are."""
        return cls(1.0, (1.0,) * layers, (1.0,) * layers)


def target_variances(
    teacher: Teacher,
    encoded: Dataset,
    collate: Callable[[Sequence[Any]], dict[str, Tensor]],
) -> TermScales:
    """Scales that give a term as the share of its target's variance that is not explained, 1 − R².

    A mean squared error divided by its target's variance is 0 for a perfect student, and 1 for one that
    always gives the mean. Each is divided by the number of matched layers too, so that a term is a mean over
    layers. Variances are taken over non-padding tokens (hidden states: around each channel's mean) or pairs
    of them (attention: around the mean of a layer), of up to 512 texts spread evenly over the training set.

    Args:
        teacher: On its device.
        encoded: The tokenised training set.
        collate: Makes the teacher's inputs of examples.
    """
    places = torch.linspace(0, len(encoded) - 1, min(_EXAMPLES, len(encoded))).long().unique()
    chosen = encoded.select(places.tolist()).select_columns(["input_ids", "length"])
    device = teacher.recorder.model.device
    moments: dict[tuple[str, int], _Moments] = {}
    limit = execution_on(device).positions
    for rows in batches_by_length(token_counts(chosen), tokens=limit):
        batch = collate(examples_at(chosen, rows))
        inputs = {name: tensor.to(device) for name, tensor in batch.items()}
        found = teacher.targets(inputs["input_ids"], inputs["attention_mask"]).activations
        mask = inputs["attention_mask"].bool()
        pairs = (mask[:, None, :, None] & mask[:, None, None, :]).expand_as
        if found.embedding is not None:
            moments.setdefault(("embedding", 0), _Moments()).add(found.embedding[mask])
        for i, state in enumerate(found.hidden):
            moments.setdefault(("hidden", i), _Moments()).add(state[mask])
        for i, attention in enumerate(found.attention):
            values = attention[pairs(attention)][:, None]
            moments.setdefault(("attention", i), _Moments()).add(values)

    def scale(kind: str, layer: int, layers: int) -> float:
        if (kind, layer) not in moments:  # a term that is switched off
            return 1.0
        return max(moments[kind, layer].variance, _LEAST) * layers

    layers = len(teacher.recorder.layers)
    return TermScales(
        scale("embedding", 0, 1),
        tuple(scale("hidden", i, layers) for i in range(layers)),
        tuple(scale("attention", i, layers) for i in range(layers)),
    )


class _Moments:
    """Sums of rows and of their squares, (rows, channels), in double precision."""

    def __init__(self) -> None:
        self.rows = 0
        self.sum: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def add(self, values: Tensor) -> None:
        values = values.double()
        self.rows += len(values)
        self.sum = self.sum + values.sum(0)
        self.squares = self.squares + values.pow(2).sum(0)

    @property
    def variance(self) -> float:
        """Of each channel around its mean, averaged over the channels."""
        sums, squares = torch.as_tensor(self.sum), torch.as_tensor(self.squares)
        return float((squares / self.rows - (sums / self.rows).pow(2)).mean())
