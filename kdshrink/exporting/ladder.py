"""The schemes of a precision tried in turn, until one passes the gate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..data.encoding import Collator, encode, examples_at
from ..data.load import TaskData
from ..data.sampling import language_codes
from ..evaluation.evaluator import Evaluator
from ..progress import Progress
from .gate import Agreement, Gate, Verdict
from .graph import size_of
from .half import Half, overflowing
from .quantization import SCHEMES
from .runtime import FILES, OnnxClassifier, Precision, weights_beside
from .schemes import Inputs, Scheme, units
from .smoothing import smooth

SAMPLE = 320
"""Texts that calibrate activations and tell which parts suffer, over all languages together."""
_BATCH = 16
_MOST_KEPT = 0.5
"""The largest share of the parts that is kept in fp32: beyond it the file is hardly smaller."""


@dataclass(frozen=True)
class SampleTexts:
    """A few hundred texts, in batches of one language each.

    Attributes:
        batches: For each language the inputs of its batches: `input_ids` and `attention_mask`, (B, T).
    """

    batches: Mapping[str, Sequence[Mapping[str, Tensor]]]

    @classmethod
    def draw(
        cls, data: TaskData, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> SampleTexts:
        """Take as many texts of each language, evenly over the training split (or what there is)."""
        table = data.splits.get("train", next(iter(data.splits.values())))
        codes, names = language_codes(table)
        collate = Collator(int(tokenizer.pad_token_id))
        most = -(-SAMPLE // len(names))
        batches = {}
        for code, name in enumerate(names):
            rows = np.flatnonzero(codes == code)
            rows = rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)]
            encoded = encode(
                table.select(rows), tokenizer, task=data.task, max_length=max_length, label_ids=None
            ).select_columns(["input_ids"])
            order = np.arange(len(rows))
            parts = [order[begin : begin + _BATCH] for begin in range(0, len(rows), _BATCH)]
            batches[name] = [collate(examples_at(encoded, part)) for part in parts]
        return cls(batches)

    def for_graph(self, classifier: OnnxClassifier) -> list[Inputs]:
        """The same as a graph's own inputs."""
        return [classifier.inputs(**batch) for each in self.batches.values() for batch in each]

    def logits(self, classifier: OnnxClassifier) -> dict[str, Tensor]:
        """A graph's log probabilities by language, (N, C): of each text, or of each of its tokens."""
        found = {}
        for name, batches in self.batches.items():
            rows = []
            for batch in batches:
                logits = classifier(**batch).logits
                if logits.dim() == 3:
                    logits = logits[batch["attention_mask"].bool()]
                rows.append(logits.log_softmax(-1))
            found[name] = torch.cat(rows)
        return found


def divergence(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> float:
    """The mean Kullback-Leibler divergence from the fp32 predictions, of the language where it is largest.

    It is infinite where a prediction is not a number.
    """
    means = [(row.exp() * (row - found[name])).sum(-1).mean() for name, row in expected.items()]
    return float(torch.stack(means).nan_to_num(nan=math.inf).max())


class Ladder:
    """Finds the first scheme of a precision whose graph passes the gate.

    Args:
        graph: The graph in fp32.
        folder: Where graphs are tried, and removed again.
    """

    def __init__(
        self,
        precision: Precision,
        graph: Path,
        folder: Path,
        gate: Gate,
        evaluator: Evaluator,
        texts: SampleTexts,
        progress: Progress,
    ) -> None:
        self.precision, self.graph, self.folder = precision, graph, folder
        self.gate, self.evaluator, self.texts = gate, evaluator, texts
        self.progress = progress
        self.verdicts: list[Verdict] = []
        self._fp32 = OnnxClassifier(graph)
        self._feeds = texts.for_graph(self._fp32)
        self._expected = texts.logits(self._fp32)

    def climb(self) -> Path | None:
        """Try each scheme, and then the best of them with ever more parts kept in fp32.

        Returns:
            The graph that passed, in the folder; None if none did. `verdicts` has all that were tried.
        """
        for scheme in self._schemes():
            if found := self._try(scheme):
                return found
        best = min(self.verdicts, key=lambda verdict: verdict.loss).scheme
        parts = units(self.graph)
        most = int(_MOST_KEPT * len(parts)) - len(best.kept)
        if most < 1:
            return None
        order = self._by_harm(best, [part for part in parts if part not in best.kept])
        count = 1
        while count <= most:
            if found := self._try(best.keeping(order[:count])):
                return found
            count *= 2
        return None

    def _schemes(self) -> Sequence[Scheme]:
        if self.precision == "int8":
            return SCHEMES
        self.progress("look for overflows", 0, None, {})
        return [Half(title="half precision", kept=tuple(overflowing(self.graph, self._feeds)))]

    def _try(self, scheme: Scheme) -> Path | None:
        path = self.folder / FILES[self.precision]
        classifier = self._written(scheme, path)
        # Beside fp32 it takes twice as long; logits of int8 are expected to differ.
        agreement = Agreement(self._fp32, classifier) if self.precision == "fp16" else None
        scores = self.evaluator.score(agreement or classifier, self._named(f"score {scheme.name}"))
        difference = None if agreement is None else agreement.largest
        self.verdicts.append(self.gate.judge(scheme, scores, size_of(path), difference))
        return path if self.verdicts[-1].passed else None

    def _written(self, scheme: Scheme, path: Path) -> OnnxClassifier:
        scheme.write(self._smoothed if scheme.smoothed else self.graph, path, self._feeds)
        return OnnxClassifier(path)

    @cached_property
    def _smoothed(self) -> Path:
        """The graph in fp32 with outliers of the activations moved into the weights."""
        path = self.folder / "smoothed.onnx"
        smooth(self.graph, path, self._feeds)
        return path

    def _by_harm(self, scheme: Scheme, parts: Sequence[str]) -> list[str]:
        """These parts, first the one that hurts most: the predictions without it are the nearest."""
        path = self.folder / "left_out.onnx"
        left: dict[str, float] = {}
        for number, part in enumerate(parts, 1):
            classifier = self._written(scheme.keeping([part]), path)
            left[part] = divergence(self._expected, self.texts.logits(classifier))
            self.progress("leave one part out", number, len(parts), {})
        for file in (path, weights_beside(path)):
            file.unlink(missing_ok=True)
        return sorted(parts, key=lambda part: left[part])

    def _named(self, what: str) -> Progress:
        def tell(_: str, done: int, total: int | None, figures: Mapping[str, float]) -> None:
            self.progress(what, done, total, figures)

        return tell
