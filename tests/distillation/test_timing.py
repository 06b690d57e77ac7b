"""The time that a step takes, tried before the run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset

from kdshrink.config.fields import LOSS_TERMS
from kdshrink.data.batching import Batches
from kdshrink.data.encoding import Collator
from kdshrink.distillation.model import DistillationModel
from kdshrink.distillation.objective import Objective
from kdshrink.distillation.pair import Pair
from kdshrink.distillation.teacher import Teacher
from kdshrink.distillation.timing import trial_of
from kdshrink.models.activations import Recorder

from ..helpers.models import make_model

LENGTHS = np.random.default_rng(1).integers(3, 20, 30)


@pytest.fixture(scope="module")
def encoded() -> Dataset:
    rng = np.random.default_rng(2)
    ids = [[0, *rng.integers(5, 500, n - 2).tolist(), 2] for n in LENGTHS]
    return Dataset.from_dict({"input_ids": ids, "length": LENGTHS.astype(np.int32)})


def make_teacher() -> Teacher:
    model = make_model("xlm-roberta", "sequence").eval()
    recorder = Recorder(model, (2, 4), hidden=True, embedding=True, attention="probabilities")
    return Teacher(recorder, torch.arange(model.config.num_labels))


def make_learner(teacher: Teacher) -> DistillationModel:
    student = make_model("xlm-roberta", "sequence", seed=7, num_hidden_layers=2)
    recorder = Recorder(student, (1, 2), hidden=True, embedding=True, attention="probabilities")
    objective = Objective(dict.fromkeys(LOSS_TERMS, 1.0))
    width = teacher.recorder.model.config.hidden_size
    return DistillationModel(student, recorder, objective, width, "sequence").eval()


def test_timing_a_step_changes_nothing(encoded: Dataset) -> None:
    teacher = make_teacher()
    learner = make_learner(teacher).train()
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    state = torch.get_rng_state()
    batches = Batches(LENGTHS.astype(np.int32), size=8, seed=0)
    columns = encoded.select_columns(["input_ids", "length"])
    kept = torch.arange(learner.student.config.vocab_size)
    trial = trial_of(Pair(learner, teacher, Collator(1), kept), columns, batches)
    assert trial.seconds(1) > 0
    assert trial.activations() > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())
    assert all(parameter.grad is None for parameter in learner.parameters())
    assert learner.training
