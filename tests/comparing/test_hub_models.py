"""Models of the Hub in a comparison, against the server of tests/helpers/hub on loopback."""

from __future__ import annotations

import shutil

import pytest

from kdshrink.exporting.graph import write_graph

from ..exporting.students import make_student, write_student
from ..helpers.hub import Desk, Hub

pytest.importorskip("onnxruntime")


def test_a_model_of_the_hub_and_its_graph(desk: Desk, hub: Hub) -> None:
    model = make_student()
    directory, data = write_student(model, desk.folder, texts=20)
    shipped = desk.folder / "shipped"
    shutil.copytree(directory, shipped)
    (shipped / "onnx").mkdir()
    write_graph(model, shipped / "onnx/model.onnx")
    commit = hub.add("org/shipped", shipped)
    hub.add("org/shipped", directory)  # later on main there is no graph

    graph = f"org/shipped@{commit}#onnx"
    typed = ("compare", "org/shipped", graph, "--data", str(data), "--split", "validation")
    found = desk.json(*typed, "--threads", "1")["models"]
    assert [*found] == ["org/shipped", graph]
    assert (found[graph]["backend"], found[graph]["file"]) == ("onnxruntime", "onnx/model.onnx")
    assert found[graph]["bytes"] == (shipped / "onnx/model.onnx").stat().st_size
    assert found[graph]["agreement"] == 1
    fetched = [str(one) for one in hub.requests if "/resolve/" in str(one)]
    assert any("onnx/model.onnx" in one for one in fetched)

    # All of it is found again without a connection.
    hub.requests.clear()
    again = desk.json(*typed, "--threads", "1", "--dry-run", HF_HUB_OFFLINE="1")
    assert [one["name"] for one in again["models"]] == [*found]
    assert [one["bytes"] for one in again["models"]] == [one["bytes"] for one in found.values()]
    assert hub.requests == []

    done = desk("compare", "org/shipped", "org/shipped#int8", "--data", str(data))
    assert done.returncode == 1
    assert "org/shipped: there is no onnx/model_quantized.onnx" in done.stderr
