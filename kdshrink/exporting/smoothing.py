"""Outliers of the activations moved into the weights, before both become int8.

A few channels of an encoder's hidden states are many times the others, and in int8 one scale serves all
channels of an activation: the others are then rounded to a handful of steps. Divided by a factor of its own,
each channel fits, and the weights that it meets are multiplied by the factor: the product stays the same
(SmoothQuant: Xiao et al. 2023, arXiv:2211.10438, eq. 3 and 4).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .graph import computed, save_graph
from .rewrites import add_constant
from .schemes import Inputs, is_matrix

if TYPE_CHECKING:
    import onnx_ir

_MIGRATION = 0.8
"""How much of an outlier the weights take over, 0 to 1; α of eq. 4."""


def smooth(graph: Path, target: Path, texts: Sequence[Inputs]) -> None:
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
        if node.op_type == "MatMul" and is_matrix(node.inputs[1]):
            readers[node.inputs[0]].append(node)
    largest = _largest(program, list(readers), target.parent, texts)
    for (value, products), activations in zip(readers.items(), largest, strict=True):
        weights = np.max([np.abs(_weights(node)).max(axis=1) for node in products], axis=0)
        factor = _factor(activations, weights)
        inverse = add_constant(program.graph, f"{value.name}_smooth", 1 / factor)
        divided = onnx_ir.node("Mul", [value, inverse])
        divided.name = f"{products[0].name}/Mul"
        program.graph.insert_before(products[0], divided)
        for node in products:
            name, scaled = f"{node.inputs[1].name}_smooth", factor[:, None] * _weights(node)
            node.replace_input_with(0, divided.outputs[0])
            node.replace_input_with(1, add_constant(program.graph, name, scaled))
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
    program: onnx_ir.Model, values: Sequence[onnx_ir.Value], folder: Path, texts: Sequence[Inputs]
) -> list[np.ndarray]:
    """The largest absolute value of each channel, of each of some activations over the texts."""
    found = [np.zeros(())] * len(values)
    for activations in computed(program, values, texts, folder):
        channels = [np.abs(one).reshape(-1, one.shape[-1]).max(axis=0) for one in activations]
        found = [np.maximum(*pair) for pair in zip(found, channels, strict=True)]
    return found


def _weights(product: onnx_ir.Node) -> np.ndarray:
    """The matrix (in, out) that a MatMul multiplies with."""
    value: Any = product.inputs[1]
    return value.const_value.numpy()
