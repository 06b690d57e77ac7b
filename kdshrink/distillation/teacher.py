"""The teacher and its targets: the activations and logits that a student is trained to match."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..models.activations import Activations, Recorder
from ..models.devices import to_device_soon
from .cache import ExampleTargets


@dataclass(frozen=True)
class Targets:
    """The teacher's targets for a batch.

    Attributes:
        activations: Its embedding output, and hidden states and attention of the mapped layers.
        logits: (B, C), or (B, T, C) for token tasks, in the student's order of classes; None for a
            bare encoder.
        centred: Whether attention holds scores minus their mean over the keys.
    """

    activations: Activations
    logits: Tensor | None
    centred: bool


@dataclass(frozen=True)
class Teacher:
    """A teacher in eval mode, and how its classes map to the student's.

    Attributes:
        recorder: Captures the layers that the student's layers are matched with.
        classes: For each class of the student the teacher's id, (C,); None for a bare encoder.
    """

    recorder: Recorder
    classes: Tensor | None

    @torch.no_grad()  # compiled losses keep them for backward, which inference mode forbids
    def targets(self, input_ids: Tensor, attention_mask: Tensor) -> Targets:
        """The targets for a batch of (B, T) ids."""
        output, activations = self.recorder(input_ids=input_ids, attention_mask=attention_mask)
        logits = None if self.classes is None else output.logits[..., self.classes]
        return Targets(activations, logits, self.recorder.centred)


def tensors_of(targets: Targets) -> list[Tensor]:
    """All tensors of a batch's targets."""
    found = targets.activations
    tensors = (found.embedding, *found.hidden, *found.attention, targets.logits)
    return [tensor for tensor in tensors if tensor is not None]


def with_tensors(targets: Targets, tensors: Sequence[Tensor]) -> Targets:
    """The same with other tensors, in the order of `tensors_of`."""
    left, found = iter(tensors), targets.activations
    embedding = None if found.embedding is None else next(left)
    hidden = tuple(next(left) for _ in found.hidden)
    attention = tuple(next(left) for _ in found.attention)
    logits = None if targets.logits is None else next(left)
    return Targets(Activations(embedding, hidden, attention), logits, targets.centred)


@torch.inference_mode()
def split_targets(
    targets: Targets, lengths: Sequence[int], dtype: torch.dtype
) -> list[ExampleTargets]:
    """The targets of each example of a batch, without padding.

    Args:
        lengths: Tokens of each example; the rest of its row is padding.
        dtype: The type to convert the values to.
    """
    activations = targets.activations
    embedding = [] if activations.embedding is None else [activations.embedding]
    states = [state.to(dtype) for state in (*embedding, *activations.hidden)]
    attention = [scores.to(dtype) for scores in activations.attention]
    logits = None if targets.logits is None else targets.logits.to(dtype)
    return [
        ExampleTargets(
            torch.stack([state[i, :length] for state in states]) if states else None,
            torch.stack([a[i, :, :length, :length] for a in attention]) if attention else None,
            None if logits is None else logits[i] if logits.dim() == 2 else logits[i, :length],
        )
        for i, length in enumerate(lengths)
    ]


def join_targets(
    examples: Sequence[ExampleTargets],
    *,
    embedding: bool,
    centred: bool,
    device: torch.device,
    width: int = 0,
) -> Targets:
    """Undo `split_targets`: the targets of a batch, padded with zeros to its longest example.

    Args:
        embedding: Whether the first of the states is the embedding output.
        centred: As in `Targets`.
        width: Positions to pad to, if more than the longest example has.
    """

    def joined(name: str, lengths_at: Sequence[int]) -> Tensor | None:
        parts = [getattr(example, name) for example in examples]
        if parts[0] is None:
            return None
        shape = list(parts[0].shape)
        for axis in lengths_at:
            shape[axis] = max(width, *(part.shape[axis] for part in parts))
        if all(list(part.shape) == shape for part in parts):
            return to_device_soon(torch.stack(parts, dim=1), device)
        whole = parts[0].new_zeros((shape[0], len(parts), *shape[1:]))
        for i, part in enumerate(parts):
            whole[:, i][tuple(slice(size) for size in part.shape)] = part
        return to_device_soon(whole, device)

    states, attention = joined("states", [1]), joined("attention", [2, 3])
    each = () if states is None else states.unbind()
    activations = Activations(
        each[0] if embedding and each else None,
        each[1:] if embedding else each,
        () if attention is None else attention.unbind(),
    )
    return Targets(activations, _joined_logits(examples, device, width), centred)


def _joined_logits(
    examples: Sequence[ExampleTargets], device: torch.device, width: int
) -> Tensor | None:
    parts = [example.logits for example in examples if example.logits is not None]
    if not parts:
        return None
    if parts[0].dim() == 1:
        return to_device_soon(torch.stack(parts), device)
    whole = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
    whole = functional.pad(whole, (0, 0, 0, max(0, width - whole.shape[1])))
    return to_device_soon(whole, device)


def finite(targets: Targets, attention_mask: Tensor) -> Tensor:
    """(B,), whether the teacher's last output for each example is finite: logits, else hidden states."""
    activations, mask = targets.activations, attention_mask.bool()
    last = targets.logits
    if last is None:
        last = activations.hidden[-1] if activations.hidden else activations.embedding
    if last is None:
        return mask.any(1)
    finite = last.isfinite().all(-1)
    return finite if finite.dim() == 1 else (finite | ~mask).all(1)
