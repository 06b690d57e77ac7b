"""The module that is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdshrink.config.fields import LOSS_TERMS
from kdshrink.distillation.model import DistillationModel
from kdshrink.distillation.objective import Objective
from kdshrink.distillation.teacher import Teacher
from kdshrink.models.activations import Recorder

from ..helpers.models import FAMILIES, make_model


@pytest.mark.parametrize("task", ["sequence", "token"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_gets_a_gradient(family: str, task: str) -> None:
    """With all terms, so that DDP need not look for parameters that have no part in the loss."""
    reads: dict[str, Any] = {"hidden": True, "embedding": True, "attention": "scores"}
    teacher = make_model(family, task)
    student = make_model(family, task, num_hidden_layers=2, hidden_size=12)
    learner = DistillationModel(
        student,
        Recorder(student, (1, 2), **reads),
        Objective(dict.fromkeys(LOSS_TERMS, 1.0)),
        24,
        task,
    )
    ids = torch.randint(5, 500, (3, 12))
    mask = torch.ones_like(ids)
    labels = torch.zeros((3,) if task == "sequence" else (3, 12), dtype=torch.int64)
    classes = torch.arange(len(teacher.config.id2label))
    targets = Teacher(Recorder(teacher, (2, 4), **reads), classes).targets(ids, mask)
    torch.stack(list(learner(ids, mask, targets, labels).values())).sum().backward()
    without = [name for name, one in learner.named_parameters() if one.grad is None]
    assert not without
