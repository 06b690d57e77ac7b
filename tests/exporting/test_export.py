"""Export end to end on small real models: the graphs against torch, the gate against students that int8 breaks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel

from kdshrink.commands.evaluate import evaluate
from kdshrink.commands.export import ExportResult, export
from kdshrink.config.commands import EvalConfig, ExportConfig
from kdshrink.data.encoding import Collator
from kdshrink.exporting import graph, quantization
from kdshrink.exporting.quantization import SCHEMES, Int8
from kdshrink.models.loading import load_classifier
from kdshrink.models.source import find_model
from kdshrink.publishing.push import model_files
from kdshrink.record import read_record

from ..helpers.models import make_model, make_tokenizer
from ..helpers.processes import run_without_onnx
from ..helpers.runner import run
from .students import (
    add_dead_attention,
    add_dead_unit,
    add_dead_weights,
    add_outlier_channel,
    make_student,
    shrink_embeddings_of_b,
    write_student,
)

onnxruntime = pytest.importorskip("onnxruntime")
onnx_ir = pytest.importorskip("onnx_ir")

# In an interpreter that has numpy and onnxruntime, and neither this package nor torch.
ALONE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "kdshrink", "transformers"):
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
import numpy, onnxruntime
graph, inputs, out = sys.argv[1:]
session = onnxruntime.InferenceSession(graph)
given = numpy.load(inputs)
taken = {one.name: given[one.name] for one in session.get_inputs()}
numpy.save(out, session.run(["logits"], taken)[0])
"""


def run_alone(graph: Path, inputs: dict[str, np.ndarray], folder: Path) -> np.ndarray:
    np.savez(folder / "inputs.npz", **inputs)  # type: ignore[arg-type]
    words = [str(graph), str(folder / "inputs.npz"), str(folder / "logits.npy")]
    subprocess.run([sys.executable, "-c", ALONE, *words], check=True, cwd=folder)
    return np.load(folder / "logits.npy")


def export_whatever_is_lost(directory: Path, data: Path, out: Path) -> ExportResult:
    """What export makes of a model in all precisions, with a gate that lets everything pass."""
    precisions = ("fp32", "fp16", "int8")
    return export(
        ExportConfig(
            model=str(directory), data=str(data), precision=precisions, max_drop=100, output_dir=out
        )
    )


def run_nodes(graph: Path) -> list[Any]:
    """What onnxruntime runs, after its own fusions."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(graph.with_suffix(".run.onnx"))
    onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return list(onnx_ir.load(options.optimized_model_filepath).graph)


def has_faster_form(node: Any, file: str) -> bool:
    """Whether a node is a fused norm; in int8 also a bias on its own, or a product with weights in floating point."""
    if node.op_type == "SkipLayerNormalization":
        return True
    constants = [value.const_value for value in node.inputs if value is not None]
    floats = [one for one in constants if one is not None and one.dtype.is_floating_point()]
    ranks = [len(one.shape) for one in floats]
    slow = {"Add": 1, "MatMul": 2, "FusedMatMul": 2}.get(node.op_type)
    return "quantized" in file and slow in ranks


def save(model: PreTrainedModel, kind: str, folder: Path) -> Path:
    model.save_pretrained(folder)
    make_tokenizer(kind).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("family", "task"),
    [
        ("xlm-roberta", "token"),
        pytest.param("xlm-roberta", "sequence", marks=pytest.mark.slow),
        pytest.param("bert", "sequence", marks=pytest.mark.slow),
        pytest.param("bert", "token", marks=pytest.mark.slow),
        pytest.param("deberta-v2", "sequence", marks=pytest.mark.slow),
        pytest.param("deberta-v2", "token", marks=pytest.mark.slow),
    ],
)
def test_onnxruntime_alone_computes_what_the_model_does(
    family: str, task: Any, tmp_path: Path, text_data: Path, word_data: Path
) -> None:
    model = make_model(family, task, num_hidden_layers=2)
    directory = save(model, family, tmp_path / "model")
    data = text_data if task == "sequence" else word_data
    result = export_whatever_is_lost(directory, data, tmp_path / "out")
    assert result.difference <= 1e-4
    assert result.changed == 0
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "out/onnx").iterdir()}
    assert sizes == dict(result.files)
    assert sizes["model_quantized.onnx"] < sizes["model_fp16.onnx"] < sizes["model.onnx"]
    assert result.verdicts[0].difference is not None
    assert result.verdicts[0].difference < 0.05

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    texts = ["wetter heute in Lisboa", "música", "correo 7 es tag und mehr"]
    batch = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=True)
    has_types = family == "bert"
    expected = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        **({"token_type_ids": batch["token_type_ids"]} if has_types else {}),
    ).logits
    inputs = {name: tensor.numpy() for name, tensor in batch.items()}
    found = run_alone(tmp_path / "out/onnx/model.onnx", inputs, tmp_path)
    kept = batch["attention_mask"].bool().numpy() if task == "token" else slice(None)
    np.testing.assert_allclose(found[kept], expected.detach().numpy()[kept], atol=1e-4, rtol=1e-4)
    half = run_alone(tmp_path / "out/onnx/model_fp16.onnx", inputs, tmp_path)
    assert half.dtype == np.float32
    np.testing.assert_allclose(half[kept], found[kept], atol=0.05, rtol=0.05)
    int8 = run_alone(tmp_path / "out/onnx/model_quantized.onnx", inputs, tmp_path)
    assert int8.shape == found.shape
    assert np.isfinite(int8[kept]).all()
    for name in sizes:
        path = tmp_path / "out/onnx" / name
        assert not [node for node in run_nodes(path) if has_faster_form(node, name)]
        # No operation of onnxruntime's own, so that other runtimes read the graph too.
        assert {node.domain for node in onnx_ir.load(path).graph} == {""}


def test_deberta_scores_the_relative_positions_of_a_batch_alone(tmp_path: Path) -> None:
    model = make_model("deberta-v2", "token", num_hidden_layers=2, position_buckets=64)
    graph.write_graph(model, tmp_path / "model.onnx")
    program = onnx_ir.load(tmp_path / "model.onnx")
    scores = [node.inputs[0] for node in program.graph if node.op_type == "GatherElements"]
    assert len(scores) == 4
    for length in (1, 2, 9, 32, 60):
        ids = np.arange(3 * length).reshape(3, length) % 7 + 5
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        [[*found, logits]] = graph.computed(
            program, [*scores, *program.graph.outputs], [inputs], tmp_path
        )
        for one in found:
            assert one.shape[:2] == (3 * 4, length)
            assert one.shape[2] <= 2 * length - 1
        expected = model(**{name: torch.tensor(one) for name, one in inputs.items()}).logits
        np.testing.assert_allclose(logits, expected.detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("family", ["xlm-roberta", "deberta-v2"])
def test_masked_keys_weigh_nothing_without_denormal_numbers(family: str, tmp_path: Path) -> None:
    model = make_model(family, "sequence", num_hidden_layers=2)
    graph.write_graph(model, tmp_path / "model.onnx")
    program = onnx_ir.load(tmp_path / "model.onnx")
    weights = [node.outputs[0] for node in program.graph if node.op_type == "Softmax"]
    mask = np.asarray([[1] * 9, [1] * 3 + [0] * 6])
    inputs = {"input_ids": np.arange(18).reshape(2, 9) % 7 + 5, "attention_mask": mask}
    [found] = graph.computed(program, weights, [inputs], tmp_path)
    assert len(found) == 2
    for weight in found:
        assert np.all(weight >= np.finfo(np.float32).tiny)
        assert np.all(weight[1, :, :3, 3:] < 1e-12)
        np.testing.assert_allclose(weight.sum(-1), 1, rtol=1e-6)


def exported(change: Callable[[Any], object], folder: Path) -> ExportResult:
    """What export makes of a student that was changed; 5 points may be lost, each text being worth 1.7."""
    model = make_student()
    change(model)
    directory, data = write_student(model, folder)
    return export(
        ExportConfig(
            model=str(directory), data=str(data), max_drop=5, output_dir=folder / "shipped"
        )
    )


def test_weights_that_one_scale_cannot_hold_get_a_scale_a_column(tmp_path: Path) -> None:
    result = exported(lambda model: add_dead_unit(model.roberta.encoder.layer[1]), tmp_path)
    blind, chosen = result.verdicts
    assert not blind.passed
    assert blind.drop > 20
    assert (chosen.passed, chosen.scheme.name) == (True, "dynamic, per channel")
    assert chosen.loss <= 5


def test_one_language_alone_is_hurt_and_mended(tmp_path: Path) -> None:
    result = exported(shrink_embeddings_of_b, tmp_path)
    blind, chosen = result.verdicts[0], result.verdicts[-1]
    assert not blind.passed
    assert blind.per_language["aa"].drop <= 5
    assert blind.per_language["bb"].drop > 20
    assert blind.worst[0] == "bb"
    assert (chosen.passed, chosen.scheme.name) == (True, "dynamic, per channel")

    # What stands in the directory is what the gate let pass.
    record = read_record(tmp_path / "shipped")
    assert record is not None
    assert record.export is not None
    assert record.export.schemes == {"int8": chosen.scheme.name}
    assert record.export.tried[-1].per_language["bb"].drop == round(
        chosen.per_language["bb"].drop, 3
    )
    card = (tmp_path / "shipped/README.md").read_text()
    assert chosen.scheme.name in card
    again = evaluate(
        EvalConfig(
            model=str(tmp_path / "shipped"),
            data=str(tmp_path / "data"),
            split="validation",
            backend="onnx:int8",
        )
    )
    assert again.score == chosen.score
    sent = {
        path.relative_to(tmp_path / "shipped").as_posix()
        for path in model_files(tmp_path / "shipped")
    }
    assert {"onnx/model.onnx", "onnx/model_quantized.onnx", "model.safetensors"} <= sent


@pytest.mark.slow
def test_an_outlier_channel_is_moved_into_the_weights(tmp_path: Path) -> None:
    result = exported(lambda model: add_outlier_channel(model.roberta.encoder.layer[1]), tmp_path)
    *refused, chosen = result.verdicts
    assert [verdict.drop > 20 for verdict in refused] == [True, True]
    assert chosen.passed
    assert chosen.scheme == Int8(title="dynamic, per channel, smoothed", smoothed=True)


@pytest.mark.slow
def test_a_layer_whose_weights_no_scale_holds_is_kept_in_fp32(tmp_path: Path) -> None:
    result = exported(lambda model: add_dead_weights(model.roberta.encoder.layer[1]), tmp_path)
    *refused, chosen = result.verdicts
    assert [verdict.passed for verdict in refused] == [False] * len(SCHEMES)
    assert chosen.passed
    assert chosen.scheme.kept == ("roberta.encoder.layer.1.output",)


@pytest.mark.slow
def test_what_no_scheme_mends_is_refused_with_the_table_and_fp32_is_kept(tmp_path: Path) -> None:
    model: Any = make_student(layers=4)
    for layer in model.roberta.encoder.layer:
        add_dead_weights(layer)
        add_dead_attention(layer)
    directory, data = write_student(model, tmp_path)
    shipped = tmp_path / "shipped"
    typed = ("export", str(directory), "--data", str(data), "--max-drop", "5", "--json")
    done = run(*typed, "-o", str(shipped))
    assert done.returncode == 1
    assert "stays within --max-drop 5" in done.stderr
    assert done.stdout.count("\n") == 1
    found = json.loads(done.stdout)
    assert (found["passed"], found["schemes"]) == (False, {})
    # Eight of the fifteen parts are broken, and at most seven are kept: 1, 2 and 4 are tried.
    assert len(found["tried"]) == len(SCHEMES) + 3
    assert not any(tried["passed"] for tried in found["tried"])
    assert [path.name for path in (shipped / "onnx").iterdir()] == ["model.onnx"]
    record = read_record(shipped)
    assert record is not None
    assert record.export is not None
    assert record.export.to_dict()["tried"] == found["tried"]


def test_backends_answer_alike(tmp_path: Path) -> None:
    directory, data = write_student(make_student(), tmp_path, texts=20)
    export(
        ExportConfig(
            model=str(directory),
            data=str(data),
            precision=("fp32", "fp16"),
            output_dir=tmp_path / "out",
        )
    )
    assert not (tmp_path / "out/onnx/model_quantized.onnx").exists()
    common = ("--data", str(data), "--split", "validation", "--json")
    scores = [
        json.loads(run("eval", str(tmp_path / "out"), *common, "--backend", name).stdout)["score"]
        for name in ("torch", "onnx", "onnx:fp16")
    ]
    assert scores == [1, 1, 1]
    zero = run(
        *("zero-shot", str(tmp_path / "out"), *common, "--backend", "onnx:fp16"),
        *("--seen-languages", "aa"),
    )
    assert json.loads(zero.stdout)["unseen"]["score"] == 1
    missing = run("eval", str(tmp_path / "out"), *common, "--backend", "onnx:int8")
    assert missing.returncode == 1
    assert "there is no onnx/model_quantized.onnx" in missing.stderr
    assert run("eval", "m", *common, "--backend", "onnx", "--device", "cuda").returncode == 2


def test_weights_too_large_for_one_file_are_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "LARGEST_FILE", 60_000)
    monkeypatch.setattr(quantization, "_LARGEST_MESSAGE", 60_000)
    directory, data = write_student(make_student(), tmp_path, texts=20)
    result = export_whatever_is_lost(directory, data, tmp_path / "out")
    folder = tmp_path / "out/onnx"
    # In half precision and in int8 they are small enough.
    assert {path.name for path in folder.iterdir()} == {
        *("model.onnx", "model.onnx_data", "model_fp16.onnx", "model_quantized.onnx")
    }
    assert result.files["model.onnx_data"] > 60_000
    ids = np.array([[0, 5, 6, 7, 2]])
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    logits = [
        run_alone(folder / name, inputs, tmp_path)
        for name in ("model.onnx", "model_fp16.onnx", "model_quantized.onnx")
    ]
    np.testing.assert_allclose(logits[1], logits[0], atol=0.05)
    np.testing.assert_allclose(logits[2], logits[0], atol=0.5)


def test_labels_and_limits_stay(tmp_path: Path) -> None:
    model = make_student()
    model.config.problem_type = "single_label_classification"
    directory, data = write_student(model, tmp_path, texts=20)
    export(
        ExportConfig(
            model=str(directory), data=str(data), precision=("fp32",), output_dir=tmp_path / "out"
        )
    )
    before, after = (
        json.loads((folder / "config.json").read_text()) for folder in (directory, tmp_path / "out")
    )
    assert after == before
    settings = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert settings["model_max_length"] == 64
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]
    assert "local_files_only" not in settings
    source = find_model(str(tmp_path / "out"))
    loaded = load_classifier(source, "sequence")
    ids = [{"input_ids": loaded.tokenizer("a1 b2 a3")["input_ids"]}]
    batch = Collator(1)(ids)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize(
    ("model", "data", "said"),
    [
        ("sample-base", "sample", "has no head"),
        ("sample", "lines.txt", "no labels"),
    ],
)
def test_what_cannot_be_exported_is_told_before_any_work(
    model: str, data: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "lines.txt").write_text("one\ntwo\n")
    done = run("export", model, "--data", data, "-o", "out", cwd=tmp_path)
    assert done.returncode == 1
    assert said in done.stderr
    assert not (tmp_path / "out").exists()


def test_without_the_extra_the_command_says_what_to_install(tmp_path: Path) -> None:
    done = run_without_onnx("export", "sample", "--data", "sample", "-o", "out", cwd=tmp_path)
    assert done.returncode == 1
    assert "pip install 'kdshrink[onnx]'" in done.stderr
    assert not (tmp_path / "out").exists()
