"""What a batch keeps until its backward pass, told from small ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kdshrink.config.fields import LOSS_TERMS
from kdshrink.distillation.model import DistillationModel
from kdshrink.distillation.objective import Objective
from kdshrink.distillation.teacher import Teacher, tensors_of
from kdshrink.models.activations import Recorder
from kdshrink.models.devices import ON_GPU
from kdshrink.training.memory import BatchMemory, kept_bytes

from ..helpers.models import make_model

CPU = torch.device("cpu")


def distilling(family: str, attention: Any) -> Any:
    """The forward passes of a step on the accelerator's path, in training with dropout."""
    teacher = make_model(family, "sequence")
    student = make_model(family, "sequence", num_hidden_layers=2, hidden_size=12).train()
    reads: dict[str, Any] = {"hidden": True, "embedding": True, "attention": attention}
    targets_of = Teacher(Recorder(teacher, (2, 4), execution=ON_GPU, **reads), torch.arange(3))
    learner = DistillationModel(
        student,
        Recorder(student, (1, 2), execution=ON_GPU, **reads),
        Objective(dict.fromkeys(LOSS_TERMS, 1.0)),
        24,
        "sequence",
    )

    def forward(input_ids: Tensor, attention_mask: Tensor) -> list[Tensor]:
        targets = targets_of.targets(input_ids, attention_mask)
        terms = learner(input_ids, attention_mask, targets)
        return [*terms.values(), *tensors_of(targets)]

    return forward


@pytest.mark.parametrize("attention", ["scores", "probabilities"])
@pytest.mark.parametrize("family", ["xlm-roberta", "bert", "deberta-v2"])
def test_what_a_batch_keeps_is_told_from_small_ones(family: str, attention: str) -> None:
    forward = distilling(family, attention)
    state = torch.get_rng_state()
    memory = BatchMemory.measured(forward, CPU, longest=200, available=10**6)
    assert torch.equal(torch.get_rng_state(), state)
    ids = torch.full((7, 60), 5)
    kept = kept_bytes(lambda: forward(ids, torch.ones_like(ids)))
    assert 7 * memory.of_example(60) == pytest.approx(kept, rel=0.05)
    fitting = memory.examples(60)
    assert fitting * memory.of_example(60) <= 10**6 < (fitting + 1) * memory.of_example(60)


def test_an_example_that_does_not_fit_is_computed_alone() -> None:
    assert BatchMemory((1.0, 0.0, 0.0), 100).examples(10) == 1
    assert BatchMemory((1.0, 0.0, 0.0), 100).examples(11) == 1
    assert BatchMemory((1.0, 0.0, 0.0), -5).examples(1) == 1
