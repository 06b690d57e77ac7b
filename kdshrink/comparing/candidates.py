"""The models that are compared: what their names mean, what is run, and what it takes on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..data.registry import Task
from ..data.tags import entity_types, scheme_of_labels
from ..errors import DataError, ModelError, UsageError, listed
from ..exporting.libraries import require_onnx
from ..exporting.runtime import (
    FOLDER,
    Precision,
    Runnable,
    load_runnable,
    onnx_file,
    weights_beside,
)
from ..models.source import Access, Source, find_classifier
from ..models.tensors import TensorReader
from ..models.whole import check_whole, make_shell

GRAPHS: Mapping[str, Precision] = {"onnx": "fp32", "fp16": "fp16", "int8": "int8"}
"""What may follow a model's name behind a #, and the precision of the graph that it means."""


@dataclass(frozen=True)
class Candidate:
    """A model that takes part.

    Attributes:
        name: As the user gave it.
        graph: The ONNX file that onnxruntime runs; None for the weights, which torch runs.
        weights: The files that are run.
        parameters: Of the model that the files hold.
    """

    name: str
    source: Source
    graph: Path | None
    weights: Sequence[Path]
    parameters: int

    @property
    def backend(self) -> str:
        return "torch" if self.graph is None else "onnxruntime"

    @property
    def file(self) -> str:
        """What is run, within the model's directory."""
        if self.graph is not None:
            return f"{FOLDER}/{self.graph.name}"
        more = f" and {len(self.weights) - 1} more" if len(self.weights) > 1 else ""
        return f"{self.weights[0].name}{more}"

    @property
    def bytes(self) -> int:
        """The size of the files that are run."""
        return sum(path.stat().st_size for path in self.weights)

    def load(self, device: torch.device) -> Runnable:
        """The model, ready to run (`ModelError` if it is damaged)."""
        assert self.source.task is not None
        return load_runnable(self.source, self.source.task, self.graph, device)


def parse_name(typed: str) -> tuple[str, Precision | None]:
    """A model's name, and the precision of its graph that is meant; None for its weights.

    Raises:
        UsageError: Something else follows the #.
    """
    name, mark, kind = typed.rpartition("#")
    if not mark or Path(typed).expanduser().is_dir():
        return typed, None
    if not name or kind not in GRAPHS:
        raise UsageError(
            f"MODELS {typed}: behind the # of a model's name there is onnx, fp16 or int8, for the graph that "
            "kdshrink export\nwrote to its directory, in fp32, fp16 or int8."
        )
    return name, GRAPHS[kind]


def find_candidates(
    names: Sequence[str], access: Access, renamed: Mapping[str, str]
) -> list[Candidate]:
    """Find the models and check that their files are whole, without loading their weights.

    Args:
        names: As typed: a model, or a model with #onnx, #fp16 or #int8.
        renamed: New names of their classes, by the old ones.

    Raises:
        ModelError: A model is not there or not whole, or has no head, or they are of different tasks.
        UsageError: Two names mean the same model.
        HubError: The Hub cannot be reached, or refuses.
    """
    found: dict[tuple[Path, Precision | None], Candidate] = {}
    for typed in names:
        name, precision = parse_name(typed)
        if precision is not None:
            require_onnx()
        source = find_classifier(name, access, renamed)
        place = source.directory.resolve(), precision
        if place in found:
            raise UsageError(
                f"MODELS: {found[place].name} and {typed} are the same model. Name each one once."
            )
        found[place] = _candidate(typed, source, precision)
    candidates = [*found.values()]
    first = candidates[0]
    for other in candidates[1:]:
        if other.source.task != first.source.task:
            raise ModelError(
                f"{first.name} classifies {_WHAT[first.source.task]}, and {other.name} "
                f"{_WHAT[other.source.task]}. Only models of one task can be compared."
            )
    return candidates


_WHAT = {"sequence": "texts", "token": "words", None: "nothing"}


def _candidate(typed: str, source: Source, precision: Precision | None) -> Candidate:
    task = source.task
    if task is None:
        raise ModelError(
            f"{typed} has no head: only classifiers can be compared.\n"
            "Make it one first, with kdshrink finetune."
        )
    if precision is None:
        check_whole(source, task)
        graph = None
        with TensorReader(source.directory) as reader:
            weights = reader.files
    else:
        graph = onnx_file(source, precision)
        weights = [path for path in (graph, weights_beside(graph)) if path.is_file()]
    return Candidate(typed, source, graph, weights, make_shell(source, task).num_parameters())


def require_same_labels(candidates: Sequence[Candidate], task: Task) -> None:
    """Raise DataError unless all models have the same classes, in any order; for entities the same types."""
    first = candidates[0]
    expected = _classes(first.source, task)
    for other in candidates[1:]:
        classes = _classes(other.source, task)
        for left, right, more in (
            (first, other, expected - classes),
            (other, first, classes - expected),
        ):
            if more:
                raise DataError(
                    f"{left.name} has classes that {right.name} does not have: {listed(sorted(more))}.\n"
                    "Only models with the same classes can be compared; --label-map FILE renames them."
                )


def _classes(source: Source, task: Task) -> set[str]:
    scheme = scheme_of_labels(source.labels) if task == "token" else None
    return set(source.labels if scheme is None else entity_types(source.labels, scheme))
