"""An ONNX graph in half precision, for GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .graph import computed, save_graph, unit_of
from .libraries import quiet
from .runtime import weights_beside
from .schemes import Inputs, Scheme

if TYPE_CHECKING:
    import onnx_ir

LARGEST_VALUE = 2.0**15
"""What a value of the graph may be: float16 ends at 65504, so that the sum of two such values fits."""
_MASK = 1e30
"""Larger values than this are an attention mask's, which becomes float16's own lowest number."""


@dataclass(frozen=True, kw_only=True)
class Half(Scheme):
    """Weights and activations in float16, inputs and logits as they were."""

    precision = "fp16"

    def write(self, graph: Path, target: Path, texts: Sequence[Inputs]) -> None:
        """Write a graph in half precision; the texts are not read.

        Numbers that become integers, such as distances of positions, are still computed in float32.
        """
        import onnx
        import onnx_ir
        from onnx_ir.passes.common import RemoveUnusedNodesPass
        from onnxruntime.transformers.float16 import convert_float_to_float16

        nodes = onnx_ir.load(graph).graph
        kept = {str(node.name) for node in nodes if unit_of(str(node.name)) in self.kept}
        # The types of values are inferred from the file where one message cannot hold the weights.
        large = weights_beside(graph).is_file()
        with quiet():
            half = convert_float_to_float16(
                str(graph) if large else onnx.load(graph),
                keep_io_types=True,
                node_block_list=[*kept, *_before_integers(nodes)],
            )
            program = onnx_ir.from_proto(half)
        program.graph.sort()  # the converter's own nodes stand behind what reads them
        _without_detours(program.graph)
        RemoveUnusedNodesPass()(program)
        save_graph(program, target)


def overflowing(graph: Path, texts: Sequence[Inputs]) -> list[str]:
    """The parts of a graph that have or read weights or values which float16 does not hold, in its order.

    The values are those in float32: where a CPU computes several operations in float32 one after the other,
    an overflow between them would not show.

    Args:
        graph: A file of `write_graph`.
        texts: The graph's inputs for a few hundred texts, in batches.
    """
    import onnx_ir

    program = onnx_ir.load(graph)
    largest: dict[str, float] = {}
    for node in program.graph:
        tensors = (value.const_value for value in node.inputs if value is not None)
        values = [_largest(one.numpy()) for one in tensors if one is not None and _is_float(one)]
        part = unit_of(str(node.name))
        largest[part] = max([largest.get(part, 0.0), *values])
    probes = _add_probes(program.graph)
    for found in computed(program, [*probes], texts, graph.parent):
        for parts, value in zip(probes.values(), found, strict=True):
            largest |= {part: max(largest[part], float(value)) for part in parts}
    return [part for part, value in largest.items() if value > LARGEST_VALUE]


def _is_float(tensor: Any) -> bool:
    return tensor.dtype.is_floating_point() and tensor.size > 0


def _largest(values: np.ndarray) -> float:
    """The largest absolute value, masks apart."""
    sizes = np.abs(values)
    return float(sizes.max(initial=0, where=sizes < _MASK))


def _add_probes(graph: onnx_ir.Graph) -> dict[onnx_ir.Value, set[str]]:
    """Add to a graph the largest absolute value, masks apart, that each node in floating point gives.

    Returns:
        The parts of the model that compute or read what each of these values is of.
    """
    import onnx_ir

    probes = {}
    for node in [*graph]:
        value = node.outputs[0]
        if value.dtype != onnx_ir.DataType.FLOAT:
            continue
        parts = {unit_of(str(one.name)) for one in (node, *value.consumers())}
        mask, zero = (
            onnx_ir.node("Constant", [], {"value": onnx_ir.tensor(number, onnx_ir.DataType.FLOAT)})
            for number in (_MASK, 0.0)
        )
        size = onnx_ir.node("Abs", [value])
        below = onnx_ir.node("Less", [*size.outputs, *mask.outputs])
        kept = onnx_ir.node("Where", [*below.outputs, *size.outputs, *zero.outputs])
        largest = onnx_ir.node("ReduceMax", [*kept.outputs], {"keepdims": 0})
        graph.insert_after(node, [mask, zero, size, below, kept, largest])
        (found,) = largest.outputs
        found.name, found.dtype, found.shape = (
            f"{value.name}/largest",
            value.dtype,
            onnx_ir.Shape([]),
        )
        probes[found] = parts
    return probes


def _before_integers(graph: onnx_ir.Graph) -> list[str]:
    """Names of the nodes in floating point whose results become integers."""
    import onnx_ir

    found: dict[str, None] = {}
    ends = [node for node in graph if node.op_type == "Cast" and _is_integer(node.outputs[0])]
    values = [value for node in ends for value in node.inputs]
    while values:
        value = values.pop()
        if value is None or value.dtype != onnx_ir.DataType.FLOAT:
            continue
        node = value.producer()
        if node is None or node.name in found:
            continue
        found[str(node.name)] = None
        values += node.inputs
    return [*found]


def _is_integer(value: onnx_ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_integer()


def _without_detours(graph: onnx_ir.Graph) -> None:
    """Pass on in float32 what is computed and read in it: the converter rounds it in between."""
    import onnx_ir

    for node in graph:
        before = node.inputs[0].producer() if node.op_type == "Cast" and node.inputs[0] else None
        if before is not None and before.op_type == "Cast" and before.inputs[0]:
            kinds = before.inputs[0].dtype, before.outputs[0].dtype
            if kinds != (onnx_ir.DataType.FLOAT, onnx_ir.DataType.FLOAT16):
                continue
            (value,) = node.outputs
            if value.dtype == kinds[0] and not value.is_graph_output():
                value.replace_all_uses_with(before.inputs[0])
            else:
                node.replace_input_with(0, before.inputs[0])
