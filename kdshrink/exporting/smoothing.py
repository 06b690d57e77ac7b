"""Outliers of the activations moved into the weights, before both become int8.

A few channels of an encoder's hidden states are many times the others, and in int8 one scale serves all
channels of an activation: the others are then rounded to a handful of steps. Divided by a factor of its own,
each channel fits, and the weights that it meets are multiplied by the factor: the product stays the same
(SmoothQuant: Xiao et al. 2023, arXiv:2211.10438, eq. 3 and 4).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .graph import save_graph
from .runtime import open_session

_MIGRATION = 0.8
"""How much of an outlier the weights take over, 0 to 1; α of eq. 4."""


def smooth(graph: Path, target: Path, texts: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Write a graph that computes the same, with smaller outliers in what its linear maps read.

    Args:
        graph: A file of `write_graph`.
        texts: The graph's inputs for a few hundred texts, in batches: they tell how large each channel gets.
    """
    import onnx_ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    program = onnx_ir.load(graph)
    readers: dict[Any, list[Any]] = defaultdict(list)
    for node in program.graph:
        if node.op_type == "MatMul" and _matrix(node) is not None:
            readers[node.inputs[0]].append(node)
    largest = _largest(program, list(readers), target, texts)
    for value, products in readers.items():
        weights = np.max([np.abs(_matrix(node)).max(axis=1) for node in products], axis=0)
        factor = _factor(largest[value.name], weights)
        divided = onnx_ir.node(
            "Mul", [value, _constant(program, f"{value.name}_smooth", 1 / factor)]
        )
        divided.name = f"{products[0].name}/Mul"
        program.graph.insert_before(products[0], divided)
        for node in products:
            name, scaled = f"{node.inputs[1].name}_smooth", factor[:, None] * _matrix(node)
            node.replace_input_with(0, divided.outputs[0])
            node.replace_input_with(1, _constant(program, name, scaled))
    RemoveUnusedNodesPass()(program)
    save_graph(program, target)


def _factor(activations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What each channel is divided by (eq. 4); 1 for a channel that is always 0.

    Args:
        activations, weights: The largest absolute value of each channel, (in,).
    """
    used = (activations > 0) & (weights > 0)
    factor = np.ones_like(weights)
    factor[used] = activations[used] ** _MIGRATION / weights[used] ** (1 - _MIGRATION)
    return factor


def _largest(
    program: Any, values: Sequence[Any], beside: Path, texts: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """The largest absolute value of each channel of some activations over the texts, by the activation's name."""
    outputs = list(program.graph.outputs)
    program.graph.outputs.extend(value for value in values if value not in outputs)
    path = beside.with_suffix(".activations.onnx")
    save_graph(program, path)
    del program.graph.outputs[len(outputs) :]
    session = open_session(path)
    names = [value.name for value in values]
    found: dict[str, np.ndarray] = {}
    for inputs in texts:
        for name, activation in zip(names, session.run(names, dict(inputs)), strict=True):
            channels = np.abs(activation).reshape(-1, activation.shape[-1]).max(axis=0)
            found[name] = np.maximum(found.get(name, channels), channels)
    del session
    for file in beside.parent.glob(f"{path.stem}*"):
        file.unlink()
    return found


def _matrix(node: Any) -> Any:
    """The constant matrix (in, out) that a MatMul multiplies with, if it has one."""
    tensor = node.inputs[1].const_value
    return tensor.numpy() if tensor is not None and len(tensor.shape) == 2 else None


def _constant(program: Any, name: str, array: np.ndarray) -> Any:
    import onnx_ir

    value = onnx_ir.Value(name=name, const_value=onnx_ir.tensor(array, name=name))
    program.graph.initializers.add(value)
    return value
