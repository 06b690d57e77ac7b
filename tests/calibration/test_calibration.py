"""The mathematics of calibrating against numpy, and calibrated students against their teachers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import ElectraConfig, PreTrainedModel, PreTrainedTokenizerFast

from kdshrink import DistillConfig, FinetuneConfig, ShrinkConfig, distill, finetune, shrink
from kdshrink.calibration.bases import principal_basis, score_bases, value_basis
from kdshrink.calibration.batch import attend, make_batches
from kdshrink.calibration.calibrate import calibrate_student
from kdshrink.calibration.encoder_view import view
from kdshrink.calibration.regression import ChannelFit, Regression
from kdshrink.calibration.store import Spill
from kdshrink.calibration.texts import CalibrationData
from kdshrink.commands.inputs import data_request
from kdshrink.data.load import load_data
from kdshrink.errors import ModelError
from kdshrink.models.source import find_model
from kdshrink.shrinking.plan import Shape
from kdshrink.shrinking.weights import shrink_source

from ..helpers.logs import logged_losses
from ..helpers.models import AUTO, make_config, make_model

RNG = np.random.default_rng(0)


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array)


def test_ridge_towards_a_prior_is_least_squares_with_rows_added() -> None:
    """The reference: rows √w·(x − x̄) and, for the ridge, √λ·I that ask for W₀."""
    x = RNG.normal(3, 1, (50, 4))
    y = x @ RNG.normal(0, 3, (4, 3)) + RNG.normal(-2, 1, (50, 3))
    prior, weights = RNG.normal(size=(3, 4)), RNG.uniform(0.2, 2, (50, 1))
    regression = Regression(tensor(prior))
    for part in (slice(0, 20), slice(20, 21), slice(21, 50)):
        regression.add(tensor(x[part]), tensor(y[part]), tensor(weights[part]))
    solution = regression.solve(0.3)

    mean_x, mean_y = ((weights * a).sum(0) / weights.sum() for a in (x, y))
    root = np.sqrt(weights)
    scaled = root * (x - mean_x)
    penalty = 0.3 * np.diag(scaled.T @ scaled).mean()
    rows = np.vstack([scaled, np.sqrt(penalty) * np.eye(4)])
    targets = np.vstack([root * (y - mean_y), np.sqrt(penalty) * prior.T])
    expected = np.linalg.lstsq(rows, targets, rcond=None)[0].T
    np.testing.assert_allclose(solution.weight, expected, atol=1e-12)
    np.testing.assert_allclose(solution.bias, mean_y - expected @ mean_x, atol=1e-12)
    left = y - x @ expected.T - (mean_y - expected @ mean_x)
    variances = [(weights * part**2).sum(0) for part in (left, y - mean_y)]
    explained = np.clip(1 - variances[0] / variances[1], 0, 1)
    assert explained.max() > 0
    np.testing.assert_allclose(regression.explained(solution), explained, atol=1e-12)


def test_some_inputs_alone_are_as_if_there_were_no_others() -> None:
    x = RNG.normal(2, 1, (50, 6))
    y = x @ RNG.normal(size=(6, 3)) + RNG.normal(size=(50, 3))
    prior, weights = RNG.normal(size=(3, 6)), RNG.uniform(0.2, 2, (50, 1))
    chosen = [1, 2, 5]
    whole, few = Regression(tensor(prior)), Regression(tensor(prior[:, chosen]))
    for part in (slice(0, 30), slice(30, 50)):
        rest = tensor(y[part]), tensor(weights[part])
        whole.add(tensor(x[part]), *rest)
        few.add(tensor(x[part][:, chosen]), *rest)
    found, expected = whole.solve(0.1, torch.tensor(chosen)), few.solve(0.1)
    np.testing.assert_allclose(found.weight, expected.weight, atol=1e-9)
    np.testing.assert_allclose(found.bias, expected.bias, atol=1e-9)


def test_pruning_leaves_out_what_can_be_missed_most_easily() -> None:
    """One input a round; the reference solves anew without each of those that are left."""
    x = RNG.normal(size=(80, 12)) @ RNG.normal(size=(12, 12))
    y = x @ RNG.normal(size=(12, 3)) + RNG.normal(size=(80, 3))
    regression = Regression(torch.zeros(3, 12, dtype=torch.float64))
    regression.add(tensor(x), tensor(y), torch.ones(80, 1, dtype=torch.float64))
    centred = x - x.mean(0)
    penalty = 0.01 * np.square(centred).mean()

    def loss(kept: list[int]) -> float:
        rows = np.vstack([centred[:, kept], np.sqrt(80 * penalty) * np.eye(len(kept))])
        targets = np.vstack([y - y.mean(0), np.zeros((len(kept), 3))])
        return float(np.linalg.lstsq(rows, targets, rcond=None)[1].sum())

    expected = list(range(12))
    while len(expected) > 5:
        least = min(expected, key=lambda at: loss([other for other in expected if other != at]))
        expected.remove(least)
    assert regression.prune(0.01, 5, rounds=7).tolist() == expected
    assert regression.prune(0.01, 12).tolist() == list(range(12))


def test_a_large_mean_costs_no_digits() -> None:
    x = RNG.normal(1e4, 1, (400, 3)).astype(np.float32)
    truth = RNG.normal(size=(2, 3))
    y = (x.astype(np.float64) - 1e4) @ truth.T
    regression = Regression(torch.zeros(2, 3))
    for part in np.split(np.arange(400), 4):
        regression.add(tensor(x[part]), tensor(y[part].astype(np.float32)), torch.ones(100, 1))
    np.testing.assert_allclose(regression.solve(1e-12).weight, truth, atol=1e-4)


def test_what_the_prior_explains_is_left_alone() -> None:
    """However little text: with fewer tokens than inputs the prior itself is the solution."""
    prior = tensor(RNG.normal(size=(3, 10)))
    x = tensor(RNG.normal(size=(4, 10)))
    regression = Regression(prior)
    regression.add(x, x @ prior.T + 2.0, torch.ones(4, 1, dtype=torch.float64))
    solution = regression.solve(1e-3)
    torch.testing.assert_close(solution.weight, prior)
    torch.testing.assert_close(solution.bias, torch.full((3,), 2.0, dtype=torch.float64))


def test_each_channel_is_fitted_by_its_own_line() -> None:
    z, y = RNG.normal(size=(30, 3)), RNG.normal(1, 2, (30, 3))
    weights = RNG.uniform(0.1, 1, (30, 1))
    fit = ChannelFit()
    for part in (slice(0, 7), slice(7, 30)):
        fit.add(*(tensor(a[part]) for a in (z, y, weights)))
    line = fit.solve()
    for c in range(3):
        slope, offset = np.polyfit(z[:, c], y[:, c], 1, w=np.sqrt(weights[:, 0]))
        np.testing.assert_allclose(line.weight[c], slope)
        np.testing.assert_allclose(line.bias[c], offset)


def second_moments(heads: np.ndarray) -> torch.Tensor:
    """(n, heads, d) → (heads, d, d)."""
    return tensor(np.einsum("nhd,nhe->hde", heads, heads) / len(heads))


def truncated(matrix: np.ndarray, rank: int) -> np.ndarray:
    """The best approximation of this rank."""
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


def test_fewer_dimensions_of_queries_and_keys_keep_the_scores_best() -> None:
    q, k = (RNG.normal(size=(40, 2, 6)) @ RNG.normal(size=(6, 6)) for _ in range(2))
    a, b = score_bases(second_moments(q), second_moments(k), 4)
    for head in range(2):
        ours = (q[:, head] @ a[head].numpy()) @ (k[:, head] @ b[head].numpy()).T / np.sqrt(4)
        best = truncated(q[:, head] @ k[:, head].T, 4) / np.sqrt(6)
        np.testing.assert_allclose(ours, best, atol=1e-4)


def test_fewer_dimensions_of_values_keep_what_is_passed_on_best() -> None:
    v = RNG.normal(size=(40, 2, 6)) @ RNG.normal(size=(6, 6))
    outward = RNG.normal(size=(2, 5, 6))
    there, back = value_basis(second_moments(v), tensor(outward), 3)
    for head in range(2):
        ours = v[:, head] @ there[head].numpy() @ back[head].numpy().T @ outward[head].T
        best = truncated(v[:, head] @ outward[head].T, 3)
        np.testing.assert_allclose(ours, best, atol=1e-4)
        squares = np.square(v[:, head] @ there[head].numpy()).mean(0)
        passed_on = np.square(outward[head] @ back[head].numpy()).sum(0)
        np.testing.assert_allclose(squares, passed_on, rtol=1e-4)


def test_heads_of_the_same_size_stay_as_they_are() -> None:
    moments = second_moments(RNG.normal(size=(9, 2, 3)))
    same = torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
    for found in (*score_bases(moments, moments, 3), *value_basis(moments, moments, 3)):
        assert torch.equal(found, same)


def test_the_principal_basis_spans_the_leading_singular_vectors() -> None:
    x = RNG.normal(size=(60, 5)) * [1, 5, 2, 4, 3]
    basis = principal_basis(tensor(x.T @ x), 3).numpy()
    leading = np.linalg.svd(x, full_matrices=False)[2][:3].T
    np.testing.assert_allclose(basis.T @ basis, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(basis @ basis.T, leading @ leading.T, atol=1e-9)
    # The reflection undone, the eigenvectors themselves, and with their signs.
    normal = np.eye(3)[2] - 1 / np.sqrt(3)
    vectors = basis @ (np.eye(3) - 2 * np.outer(normal, normal) / (normal @ normal))
    np.testing.assert_allclose(np.abs(vectors.T @ leading), np.eye(3), atol=1e-9)
    assert (vectors[np.abs(vectors).argmax(0), range(3)] > 0).all()


def test_what_a_norm_takes_out_of_the_principal_basis_is_its_weakest_direction() -> None:
    x = RNG.normal(size=(60, 5)) * [1, 5, 2, 4, 3]
    seen = x @ principal_basis(tensor(x.T @ x), 3).numpy()
    values = np.linalg.svd(x, full_matrices=False)[1]
    mean = seen.mean(1) * np.sqrt(3)  # along the unit vector whose entries are all equal
    np.testing.assert_allclose(np.linalg.norm(mean), values[2])


def test_batches_hold_every_text_once_and_few_tokens() -> None:
    lengths = [3, 9, 4, 4, 12, 1, 7]
    batches = make_batches(lengths, 16)
    assert sorted(text for batch in batches for text in batch.texts) == list(range(7))
    begin = 0
    for batch in batches:
        assert batch.begin == begin
        assert batch.lengths == tuple(lengths[text] for text in batch.texts)
        assert len(batch.texts) * max(batch.lengths) <= 16
        begin += batch.tokens


def test_what_is_spilled_comes_back(tmp_path: Path) -> None:
    batches = make_batches([2, 5, 3], 6)
    spill = Spill(tmp_path, {"a": 4, "b": 1}, 10, torch.device("cpu"))
    rows = {
        (name, batch.begin): torch.randn(batch.tokens, width)
        for batch in batches
        for name, width in (("a", 4), ("b", 1))
    }
    for (name, begin), values in rows.items():
        spill.write(name, next(b for b in batches if b.begin == begin), values)
    for (name, begin), values in rows.items():
        assert torch.equal(spill.read(name, next(b for b in batches if b.begin == begin)), values)


SPILLING = """
import resource, sys, torch
from pathlib import Path
from kdshrink.calibration.batch import make_batches
from kdshrink.calibration.store import Spill
batches = make_batches([100] * 2000, 5000)
spill = Spill(Path(sys.argv[1]), {"a": 400}, 200_000, torch.device("cpu"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in range(2):
    for batch in batches:
        spill.write("a", batch, torch.ones(batch.tokens, 400))
        spill.read("a", batch)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
def test_what_is_spilled_is_not_held_in_memory(tmp_path: Path) -> None:
    """305 MiB of activations, of which a batch is 8."""
    command = [sys.executable, "-c", SPILLING, str(tmp_path)]
    grown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(grown) < 60


def test_attention_stays_within_each_text() -> None:
    (batch,) = make_batches([5, 2, 3], 100)
    q, k, v = (torch.randn(10, 6) for _ in range(3))
    found = attend(q, k, v, batch, 2)
    for begin, end in ((0, 5), (5, 8), (8, 10)):
        for head in (slice(0, 3), slice(3, 6)):
            scores = q[begin:end, head] @ k[begin:end, head].T / 3**0.5
            expected = scores.softmax(-1) @ v[begin:end, head]
            torch.testing.assert_close(found[begin:end, head], expected)


VIEWED = ("xlm-roberta", "roberta", "bert", "deberta-v2")


@pytest.mark.parametrize("family", VIEWED)
@pytest.mark.parametrize("task", ["sequence", "token", None])
def test_a_view_computes_what_the_model_does(family: str, task: str | None) -> None:
    model = make_model(family, task)
    ids = torch.tensor([[5, 9, 44, 17, 2], [8, 6, 2, 1, 1]])
    (batch,) = make_batches([5, 3], 100)
    mask = batch.mask(ids.device)
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True)
        seen = view(model)
        x = seen.embeddings(ids)[mask]
        for layer in seen.layers:
            x = layer(x, batch)
        hidden = expected.hidden_states[-1]
        torch.testing.assert_close(x, hidden[mask])
        if task is not None:
            assert seen.head is not None
            rows = batch.firsts(ids.device) if seen.reads_first else slice(None)
            logits = expected.logits if task == "sequence" else expected.logits[mask]
            torch.testing.assert_close(seen.head.logits(x[rows]), logits)


def saved(
    folder: Path, tokenizer: PreTrainedTokenizerFast, family: str, task: str | None
) -> PreTrainedModel:
    model = make_model(family, task)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def texts_of(folder: Path) -> list[str]:
    paths = sorted(folder.glob("*/train.jsonl"))
    return [json.loads(line)["text"] for path in paths for line in path.read_text().splitlines()]


@torch.no_grad()
def outputs(model: PreTrainedModel, folder: Path, texts: list[str]) -> torch.Tensor:
    """Logits, or of a bare encoder the last hidden states and what is pooled, of real tokens."""
    from transformers import AutoTokenizer

    encoded = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    result = model.eval()(**inputs)
    mask = encoded["attention_mask"].bool()
    if "logits" in result:
        return result.logits[mask] if result.logits.ndim == 3 else result.logits
    pooled = [result.pooler_output] if "pooler_output" in result else []
    return torch.cat([result.last_hidden_state[mask], *pooled])


def calibrate(teacher: Path, data: Path, out: Path, **options: Any) -> dict[str, Any]:
    return shrink(
        ShrinkConfig(
            model=str(teacher), init="calibrated", data=str(data), output_dir=out, **options
        )
    ).to_dict()


@pytest.mark.parametrize("family", VIEWED)
@pytest.mark.parametrize("task", ["sequence", "token", None])
def test_the_same_shape_gives_back_the_teacher(
    tmp_path: Path,
    text_data: Path,
    xlmr_tokenizer: PreTrainedTokenizerFast,
    family: str,
    task: str | None,
) -> None:
    teacher = saved(tmp_path / "t", xlmr_tokenizer, family, task)
    result = calibrate(tmp_path / "t", text_data, tmp_path / "s")
    assert result["calibration"]["texts"] == {"de": 24, "es": 24}
    assert max(result["calibration"]["relative_error"]) < 1e-6
    assert not (tmp_path / "s" / "basis.safetensors").exists()
    student, report = AUTO[task].from_pretrained(tmp_path / "s", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    # On text that it was not calibrated on too: nothing was changed, so nothing was lost.
    texts = [*texts_of(text_data), "guten tag 7", "correo música 88"]
    student_logits, teacher_logits = (
        outputs(model, folder, texts)
        for model, folder in ((student, tmp_path / "s"), (teacher, tmp_path / "t"))
    )
    assert (student_logits - teacher_logits).abs().max() < 1e-3


@pytest.mark.parametrize("family", VIEWED)
@pytest.mark.parametrize("task", ["sequence", "token"])
@pytest.mark.parametrize(
    "shape",
    [
        {"layers": 2},
        {"hidden_size": 12},
        {"layers": 3, "hidden_size": 16},
        {"layers": 2, "hidden_size": 12, "attention_heads": 2},
        {"layer_map": "1,2", "hidden_size": 20, "intermediate_size": 30},
    ],
)
def test_a_calibrated_student_is_nearer_than_a_copied_one(
    tmp_path: Path,
    text_data: Path,
    xlmr_tokenizer: PreTrainedTokenizerFast,
    family: str,
    task: str,
    shape: dict[str, Any],
) -> None:
    """Any number of layers: 3 of 4 are the 1st, 3rd and 4th, where a copy wants them listed."""
    teacher = saved(tmp_path / "t", xlmr_tokenizer, family, task)
    result = calibrate(tmp_path / "t", text_data, tmp_path / "s", **shape)
    layers = ",".join(map(str, result["layers"]))
    options: Any = {**shape, "layers": None, "layer_map": layers, "attention_heads": None}
    shrink(ShrinkConfig(model=str(tmp_path / "t"), output_dir=tmp_path / "c", **options))
    texts = texts_of(text_data)
    teacher_outputs = outputs(teacher, tmp_path / "t", texts)
    errors = {
        name: (outputs(AUTO[task].from_pretrained(folder), folder, texts) - teacher_outputs)
        .pow(2)
        .mean()
        for name, folder in (("calibrated", tmp_path / "s"), ("copied", tmp_path / "c"))
    }
    assert errors["calibrated"] < 0.5 * errors["copied"]
    stored = load_file(tmp_path / "s" / "model.safetensors")
    assert result["parameters_after"] == sum(t.numel() for t in stored.values())


def first_terms(folder: Path, data: Path, name: str, **start: Any) -> dict[str, float]:
    """The terms of a distillation's first step, before anything was learned."""
    distill(
        DistillConfig(
            teacher=str(folder / "t"),
            data=str(data),
            output_dir=folder / name,
            max_steps=1,
            logging_steps=1,
            **start,
        )
    )
    return logged_losses(folder / name)[0]


def test_a_narrower_student_records_its_basis_and_distilling_starts_there(
    tmp_path: Path, text_data: Path, xlmr_tokenizer: PreTrainedTokenizerFast
) -> None:
    saved(tmp_path / "t", xlmr_tokenizer, "xlm-roberta", "sequence")
    calibrate(tmp_path / "t", text_data, tmp_path / "s", hidden_size=12, layers=2)
    record = json.loads((tmp_path / "s" / "kdshrink.json").read_text())
    assert record["calibration"]["basis"] == "basis.safetensors"
    basis = load_file(tmp_path / "s" / "basis.safetensors")["basis"]
    torch.testing.assert_close(basis.T @ basis, torch.eye(12))
    teacher, student = (
        AUTO["sequence"].from_pretrained(tmp_path / name).base_model.embeddings.word_embeddings
        for name in ("t", "s")
    )
    torch.testing.assert_close(student.weight, teacher.weight @ basis)
    assert not any("basis" in name for name in load_file(tmp_path / "s" / "model.safetensors"))

    given = first_terms(tmp_path, text_data, "given", student=str(tmp_path / "s"))
    shape: Any = {"layers": 2, "hidden_size": 12}
    made = first_terms(tmp_path, text_data, "made", init="calibrated", **shape)
    del record["calibration"]["basis"]
    (tmp_path / "s" / "kdshrink.json").write_text(json.dumps(record))
    without = first_terms(tmp_path, text_data, "without", student=str(tmp_path / "s"))
    for term in ("hidden", "embedding"):
        assert given[term] < 0.5 * without[term]
        assert made[term] == pytest.approx(given[term], rel=1e-4)


@pytest.mark.parametrize("family", ["xlm-roberta", "deberta-v2"])
@pytest.mark.parametrize("narrower", [{}, {"hidden_size": 12, "attention_heads": 2}])
def test_heads_come_from_all_the_layers_that_one_replaces_and_learn_from_them(
    tmp_path: Path,
    text_data: Path,
    xlmr_tokenizer: PreTrainedTokenizerFast,
    family: str,
    narrower: dict[str, Any],
) -> None:
    """Of a layer whose heads pass nothing on none is taken: all are those of the one below it."""
    teacher = make_model(family, "sequence")
    attention = teacher.base_model.encoder.layer[1].attention.self
    (attention.value if family == "xlm-roberta" else attention.value_proj).weight.data.zero_()
    teacher.save_pretrained(tmp_path / "t")
    xlmr_tokenizer.save_pretrained(tmp_path / "t")
    calibrate(tmp_path / "t", text_data, tmp_path / "s", layers=2, **narrower)
    path = tmp_path / "s" / "kdshrink.json"
    record = json.loads(path.read_text())
    most = teacher.config.num_attention_heads
    count = narrower.get("attention_heads", most)
    assert AUTO["sequence"].from_pretrained(tmp_path / "s").config.num_attention_heads == count
    assert [len(heads) for heads in record["heads"]] == [count, count]
    of_first = [head for layer, head in record["heads"][0] if layer == 1]
    assert of_first == sorted({*of_first} & {*range(1, most + 1)})
    assert len(of_first) == count
    assert all(layer in (3, 4) for layer, _ in record["heads"][1])

    given = first_terms(tmp_path, text_data, "given", student=str(tmp_path / "s"))["attention"]
    assert (
        json.loads((tmp_path / "given" / "kdshrink.json").read_text())["heads"] == record["heads"]
    )
    made = first_terms(
        tmp_path, text_data, "made", init="calibrated", layers=2, cache_teacher="all", **narrower
    )["attention"]
    path.write_text(json.dumps({**record, "heads": None}))
    without = first_terms(tmp_path, text_data, "without", student=str(tmp_path / "s"))["attention"]
    assert given < 0.5 * without
    assert made == pytest.approx(given, rel=1e-4)
    path.write_text(json.dumps({**record, "heads": [[[9, 1]] * count] * 2}))
    with pytest.raises(ModelError, match="no head 1 in a layer 9"):
        first_terms(tmp_path, text_data, "beyond", student=str(tmp_path / "s"))


def test_a_calibrated_start_is_trained_without_dropout_unless_told(
    tmp_path: Path, text_data: Path, xlmr_tokenizer: PreTrainedTokenizerFast
) -> None:
    saved(tmp_path / "t", xlmr_tokenizer, "xlm-roberta", "sequence")
    calibrate(tmp_path / "t", text_data, tmp_path / "s")
    data: Any = {"data": str(text_data), "max_steps": 1, "logging_steps": 1}

    def distilled(student: str, name: str, **options: Any) -> float:
        """The first step's loss of what is the teacher itself, so that there is none but of dropout."""
        distill(
            DistillConfig(
                teacher=str(tmp_path / "t"),
                student=str(tmp_path / student),
                output_dir=tmp_path / name,
                weights={"task": 0.0, "prediction": 0.0},
                learning_rate=1e-9,
                recipe="paper",
                **data,
                **options,
            )
        )
        return float(logged_losses(tmp_path / name)[0]["loss"])

    def finetuned(model: str, name: str, **options: Any) -> float:
        out = tmp_path / name
        finetune(FinetuneConfig(model=str(tmp_path / model), output_dir=out, **data, **options))
        return float(logged_losses(out)[0]["loss"])

    assert distilled("s", "default") < 1e-6 < 1e-3 < distilled("s", "told", dropout=0.1)
    assert distilled("default", "later") > 1e-3
    without = finetuned("t", "f0", dropout=0.0)
    assert finetuned("s", "f1") == pytest.approx(without, rel=1e-5)
    assert finetuned("t", "f2") != pytest.approx(without, rel=1e-5)


def test_a_recorded_basis_that_is_gone_is_named(
    tmp_path: Path, text_data: Path, xlmr_tokenizer: PreTrainedTokenizerFast
) -> None:
    saved(tmp_path / "t", xlmr_tokenizer, "xlm-roberta", "sequence")
    calibrate(tmp_path / "t", text_data, tmp_path / "s", hidden_size=12)
    (tmp_path / "s" / "basis.safetensors").unlink()
    with pytest.raises(ModelError, match=r"basis\.safetensors"):
        distill(
            DistillConfig(
                teacher=str(tmp_path / "t"), student=str(tmp_path / "s"), data=str(text_data)
            )
        )


def test_calibrating_twice_writes_the_same_bits(
    tmp_path: Path, text_data: Path, xlmr_tokenizer: PreTrainedTokenizerFast
) -> None:
    saved(tmp_path / "t", xlmr_tokenizer, "bert", "token")
    for name in ("a", "b"):
        calibrate(tmp_path / "t", text_data, tmp_path / name, hidden_size=12, seed=len(name))
    for file in ("model.safetensors", "basis.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_second_sweep_finds_the_same(
    tmp_path: Path, text_data: Path, xlmr_tokenizer: PreTrainedTokenizerFast
) -> None:
    """No map is fitted to what comes after it, so there is nothing for another sweep to mend."""
    saved(tmp_path / "t", xlmr_tokenizer, "xlm-roberta", "sequence")
    config = ShrinkConfig(
        model=str(tmp_path / "t"),
        init="calibrated",
        data=str(text_data),
        layers=2,
        hidden_size=12,
    )
    source, folder = find_model(config.model), tmp_path / "s"
    folder.mkdir()
    plan, _ = shrink_source(source, Shape(layers=2, hidden_size=12), folder, init="copy")
    data = load_data(data_request(config), ("train",), purpose="train")
    texts = CalibrationData.sample(data, 400, max_length=512, copies=0.5, multilingual=1.0)
    weights = []
    for _ in range(2):
        calibrate_student(source, folder, plan, texts, torch.device("cpu"))
        weights.append((folder / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_with_a_trimmed_vocabulary(
    tmp_path: Path, text_data: Path, xlmr_tokenizer: PreTrainedTokenizerFast
) -> None:
    """--vocab-from's text serves where --data names none."""
    teacher = saved(tmp_path / "t", xlmr_tokenizer, "xlm-roberta", "sequence")
    shrink(
        ShrinkConfig(
            model=str(tmp_path / "t"),
            init="calibrated",
            vocab_from=str(text_data),
            output_dir=tmp_path / "s",
        )
    )
    student = AUTO["sequence"].from_pretrained(tmp_path / "s")
    assert student.config.vocab_size < teacher.config.vocab_size
    student_logits, teacher_logits = (
        outputs(model, folder, texts_of(text_data))
        for model, folder in ((student, tmp_path / "s"), (teacher, tmp_path / "t"))
    )
    assert (student_logits - teacher_logits).abs().max() < 1e-3


def test_few_texts_are_the_same_few_and_counted_by_language(
    tmp_path: Path, text_data: Path, xlmr_tokenizer: PreTrainedTokenizerFast
) -> None:
    saved(tmp_path / "t", xlmr_tokenizer, "xlm-roberta", "sequence")
    result = calibrate(
        tmp_path / "t", text_data, tmp_path / "s", languages=("es",), calibration_samples=5
    )
    assert result["calibration"]["texts"] == {"es": 5}
    assert "calibrated on 5 texts in es" in (tmp_path / "s" / "README.md").read_text()


def test_noised_copies_are_as_many_as_asked_for(
    tmp_path: Path, text_data: Path, xlmr_tokenizer: PreTrainedTokenizerFast
) -> None:
    """More than one of each text too; a copy is as long as its text."""
    saved(tmp_path / "t", xlmr_tokenizer, "xlm-roberta", "sequence")
    tokens = [
        calibrate(
            tmp_path / "t", text_data, tmp_path / f"s{copies}", layers=2, calibration_copies=copies
        )["calibration"]["tokens"]
        for copies in (0, 1, 2)
    ]
    assert tokens == [tokens[0], 2 * tokens[0], 3 * tokens[0]]


def test_a_file_with_a_sentence_a_line_and_a_head_of_pretraining(
    tmp_path: Path, text_data: Path, xlmr_tokenizer: PreTrainedTokenizerFast
) -> None:
    """A language model's head is not calibrated, and left out."""
    saved(tmp_path / "t", xlmr_tokenizer, "xlm-roberta", "lm")
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(texts_of(text_data)))
    result = calibrate(tmp_path / "t", lines, tmp_path / "s", layers=2)
    assert result["calibration"]["texts"] == {"und": 48}
    assert json.loads((tmp_path / "s" / "config.json").read_text())["architectures"] == [
        "XLMRobertaModel"
    ]
    _, report = AUTO[None].from_pretrained(tmp_path / "s", output_loading_info=True)
    assert set(report["missing_keys"]) <= {"pooler.dense.weight", "pooler.dense.bias"}
    assert not report["unexpected_keys"]


def test_positions_with_projections_of_their_own(
    tmp_path: Path, text_data: Path, xlmr_tokenizer: PreTrainedTokenizerFast
) -> None:
    config = make_config("deberta-v2")
    config.share_att_key = False
    torch.manual_seed(0)
    teacher = AUTO["sequence"].from_config(config)
    for parameter in teacher.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    assert teacher.deberta.encoder.layer[0].attention.self.pos_key_proj is not None
    teacher.save_pretrained(tmp_path / "t")
    xlmr_tokenizer.save_pretrained(tmp_path / "t")
    texts = texts_of(text_data)
    teacher_outputs = outputs(teacher, tmp_path / "t", texts)
    errors = []
    for name, shape in (("same", {}), ("narrow", {"hidden_size": 16}), ("shallow", {"layers": 2})):
        calibrate(tmp_path / "t", text_data, tmp_path / name, **shape)
        student = AUTO["sequence"].from_pretrained(tmp_path / name)
        errors.append(
            float((outputs(student, tmp_path / name, texts) - teacher_outputs).abs().max())
        )
    assert errors[0] < 1e-3
    assert max(errors[1:]) < 0.5 * float(teacher_outputs.std())


@pytest.mark.parametrize("family", ["deberta-conv", "electra"])
def test_others_are_refused_before_anything_is_written(
    tmp_path: Path, text_data: Path, xlmr_tokenizer: PreTrainedTokenizerFast, family: str
) -> None:
    if family == "electra":
        sizes: Any = {"hidden_size": 24, "embedding_size": 24, "intermediate_size": 48}
        config = ElectraConfig(**sizes, num_hidden_layers=4, num_attention_heads=4)
        AUTO["sequence"].from_config(config).save_pretrained(tmp_path / "t")
        xlmr_tokenizer.save_pretrained(tmp_path / "t")
    else:
        saved(tmp_path / "t", xlmr_tokenizer, family, "sequence")
    with pytest.raises(ModelError, match=r"(electra'|convolution) cannot be calibrated"):
        calibrate(tmp_path / "t", text_data, tmp_path / "s", layers=2)
    assert not (tmp_path / "s").exists()
