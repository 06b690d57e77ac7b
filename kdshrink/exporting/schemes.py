"""Ways to make a graph smaller, and the parts of it that may be left as they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from .graph import unit_of
from .runtime import Precision

WEIGHTED = ("MatMul", "Gemm", "Gather")
"""The operations with nearly all of a classifier's weights."""

Inputs = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Scheme(ABC):
    """How a graph is made smaller.

    Attributes:
        precision: That of the graphs it makes.
        title: What reports call it, the parts apart.
        smoothed: Whether it is applied to the graph with outliers of the activations moved into the weights
            (`smoothing`).
        kept: The parts that stay in float32, as `units` names them.
    """

    precision: ClassVar[Precision]
    title: str
    smoothed: bool = False
    kept: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What reports call it."""
        if not self.kept:
            return self.title
        parts = "1 part" if len(self.kept) == 1 else f"{len(self.kept)} parts"
        return f"{self.title}, {parts} in fp32"

    def keeping(self, parts: Sequence[str]) -> Scheme:
        """The scheme with these parts left in float32 too."""
        return replace(self, kept=(*self.kept, *parts))

    @abstractmethod
    def write(self, graph: Path, target: Path, texts: Sequence[Inputs]) -> None:
        """Write a graph by this scheme.

        Args:
            graph: A file of `write_graph`.
            texts: The graph's inputs for a few hundred texts, in batches.
        """


def units(graph: Path) -> list[str]:
    """The parts of a graph that can be left in float32, in its order: embeddings, blocks of layers, the head."""
    return [*dict.fromkeys(map(unit_of, weighted_nodes(graph)))]


def weighted_nodes(graph: Path) -> Iterator[str]:
    """Names of the nodes with a matrix of weights among their inputs."""
    import onnx_ir

    for node in onnx_ir.load(graph).graph:
        if node.op_type in WEIGHTED and any(is_matrix(value) for value in node.inputs):
            yield str(node.name)


def is_matrix(value: Any) -> bool:
    """Whether an input of a node is a matrix of weights."""
    tensor = None if value is None else value.const_value
    return tensor is not None and len(tensor.shape) == 2 and tensor.dtype.is_floating_point()
