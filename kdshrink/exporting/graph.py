"""A classifier as an ONNX graph: traced by torch, rewritten for CPUs, tried before anybody uses it."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import ModelError
from ..models.activations import attention_implementation
from ..models.whole import first_line
from .libraries import quiet, require_onnx
from .rewrites import rewrite_for_cpu
from .runtime import OnnxClassifier, open_session, weights_beside

if TYPE_CHECKING:
    import onnx_ir

LARGEST_FILE = 2 * 1000**3
"""Bytes of weights that are kept inside the file: protobuf has none beyond 2 GiB."""
_AXES = ("batch_size", "sequence_length")
_SCOPES = "pkg.torch.onnx.name_scopes"
"""Where torch's exporter notes the modules that a node comes from."""
TOLERANCE = 1e-4
"""How far a logit of the graph may be from the model's, relative to the larger of it and 1."""


def write_graph(model: PreTrainedModel, path: Path) -> None:
    """Write a classifier as ONNX, with batch and length of any size.

    Its inputs are `input_ids`, `attention_mask` and, where the model distinguishes segments,
    `token_type_ids`, int64 of (B, T); its output is `logits`, float32 of (B, C) or (B, T, C). Nodes are
    named by the modules that they come from, so that layers can be told apart. Weights of more than
    `LARGEST_FILE` go into a second file, `model.onnx_data`.

    Raises:
        ModelError: The packages are missing, or the model cannot be exported.
    """
    require_onnx()
    import onnx_ir

    program = _traced(model)
    rewrite_for_cpu(program)
    axes = _dynamic_axes(program.graph)
    _name_nodes(program.graph)
    program.metadata_props.clear()
    program.graph.metadata_props.clear()
    for node in program.graph:
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
            value.shape = None  # which name the axes otherwise than the inputs do
    for value in (*program.graph.inputs, *program.graph.outputs):
        value.metadata_props.clear()
        value.shape = onnx_ir.Shape(axes[str(value.name)])
    for value in program.graph.initializers.values():
        value.metadata_props.clear()
        value.shape = value.type = None  # their tensors say it
    save_graph(program, path)


def save_graph(program: onnx_ir.Model, path: Path) -> None:
    """Save a graph with its weights inside, or beside it as `NAME.onnx_data` where they are too large."""
    import onnx_ir

    tensors = [value.const_value for value in program.graph.initializers.values()]
    size = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    if size > LARGEST_FILE:
        onnx_ir.save(program, path, external_data=weights_beside(path).name)
    else:
        onnx_ir.external_data.load_to_model(program)  # those beside the file that it was read from
        onnx_ir.save(program, path)


def computed(
    program: onnx_ir.Model,
    values: Sequence[onnx_ir.Value],
    texts: Sequence[Mapping[str, np.ndarray]],
    folder: Path,
) -> Iterator[list[np.ndarray]]:
    """What a graph computes on the way, for each batch of texts.

    Args:
        program: The graph; it is the same afterwards.
        values: What is wanted, each the output of a node.
        texts: The graph's inputs.
        folder: Where the graph is written meanwhile, with these as its outputs.
    """
    outputs = program.graph.outputs
    given = list(outputs)
    with TemporaryDirectory(dir=folder) as beside:
        path = Path(beside) / "computed.onnx"
        outputs.clear()
        outputs.extend(values)
        try:
            save_graph(program, path)
        finally:
            outputs.clear()
            outputs.extend(given)
        session = open_session(path)
        for inputs in texts:
            yield session.run([str(value.name) for value in values], dict(inputs))


def size_of(graph: Path) -> int:
    """Bytes of a graph, with the weights that are not inside the file."""
    return sum(path.stat().st_size for path in (graph, weights_beside(graph)) if path.is_file())


def _traced(model: PreTrainedModel) -> onnx_ir.Model:
    from transformers.exporters import OnnxConfig, OnnxExporter

    sample: Any = model_inputs(model, torch.tensor([[9, 8, 7, 9, 8], [9, 8, 7, 0, 0]]))
    sample["attention_mask"][1, 3:] = 0
    # Without names: BERT's length has an upper bound, its positions, that a named axis would have to declare.
    axes = dict.fromkeys(range(len(_AXES)), torch.export.Dim.AUTO)
    shapes = dict.fromkeys(sample, axes)
    # Without onnxruntime's own operations, which it makes itself when it loads a graph as far as they are faster.
    settings = OnnxConfig(dynamic=True, dynamic_shapes=shapes)
    try:
        with quiet(), attention_implementation(model, "eager"):
            return OnnxExporter().export(model, sample, config=settings).program
    except OSError:
        raise
    except Exception as error:  # torch's tracing and its translation raise whatever fits
        raise ModelError(
            f"{type(model).__name__} cannot be exported to ONNX.\n{first_line(error)[:300]}"
        ) from error


def model_inputs(model: PreTrainedModel, input_ids: Tensor) -> dict[str, Tensor]:
    """What a model is called with for these tokens, none of them padding: a tensor of (B, T) each."""
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    if reads_token_types(model.config):
        inputs["token_type_ids"] = torch.zeros_like(input_ids)
    return inputs


def reads_token_types(config: Any) -> bool:
    """Whether a model of this configuration tells segments apart."""
    return (getattr(config, "type_vocab_size", 0) or 0) > 1


def _dynamic_axes(graph: Any) -> dict[str, list[str | int]]:
    """The axes of inputs and outputs: a name where any size will do.

    Raises:
        ModelError: Tracing has fixed the size of a batch, or of its texts.
    """
    axes = {}
    for value in (*graph.inputs, *graph.outputs):
        names: list[str | int] = []
        for place, size in enumerate(value.shape or ()):
            traced = value not in graph.outputs or place < len(value.shape) - 1
            if traced and isinstance(size, int):
                raise ModelError(
                    f"The exported graph takes {_AXES[place]} {size} alone ({value.name}), so that it "
                    "would run on no other text."
                )
            names.append(_AXES[place] if traced else int(size))
        axes[value.name] = names
    return axes


def _name_nodes(graph: Any) -> None:
    """Call each node by the module that it comes from, its type and a number."""
    nodes = list(graph)
    scopes = {node: _scope(node) for node in nodes}
    for node in reversed(nodes):
        if not scopes[node]:  # made while exporting: of the module that reads it
            readers = (use.node for value in node.outputs for use in value.uses())
            scopes[node] = next((scopes[one] for one in readers if scopes.get(one)), "")
    for number, node in enumerate(nodes):
        node.name = f"{scopes[node] or 'graph'}/{node.op_type}_{number}"


def _scope(node: Any) -> str:
    """The path of the module that a node comes from, such as `bert.encoder.layer.0.output.dense`."""
    scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    return scopes[-2] if len(scopes) > 1 else ""


def unit_of(node_name: str) -> str:
    """The part of the model that a node belongs to: a block of a layer, or what is outside of the layers."""
    scope = node_name.partition("/")[0]
    block = re.match(r".*?\.\d+(\.\w+|$)", scope)
    return block[0] if block else ".".join(scope.split(".")[:2])


@torch.inference_mode()
def dry_run(model: PreTrainedModel, classifier: OnnxClassifier, lengths: Sequence[int]) -> None:
    """Compare a graph with its model on texts of these lengths, one alone and two with padding.

    Raises:
        ModelError: The graph fails, or its logits are others.
    """
    generator = torch.Generator().manual_seed(0)
    for length in lengths:
        for texts in (1, 2):
            ids = torch.randint(5, model.config.vocab_size, (texts, length), generator=generator)
            inputs = model_inputs(model, ids)
            inputs["attention_mask"][1:, (length + 1) // 2 :] = 0
            expected = model(**inputs).logits
            found = classifier(inputs["input_ids"], inputs["attention_mask"]).logits
            far = difference(expected, found, inputs["attention_mask"])
            if not far <= TOLERANCE:
                raise ModelError(
                    f"The exported graph does not compute what the model does: on {texts} texts of "
                    f"{length} tokens its logits differ by {far:.2g}, of {TOLERANCE:.0e} allowed."
                )


def difference(expected: Tensor, found: Tensor, attention_mask: Tensor) -> float:
    """The largest relative difference of two models' logits, of (B, C) or (B, T, C), padding apart.

    It is infinite where one of them is not a number.
    """
    far = (expected - found).abs() / expected.abs().clamp(min=1)
    if far.dim() == 3:
        far = far[attention_mask.bool()]
    return float(far.nan_to_num(nan=math.inf).max())
