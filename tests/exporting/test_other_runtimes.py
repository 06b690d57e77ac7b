"""What export writes, read by transformers 4 in an environment of its own, and by OpenVINO."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from kdshrink.commands.export import export
from kdshrink.config.commands import ExportConfig
from kdshrink.exporting.runtime import FILES, FOLDER

from ..helpers.models import make_model, sample_texts
from .test_export import save

onnxruntime = pytest.importorskip("onnxruntime")

OTHER_PYTHON = os.environ.get("KDSHRINK_TRANSFORMERS_4", "")
"""An interpreter that has transformers 4 and torch."""
CLASSIFY = """
import json, sys
import torch, transformers
from transformers import AutoTokenizer, pipeline
assert transformers.__version__.startswith("4."), transformers.__version__
folder, task = sys.argv[1:]
texts = json.load(sys.stdin)
tokenizer = AutoTokenizer.from_pretrained(folder)
assert tokenizer.is_fast
classify = pipeline({"sequence": "text", "token": "token"}[task] + "-classification", folder)
found = []
for text in texts:
    batch = tokenizer(text, return_tensors="pt")
    with torch.inference_mode():
        logits = classify.model(**batch).logits[0]
    found.append({"inputs": {name: rows[0].tolist() for name, rows in batch.items()}, "logits": logits.tolist()})
    classify(text)
print(json.dumps({"longest": tokenizer.model_max_length, "texts": found}))
"""


def shipped(family: str, task: Any, data: Path, folder: Path) -> Path:
    """A small model as export writes it, in fp32."""
    directory = save(make_model(family, task, num_hidden_layers=2), family, folder / "model")
    export(
        ExportConfig(
            model=str(directory), data=str(data), precision=("fp32",), output_dir=folder / "out"
        )
    )
    return folder / "out"


@pytest.mark.slow
@pytest.mark.skipif(not OTHER_PYTHON, reason="KDSHRINK_TRANSFORMERS_4 names no interpreter")
@pytest.mark.parametrize("family", ["xlm-roberta", "bert", "deberta-v2"])
@pytest.mark.parametrize("task", ["sequence", "token"])
def test_transformers_4_reads_the_directory(
    family: str, task: Any, tmp_path: Path, text_data: Path, word_data: Path
) -> None:
    directory = shipped(family, task, text_data if task == "sequence" else word_data, tmp_path)
    texts = sample_texts()[:50]
    done = subprocess.run(
        [OTHER_PYTHON, "-c", CLASSIFY, str(directory), task],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert found["longest"] == tokenizer.model_max_length
    session = onnxruntime.InferenceSession(directory / FOLDER / FILES["fp32"])
    for text, other in zip(texts, found["texts"], strict=True):
        batch = dict(tokenizer(text))
        assert other["inputs"] == batch
        inputs = {name: np.array([row], dtype=np.int64) for name, row in batch.items()}
        (logits,) = session.run(["logits"], inputs)
        torch.testing.assert_close(
            torch.tensor(other["logits"]), torch.from_numpy(logits[0]), atol=1e-4, rtol=1e-4
        )


@pytest.mark.slow
@pytest.mark.parametrize("family", ["xlm-roberta", "bert", "deberta-v2"])
def test_openvino_reads_the_graph(family: str, tmp_path: Path, text_data: Path) -> None:
    openvino = pytest.importorskip("openvino")
    directory = shipped(family, "sequence", text_data, tmp_path)
    path = directory / FOLDER / FILES["fp32"]
    full = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", full)
    session = onnxruntime.InferenceSession(path)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    batch = dict(tokenizer(sample_texts()[:20], padding=True, return_tensors="np"))
    (expected,) = session.run(["logits"], batch)
    (found,) = compiled(batch).values()
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)
