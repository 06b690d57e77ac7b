"""A classifier that onnxruntime runs, in the place of one of torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..data.registry import Task
from ..errors import ModelError
from ..hub.download import fetch_more
from ..models.devices import to_device
from ..models.loading import load_classifier, load_tokenizer, require_task
from ..models.source import Source
from ..models.whole import first_line
from .libraries import require_onnx

if TYPE_CHECKING:
    import onnxruntime

Precision = Literal["fp32", "fp16", "int8"]
FOLDER = "onnx"
FILES: dict[Precision, str] = {
    "fp32": "model.onnx",
    "fp16": "model_fp16.onnx",
    "int8": "model_quantized.onnx",
}
"""Where other tools look for a graph of each precision, in `FOLDER`."""

BACKENDS: dict[str, Precision] = {"onnx": "fp32", "onnx:fp16": "fp16", "onnx:int8": "int8"}
"""The precision that each --backend runs."""


def weights_beside(graph: Path) -> Path:
    """Where the weights of a graph are that are too large to be inside it."""
    return graph.with_suffix(".onnx_data")


@dataclass(frozen=True)
class Output:
    """What a classifier gives, as transformers' models do.

    Attributes:
        logits: (B, C), or (B, T, C) for token tasks, float32.
    """

    logits: Tensor


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """Load a graph, to run on as many threads of the CPU as torch uses.

    Raises:
        ModelError: The packages are missing, or the file is damaged.
    """
    require_onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common class of their own
        raise ModelError(
            f"{path}: onnxruntime cannot load it.\n{first_line(error)[:300]}"
        ) from error


class OnnxClassifier(nn.Module):
    """A classifier of an ONNX file, called as one of transformers' is.

    Raises:
        ModelError: As `open_session` does.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.session = open_session(path)
        self._inputs = {one.name for one in self.session.get_inputs()}

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Output:
        """The logits of a batch.

        Args:
            input_ids, attention_mask: (B, T), int64.
        """
        (logits,) = self.session.run(["logits"], self.inputs(input_ids, attention_mask))
        return Output(torch.from_numpy(logits))

    def inputs(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, np.ndarray]:
        """What the graph is fed with for a batch: token types of single texts are 0."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if "token_type_ids" in self._inputs:
            inputs["token_type_ids"] = torch.zeros_like(input_ids)
        return {name: tensor.numpy() for name, tensor in inputs.items()}


@dataclass(frozen=True)
class Runnable:
    """A classifier that is ready to run, and its tokenizer."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase


def load_runnable(source: Source, task: Task, graph: Path | None, device: torch.device) -> Runnable:
    """Load a classifier for inference: its graph for onnxruntime, or (None) its weights for torch.

    Raises:
        ModelError: The model is damaged, or has no head for the task; or the packages for graphs are missing.
    """
    if graph is not None:
        require_task(source, task)
        return Runnable(OnnxClassifier(graph), load_tokenizer(source, task))
    loaded = load_classifier(source, task)
    return Runnable(to_device(loaded.model, device).eval(), loaded.tokenizer)


def onnx_file(source: Source, precision: Precision) -> Path:
    """The file of a model's graph, fetched if the model is on the Hub.

    Raises:
        ModelError: The model has none.
        HubError: The Hub cannot be reached, or refuses.
    """
    path = source.directory / FOLDER / FILES[precision]
    if source.commit is not None and not path.is_file():
        hub_id = source.name.partition("@")[0]
        fetch_more(hub_id, source.commit, source.access.token, f"{FOLDER}/{path.name}*")
    if not path.is_file():
        raise ModelError(
            f"{source.name}: there is no {FOLDER}/{FILES[precision]}.\n"
            f"Make it with kdshrink export {source.name} --precision {precision}."
        )
    return path
