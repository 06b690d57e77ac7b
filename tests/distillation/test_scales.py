"""Terms divided by their targets' variance, against numpy."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from datasets import Dataset

from kdshrink.config.fields import LOSS_TERMS
from kdshrink.data.batching import Batches
from kdshrink.data.encoding import Collator
from kdshrink.distillation.model import DistillationModel
from kdshrink.distillation.objective import Objective
from kdshrink.distillation.scales import TermScales, target_variances
from kdshrink.distillation.teacher import Teacher
from kdshrink.distillation.timing import seconds_per_step
from kdshrink.models.activations import Recorder

from ..helpers.models import make_model

LENGTHS = np.random.default_rng(1).integers(3, 20, 30)
LAYERS = (2, 4)


@pytest.fixture(scope="module")
def encoded() -> Dataset:
    rng = np.random.default_rng(2)
    ids = [[0, *rng.integers(5, 500, n - 2).tolist(), 2] for n in LENGTHS]
    return Dataset.from_dict({"input_ids": ids, "length": LENGTHS.astype(np.int32)})


def make_teacher(
    attention: Literal["scores", "probabilities"] | None = "probabilities",
) -> Teacher:
    model = make_model("xlm-roberta", "sequence").eval()
    recorder = Recorder(model, LAYERS, hidden=True, embedding=True, attention=attention)
    return Teacher(recorder, torch.arange(model.config.num_labels))


def one_by_one(teacher: Teacher, encoded: Dataset) -> list[tuple[torch.Tensor, ...]]:
    """For each text, alone and so without padding: embedding, hidden states, attention."""
    found = []
    for ids in encoded["input_ids"]:
        ids = torch.tensor([ids])
        got = teacher.targets(ids, torch.ones_like(ids)).activations
        assert got.embedding is not None
        found.append((got.embedding, *got.hidden, *got.attention))
    return found


def test_variances_are_those_of_all_texts_without_padding(encoded: Dataset) -> None:
    teacher = make_teacher()
    scales = target_variances(teacher, encoded, Collator(1))
    each = one_by_one(teacher, encoded)
    given = [scales.embedding, *scales.hidden, *scales.attention]
    for i, (scale, layers) in enumerate(zip(given, (1, 2, 2, 2, 2), strict=True)):
        parts = [text[i].double().numpy() for text in each]
        if i < 3:
            variance = np.concatenate([part[0] for part in parts]).var(0).mean()
        else:
            variance = np.concatenate([part.ravel() for part in parts]).var()
        assert scale == pytest.approx(variance * layers, rel=1e-4)


def test_a_term_that_is_off_is_not_scaled(encoded: Dataset) -> None:
    scales = target_variances(make_teacher(attention=None), encoded, Collator(1))
    assert scales.attention == (1.0, 1.0)
    assert scales.hidden != (1.0, 1.0)


def make_learner(teacher: Teacher) -> DistillationModel:
    student = make_model("xlm-roberta", "sequence", seed=7, num_hidden_layers=2)
    recorder = Recorder(student, (1, 2), hidden=True, embedding=True, attention="probabilities")
    objective = Objective(dict.fromkeys(LOSS_TERMS, 1.0))
    width = teacher.recorder.model.config.hidden_size
    return DistillationModel(student, recorder, objective, width, "sequence").eval()


def test_scaled_terms_are_the_raw_ones_of_each_layer_over_its_variance(encoded: Dataset) -> None:
    teacher = make_teacher()
    learner = make_learner(teacher)
    batch = Collator(1)(encoded.select(range(6)).select_columns(["input_ids"]).to_list())
    targets = teacher.targets(**batch)

    def terms(scales: TermScales) -> dict[str, float]:
        learner.scales = scales
        with torch.no_grad():
            return {name: float(term) for name, term in learner(**batch, targets=targets).items()}

    off = float("inf")
    first = terms(TermScales(1.0, (1.0, off), (1.0, off)))
    second = terms(TermScales(1.0, (off, 1.0), (off, 1.0)))
    raw, scaled = terms(TermScales.raw(2)), terms(TermScales(0.5, (0.1, 0.2), (0.3, 0.4)))
    assert scaled["embedding"] == pytest.approx(raw["embedding"] / 0.5)
    for name, scales in (("hidden", (0.1, 0.2)), ("attention", (0.3, 0.4))):
        assert raw[name] == pytest.approx(first[name] + second[name])
        assert scaled[name] == pytest.approx(first[name] / scales[0] + second[name] / scales[1])
    assert scaled["prediction"] == raw["prediction"]


def test_timing_a_step_changes_nothing(encoded: Dataset) -> None:
    teacher = make_teacher()
    learner = make_learner(teacher).train()
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    state = torch.get_rng_state()
    batches = Batches(LENGTHS.astype(np.int32), size=8, seed=0)
    columns = encoded.select_columns(["input_ids", "length"])
    assert seconds_per_step(learner, teacher, columns, batches, Collator(1), 1) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())
    assert all(parameter.grad is None for parameter in learner.parameters())
    assert learner.training
