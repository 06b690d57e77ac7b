"""An ONNX graph in int8, by one of several schemes of onnxruntime's quantiser."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from .graph import save_graph, unit_of
from .libraries import quiet
from .smoothing import smooth

_QUANTIZED = ("MatMul", "Gemm", "Gather")
"""The operations whose weights become int8; the rest of a classifier has hardly any."""


@dataclass(frozen=True)
class Scheme:
    """How a graph is quantised.

    Attributes:
        name: What reports call it.
        per_channel: Whether each column of a weight has a scale of its own, or one serves them all.
        reduce_range: Whether weights use 7 bits, since CPUs without VNNI saturate where two products of 8
            bits are summed in 16.
        smoothed: Whether outliers of the activations are first moved into the weights (`smoothing`).
        static: Whether the scales of activations are set by calibration texts, or anew for each batch.
        kept: The parts that stay in float32, as `units` names them.
    """

    name: str
    per_channel: bool = True
    reduce_range: bool = False
    smoothed: bool = False
    static: bool = False
    kept: tuple[str, ...] = ()

    def keeping(self, kept: Sequence[str]) -> Scheme:
        """The scheme with these parts left in float32."""
        parts = "1 part" if len(kept) == 1 else f"{len(kept)} parts"
        return replace(self, name=f"{self.name}, {parts} in fp32", kept=tuple(kept))


SCHEMES = (
    Scheme("dynamic, per tensor", per_channel=False),
    Scheme("dynamic, per channel"),
    Scheme("dynamic, per channel, smoothed", smoothed=True),
    Scheme("dynamic, per channel, smoothed, 7 bits", smoothed=True, reduce_range=True),
    Scheme("static, per channel", static=True),
)
"""From what keeps the file smallest and fastest to what asks more of it."""

Inputs = Mapping[str, np.ndarray]


def quantize(graph: Path, target: Path, scheme: Scheme, texts: Sequence[Inputs]) -> None:
    """Write a graph in int8.

    Args:
        graph: A file of `write_graph`.
        texts: The graph's inputs for the calibration texts, in batches; a smoothed or static scheme reads them.
    """
    import onnx_ir
    from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static

    settings: dict[str, Any] = {
        "op_types_to_quantize": list(_QUANTIZED),
        "per_channel": scheme.per_channel,
        "reduce_range": scheme.reduce_range,
        "weight_type": QuantType.QInt8,
        "nodes_to_exclude": [
            node for node in _weighted_nodes(graph) if unit_of(node) in scheme.kept
        ],
        # Products of two activations, in attention, stay as they are.
        "extra_options": {"MatMulConstBOnly": True},
    }
    with quiet(), TemporaryDirectory(dir=target.parent) as folder:
        raw = Path(folder) / target.name
        if scheme.smoothed:
            smooth(graph, graph := Path(folder) / graph.name, texts)
        large = graph.stat().st_size + _beside(graph) > 1000**3
        settings["use_external_data_format"] = large
        if scheme.static:
            quantize_static(graph, raw, _Feed(texts), activation_type=QuantType.QUInt8, **settings)
        else:
            quantize_dynamic(graph, raw, **settings)
        save_graph(onnx_ir.load(raw), target)


def units(graph: Path) -> list[str]:
    """The parts of a graph that can be left in float32, in its order: embeddings, layers, the head."""
    return [*dict.fromkeys(map(unit_of, _weighted_nodes(graph)))]


def _weighted_nodes(graph: Path) -> Iterator[str]:
    """Names of the nodes that a quantiser turns to int8: those with a matrix among their inputs."""
    import onnx_ir

    for node in onnx_ir.load(graph).graph:
        if node.op_type in _QUANTIZED and any(_is_matrix(value) for value in node.inputs):
            yield str(node.name)


def _is_matrix(value: Any) -> bool:
    tensor = None if value is None else value.const_value
    return tensor is not None and len(tensor.shape) == 2 and tensor.dtype.is_floating_point()


def _beside(graph: Path) -> int:
    """Bytes of the weights that are not inside the file."""
    return sum(path.stat().st_size for path in graph.parent.glob(f"{graph.name}_data"))


class _Feed:
    """Calibration texts as `quantize_static` asks for them."""

    def __init__(self, texts: Sequence[Inputs]) -> None:
        self._texts = iter(texts)

    def get_next(self) -> Inputs | None:
        return next(self._texts, None)
