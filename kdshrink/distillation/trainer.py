"""The Trainer of a distillation, which adds the teacher's targets to each batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..data.batching import steps_per_epoch
from ..data.encoding import IGNORED
from ..evaluation.evaluator import not_finite
from ..training.trainer import TermTrainer
from .model import scored_tokens
from .targets import TargetLoader


class DistillationTrainer(TermTrainer):
    """Trains a DistillationModel on its teacher's targets.

    Args:
        targets: Gives the teacher's targets for each batch.
        texts: The training texts, to name one for which the teacher's output is not finite.
    """

    def __init__(self, *, targets: TargetLoader, texts: Dataset, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.targets = targets
        self.texts = texts
        self._next: tuple[int, int] | None = None

    @property
    def trained_model(self) -> PreTrainedModel:
        return self.accelerator.unwrap_model(self.model).student

    def loss_terms(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
        epoch, index, begin = inputs.pop("place")
        # Made here and not with the batch, so that an accumulated step holds those of one batch at a time.
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        targets = self.targets.of_batch(epoch, index, ids, mask, begin=begin)
        return model(**inputs, targets=targets)

    def part(self, inputs: dict[str, Any], rows: slice) -> dict[str, Any]:
        epoch, index, _ = inputs["place"]
        return {**super().part(inputs, rows), "place": (epoch, index, rows.start)}

    def check_finite(self) -> None:
        if (row := self.targets.first_bad) is not None:
            raise not_finite("The teacher", self.texts, row)
        super().check_finite()

    def term_units(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        mask = inputs["attention_mask"]
        tokens, pairs = mask.sum(), mask.sum(1).pow(2).sum()
        examples = torch.full_like(tokens, len(mask))
        labels = (inputs["labels"] != IGNORED).sum() if "labels" in inputs else examples
        sequence = self.accelerator.unwrap_model(self.model).task == "sequence"
        scored = None if sequence else scored_tokens(mask.bool(), inputs.get("labels"))
        return {
            "embedding": tokens,
            "hidden": tokens,
            "attention": pairs,
            "prediction": examples if scored is None else scored.sum(),
            "task": labels,
        }

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        accumulation = self.args.gradient_accumulation_steps
        if self._next is None:
            steps = steps_per_epoch(self.batches, accumulation)
            epoch, step = divmod(self.state.global_step, steps)
            self._next = epoch, step * accumulation
        epoch, index = self._next
        for batch in samples:
            batch["place"] = epoch, index, 0
            index += 1
        self._next = (epoch, index) if index < len(self.batches) else (epoch + 1, 0)
        return samples, items
