"""transformers.js in node gives the labels that onnxruntime does in Python.

Skipped unless node finds the package. To run it: `npm install --ignore-scripts @huggingface/transformers` in a
directory, and NODE_PATH=DIRECTORY/node_modules before pytest.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from kdshrink.commands.export import export
from kdshrink.config.commands import ExportConfig
from kdshrink.exporting.runtime import FILES, OnnxClassifier, Precision

from ..helpers.models import make_model, sample_texts
from .test_export import save

SCRIPT = Path(__file__).with_name("classify.cjs")
OTHER_SCRIPTS = [
    "أيقظني في السابعة",
    "明天早上七点叫我",
    "ปลุกฉันตอนเจ็ดโมง",
    "मुझे सात बजे जगाओ",
    "ξύπνα με στις επτά",
]


def _node_has_it() -> bool:
    node = shutil.which("node")
    if node is None:
        return False
    asked = [node, "-e", "require.resolve('@huggingface/transformers')"]
    return subprocess.run(asked, capture_output=True).returncode == 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not _node_has_it(), reason="node has no @huggingface/transformers"),
]


def labels_in_javascript(directory: Path, task: str, dtype: str, texts: list[str]) -> list[Any]:
    words = ["node", str(SCRIPT), str(directory.parent), directory.name, task, dtype]
    done = subprocess.run(words, input=json.dumps(texts), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def labels_in_python(directory: Path, precision: Precision, texts: list[str]) -> list[Any]:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    names = json.loads((directory / "config.json").read_text())["id2label"]
    classify = OnnxClassifier(directory / "onnx" / FILES[precision])
    labels: list[Any] = []
    for text in texts:
        batch = tokenizer(text, return_tensors="pt")
        logits = classify(batch["input_ids"], torch.ones_like(batch["input_ids"])).logits[0]
        if logits.dim() == 1:
            labels.append(names[str(int(logits.argmax()))])
        else:
            # transformers.js leaves out the tokens that decode to nothing: special ones, and blanks.
            ids = batch["input_ids"][0].tolist()
            shown = [bool(tokenizer.decode([i], skip_special_tokens=True)) for i in ids]
            best = logits.argmax(-1).tolist()
            labels.append([names[str(i)] for i, kept in zip(best, shown, strict=True) if kept])
    return labels


@pytest.mark.parametrize("family", ["xlm-roberta", "bert", "deberta-v2"])
@pytest.mark.parametrize("task", ["sequence", "token"])
def test_transformers_js_gives_the_same_labels(
    family: str, task: Any, tmp_path: Path, text_data: Path, word_data: Path
) -> None:
    model = make_model(family, task, num_hidden_layers=2)
    data = text_data if task == "sequence" else word_data
    out = tmp_path / "out"
    export(
        ExportConfig(
            model=str(save(model, family, tmp_path / "model")),
            data=str(data),
            precision=("fp32", "fp16", "int8"),
            max_drop=100,
            output_dir=out,
        )
    )
    short = [text for text in sample_texts() if len(text) <= 60]  # the model has 70 positions
    texts = [*short[:: len(short) // 45][:45], *OTHER_SCRIPTS]
    pipeline = {"sequence": "text-classification", "token": "token-classification"}[task]
    for dtype, precision in (("fp32", "fp32"), ("fp16", "fp16"), ("q8", "int8")):
        found = labels_in_javascript(out, pipeline, dtype, texts)
        assert found == labels_in_python(out, precision, texts)  # type: ignore[arg-type]
