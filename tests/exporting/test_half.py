"""Graphs in half precision: what overflows stays in float32, and so do distances of positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from kdshrink.commands.export import export
from kdshrink.config.commands import ExportConfig
from kdshrink.exporting.graph import difference, write_graph
from kdshrink.exporting.half import Half, overflowing
from kdshrink.exporting.runtime import OnnxClassifier
from kdshrink.record import read_record

from ..helpers.models import make_config
from .students import add_outlier_channel, make_student, write_student

pytest.importorskip("onnxruntime")
import onnx
import onnxruntime

BEYOND = 1e6
"""A channel that much larger than the others has values of more than 65504."""


def made(model: Any, folder: Path) -> Path:
    write_graph(model.eval(), folder / "model.onnx")
    return folder / "model.onnx"


def half_of(graph: Path, *kept: str) -> Path:
    target = graph.with_name("half.onnx")
    Half(title="half", kept=kept).write(graph, target, [])
    return target


def types(graph: Path) -> dict[str, set[int]]:
    """The types of the weights that the nodes of a module read."""
    content = onnx.load(graph).graph
    kinds = {tensor.name: tensor.data_type for tensor in content.initializer if tensor.dims}
    found: dict[str, set[int]] = {}
    for node in content.node:
        module = node.name.partition("/")[0]
        found.setdefault(module, set()).update(kinds[i] for i in node.input if i in kinds)
    return found


def test_what_overflows_is_found_and_stays_in_float32(tmp_path: Path) -> None:
    model: Any = make_student()
    graph = made(model, tmp_path)
    ids = torch.randint(4, 80, (3, 9))
    mask = torch.ones_like(ids)
    mask[1:, 4:] = 0
    texts = [OnnxClassifier(graph).inputs(ids, mask)]
    assert overflowing(graph, texts) == []

    add_outlier_channel(model.roberta.encoder.layer[1], BEYOND)
    graph = made(model, tmp_path)
    expected = OnnxClassifier(graph)(ids, mask).logits
    assert overflowing(graph, texts) == ["roberta.encoder.layer.1.attention"]
    broken = OnnxClassifier(half_of(graph))(ids, mask).logits
    assert difference(expected, broken, mask) == float("inf")
    mended = half_of(graph, "roberta.encoder.layer.1.attention")
    assert difference(expected, OnnxClassifier(mended)(ids, mask).logits, mask) < 0.02
    read = types(mended)
    assert read["roberta.encoder.layer.1.attention.output.dense"] == {onnx.TensorProto.FLOAT}
    assert read["roberta.encoder.layer.1.output.dense"] == {onnx.TensorProto.FLOAT16}


def test_export_keeps_in_float32_what_overflows(tmp_path: Path) -> None:
    model: Any = make_student()
    add_outlier_channel(model.roberta.encoder.layer[1], BEYOND)
    directory, data = write_student(model, tmp_path)
    out = tmp_path / "out"
    result = export(
        ExportConfig(
            model=str(directory), data=str(data), precision=("fp16",), max_drop=0, output_dir=out
        )
    )
    (verdict,) = result.verdicts
    assert result.passed
    assert verdict.scheme.kept == ("roberta.encoder.layer.1.attention",)
    assert verdict.difference is not None
    assert 0 < verdict.difference < 0.05
    assert [path.name for path in (out / "onnx").iterdir()] == ["model_fp16.onnx"]
    record = read_record(out)
    assert record is not None
    assert record.export is not None
    assert record.export.schemes == {"fp16": "half precision, 1 part in fp32"}
    assert "The fp16 file (half precision, 1 part in fp32)" in (out / "README.md").read_text()


def test_what_reads_too_large_a_value_stays_in_float32_too(tmp_path: Path) -> None:
    model: Any = make_student()
    with torch.no_grad():
        model.roberta.encoder.layer[1].output.LayerNorm.weight *= BEYOND
        model.roberta.encoder.layer[1].output.LayerNorm.bias *= BEYOND
        model.classifier.dense.weight /= BEYOND
    graph = made(model, tmp_path)
    ids = torch.randint(4, 80, (3, 9))
    mask = torch.ones_like(ids)
    kept = overflowing(graph, [OnnxClassifier(graph).inputs(ids, mask)])
    assert {"roberta.encoder.layer.1.output", "classifier.dense"} <= {*kept}
    expected, found = (
        OnnxClassifier(one)(ids, mask).logits for one in (graph, half_of(graph, *kept))
    )
    assert difference(expected, found, mask) < 0.02


def distances(graph: Path, ids: torch.Tensor, name: str) -> np.ndarray:
    """The whole numbers of one node of a graph."""
    content = onnx.load(graph)
    (value,) = (node.output[0] for node in content.graph.node if node.name == name)
    content.graph.output.append(
        onnx.helper.make_tensor_value_info(value, onnx.TensorProto.INT64, None)
    )
    session = onnxruntime.InferenceSession(content.SerializeToString())
    mask = np.ones_like(ids)
    return session.run([value], {"input_ids": ids.numpy(), "attention_mask": mask})[0]


def test_distances_of_positions_are_computed_in_float32(tmp_path: Path) -> None:
    config = make_config("deberta-v2", num_hidden_layers=1)
    config.position_buckets, config.max_relative_positions = 256, 512
    model = AutoModelForSequenceClassification.from_config(config)
    graph = made(model, tmp_path)
    (bucket,) = (
        node.name
        for node in onnx.load(graph).graph.node
        if node.op_type == "Cast"
        and node.attribute[0].i == onnx.TensorProto.INT64
        and node.name.startswith("deberta.encoder/")
    )
    ids = torch.randint(5, 60, (1, 300))
    expected, found = (distances(one, ids, bucket) for one in (graph, half_of(graph)))
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found)) > 200
