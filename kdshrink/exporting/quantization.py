"""An ONNX graph in int8, by one of several schemes of onnxruntime's quantiser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from .graph import save_graph, size_of, unit_of
from .libraries import quiet
from .rewrites import add_constant
from .schemes import WEIGHTED, Inputs, Scheme, is_matrix, weighted_nodes

if TYPE_CHECKING:
    import onnx_ir

_LARGEST_MESSAGE = 1000**3
"""Bytes of a graph that the quantiser keeps in one message: it holds fp32 and int8 for a while."""


@dataclass(frozen=True, kw_only=True)
class Int8(Scheme):
    """Weights, and what they are multiplied with, in int8.

    Attributes:
        per_channel: Whether each column of a weight and each row of a table of embeddings has a scale of its
            own, or one serves them all.
        reduce_range: Whether weights use 7 bits, since CPUs without VNNI saturate where two products of 8
            bits are summed in 16.
        static: Whether the scales of activations are set by calibration texts, or anew for each batch.
    """

    precision = "int8"
    per_channel: bool = True
    reduce_range: bool = False
    static: bool = False

    def write(self, graph: Path, target: Path, texts: Sequence[Inputs]) -> None:
        """Write a graph in int8; only a static scheme reads the texts."""
        import onnx_ir
        from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static

        settings: dict[str, Any] = {
            # A table of embeddings would get one scale alone.
            "op_types_to_quantize": [
                kind for kind in WEIGHTED if kind != "Gather" or not self.per_channel
            ],
            "per_channel": self.per_channel,
            "reduce_range": self.reduce_range,
            "weight_type": QuantType.QInt8,
            "nodes_to_exclude": [
                node for node in weighted_nodes(graph) if unit_of(node) in self.kept
            ],
            # Products of two activations, in attention, stay as they are.
            "extra_options": {"MatMulConstBOnly": True},
            "use_external_data_format": size_of(graph) > _LARGEST_MESSAGE,
        }
        with quiet(), TemporaryDirectory(dir=target.parent) as folder:
            raw = Path(folder) / target.name
            if self.static:
                feed = _Feed(texts)
                quantize_static(graph, raw, feed, activation_type=QuantType.QUInt8, **settings)
            else:
                quantize_dynamic(graph, raw, **settings)
            program = onnx_ir.load(raw)
            if self.per_channel:
                _quantize_tables(program, self.kept)
            save_graph(program, target)


SCHEMES = (
    Int8(title="dynamic, per tensor", per_channel=False),
    Int8(title="dynamic, per channel"),
    Int8(title="dynamic, per channel, smoothed", smoothed=True),
    Int8(title="dynamic, per channel, smoothed, 7 bits", smoothed=True, reduce_range=True),
    Int8(title="static, per channel", static=True),
)
"""From what keeps the file smallest and fastest to what asks more of it."""


def _quantize_tables(program: onnx_ir.Model, kept: Sequence[str]) -> None:
    """Turn tables of embeddings into int8, each row with a scale of its own, but for those of parts in fp32."""
    import onnx_ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    for node in list(program.graph):
        value: Any = node.inputs[0] if node.op_type == "Gather" else None
        if not is_matrix(value) or unit_of(str(node.name)) in kept:
            continue
        table = value.const_value.numpy()
        largest = np.abs(table).max(axis=1, keepdims=True)
        scales = np.where(largest > 0, largest / 127, 1).astype(table.dtype)
        rows = np.rint(table / scales).astype(np.int8)
        numbers, factors = (
            add_constant(program.graph, f"{value.name}_{what}", array)
            for what, array in (("quantized", rows), ("scale", scales))
        )
        tape = onnx_ir.tape.Tape()
        ids = node.inputs[1]
        found = tape.op("Cast", [tape.op("Gather", [numbers, ids])], {"to": onnx_ir.DataType.FLOAT})
        row = tape.op("Mul", [found, tape.op("Gather", [factors, ids])])
        onnx_ir.convenience.replace_nodes_and_values(
            program.graph, node, [node], tape.nodes, node.outputs, [row]
        )
    RemoveUnusedNodesPass()(program)


class _Feed:
    """Calibration texts as `quantize_static` asks for them."""

    def __init__(self, texts: Sequence[Inputs]) -> None:
        self._texts = iter(texts)

    def get_next(self) -> Inputs | None:
        return next(self._texts, None)
