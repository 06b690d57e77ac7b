"""Rewrites of a graph that onnxruntime runs faster on CPUs, in fp32 and in int8."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_ir


def rewrite_for_cpu(program: onnx_ir.Model) -> None:
    """Rewrite what the exporter leaves slower than it need be; the graph computes the same."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    for node in list(program.graph):
        if node.op_type == "LayerNormalization":
            _sum_before(node)
        elif node.op_type == "Softmax":
            _bound_masked_scores(node)
        elif node.op_type == "Transpose":
            _transpose_weights(node)
    _cut_relative_positions(program.graph)
    RemoveUnusedNodesPass()(program)


def add_constant(graph: Any, name: str, array: np.ndarray) -> Any:
    """A new constant of a graph."""
    import onnx_ir

    tensor = onnx_ir.tensor(array, name=name)
    value = onnx_ir.Value(name=name, const_value=tensor)
    value.dtype = tensor.dtype
    graph.initializers.add(value)
    return value


def _sum_before(norm: Any) -> None:
    """Let a LayerNormalization read a `Sum` where it read an `Add`.

    onnxruntime fuses an `Add` with the normalisation when it loads the graph, into an operation whose CPU kernel
    is 3.4 times as slow as the two.
    """
    import onnx_ir

    add = norm.inputs[0].producer()
    if add is None or add.op_type != "Add":
        return
    total = onnx_ir.node("Sum", add.inputs)
    total.outputs[0].dtype = add.outputs[0].dtype
    total.metadata_props.update(add.metadata_props)  # which module it is of
    onnx_ir.convenience.replace_nodes_and_values(
        add.graph, add, [add], [total], add.outputs, total.outputs
    )


def _bound_masked_scores(softmax: Any) -> None:
    """Let masked attention scores be 30 below the least score, where they were the lowest float.

    From further below, onnxruntime's CPU kernel gets denormal numbers, and computes with them three times as long as
    with others. exp(-30) adds nothing to a sum of float32 that has a 1, however many keys are masked.
    """
    import onnx_ir

    masked = softmax.inputs[0]
    scores = _masked_scores(masked.producer())
    if scores is None:
        return
    below = add_constant(softmax.graph, f"{scores.name}_below", np.array(30, np.float32))
    least = onnx_ir.node("ReduceMin", [scores], {"keepdims": 0})
    bound = onnx_ir.node("Sub", [least.outputs[0], below])
    bounded = onnx_ir.node("Max", [masked, bound.outputs[0]])
    for node in (least, bound, bounded):
        node.outputs[0].dtype = masked.dtype
        node.metadata_props.update(softmax.metadata_props)
    softmax.graph.insert_before(softmax, [least, bound, bounded])
    softmax.replace_input_with(0, bounded.outputs[0])


def _masked_scores(node: Any) -> Any:
    """The scores that a node masks, by adding a mask or by choosing a constant instead; None for other nodes."""
    if node is None:
        return None
    if node.op_type == "Where" and node.inputs[1].const_value is not None:
        return node.inputs[2]
    if node.op_type == "Add":
        scores, mask = node.inputs
        if mask.producer() is not None and mask.producer().op_type == "Where":
            return scores
    return None


def _transpose_weights(node: Any) -> None:
    """Store a matrix of weights as the products read it: only such a constant becomes int8.

    The exporter transposes at run time what several products share, as DeBERTa's projections.
    """
    weights = node.inputs[0].const_value
    if weights is None:
        return
    array = np.ascontiguousarray(weights.numpy().transpose(node.attributes.get_ints("perm")))
    node.outputs[0].replace_all_uses_with(
        add_constant(node.graph, f"{node.inputs[0].name}_transposed", array)
    )


def _cut_relative_positions(graph: Any) -> None:
    """Let DeBERTa score the relative positions that a batch has, where it scores all of them, 512 as a rule.

    Scores of the queries (or keys) x with projected positions P are gathered by the distance of two tokens:
    `GatherElements(x @ Transpose(Tile(P)), index)`. No row of P before the least index or behind the greatest is read.
    """
    import onnx_ir

    one = add_constant(graph, "one", np.array([1], np.int64))  # a number, an axis, a shape
    windows: dict[Any, tuple[Any, Any]] = {}
    for gather in list(graph):
        tile = _tiled_positions(gather)
        index = gather.inputs[1].producer() if tile is not None else None
        if index is None or index.op_type != "Expand":
            continue
        tape = onnx_ir.tape.Tape()
        if index not in windows:
            least, greatest = (
                tape.op("Reshape", [tape.op(kind, [index.inputs[0]], {"keepdims": 0}), one])
                for kind in ("ReduceMin", "ReduceMax")
            )
            windows[index] = least, tape.op("Add", [greatest, one])
            index.replace_input_with(0, tape.op("Sub", [index.inputs[0], least]))
        positions = tile.inputs[0].producer().inputs[0]
        tile.replace_input_with(0, tape.op("Slice", [positions, *windows[index], one]))
        for node in tape.nodes:
            node.metadata_props.update(gather.metadata_props)
        graph.insert_before(tile, tape.nodes)
    if windows:
        graph.sort()  # indices may be computed behind positions


def _tiled_positions(gather: Any) -> Any:
    """The Tile of DeBERTa's projected positions, (heads, positions, head size), whose scores a node gathers, or None."""
    tile, node = None, gather
    for kind, read in (("GatherElements", 0), ("MatMul", 1), ("Transpose", 0), ("Tile", 0)):
        if node is None or node.op_type != kind:
            return None
        tile, node = node, node.inputs[read].producer()
    return tile if node is not None and node.op_type == "Expand" else None
