"""The schemes of quantisation tried in turn, until one passes the gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from .gate import Gate, Verdict
from .quantization import SCHEMES, Inputs, Scheme, quantize, units
from .runtime import FILES, OnnxClassifier

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
    """The mean Kullback-Leibler divergence from the fp32 predictions, of the language where it is largest."""
    return max(
        float((row.exp() * (row - found[name])).sum(-1).mean()) for name, row in expected.items()
    )


class Ladder:
    """Finds the first scheme whose graph passes the gate.

    Args:
        graph: The graph in fp32.
        folder: Where graphs are tried, and removed again.
    """

    def __init__(
        self,
        graph: Path,
        folder: Path,
        gate: Gate,
        evaluator: Evaluator,
        texts: SampleTexts,
        progress: Progress,
    ) -> None:
        self.graph, self.folder = graph, folder
        self.gate, self.evaluator, self.texts = gate, evaluator, texts
        self.progress = progress
        self.verdicts: list[Verdict] = []
        fp32 = OnnxClassifier(graph)
        self._feeds = texts.for_graph(fp32)
        self._expected = texts.logits(fp32)

    def climb(self) -> Path | None:
        """Try each scheme, and then the best of them with ever more parts kept in fp32.

        Returns:
            The graph that passed, in the folder; None if none did. `verdicts` has all that were tried.
        """
        for scheme in SCHEMES:
            if found := self._try(scheme):
                return found
        best = min(self.verdicts, key=lambda verdict: verdict.loss).scheme
        order = self._by_harm(best)
        count = 1
        while count <= _MOST_KEPT * len(order):
            if found := self._try(best.keeping(order[:count])):
                return found
            count *= 2
        return None

    def _try(self, scheme: Scheme) -> Path | None:
        path = self.folder / FILES["int8"]
        classifier = self._quantized(scheme, path)
        scores = self.evaluator.score(classifier, self._named(f"score {scheme.name}"))
        self.verdicts.append(self.gate.judge(scheme, scores, path.stat().st_size))
        return path if self.verdicts[-1].passed else None

    def _quantized(self, scheme: Scheme, path: Path) -> OnnxClassifier:
        quantize(self.graph, path, scheme, self._feeds)
        return OnnxClassifier(path)

    def _by_harm(self, scheme: Scheme) -> list[str]:
        """The parts of the graph, first the one that hurts most: the predictions without it are the nearest."""
        path, parts = self.folder / "left_out.onnx", units(self.graph)
        left: dict[str, float] = {}
        for number, part in enumerate(parts, 1):
            classifier = self._quantized(scheme.keeping([part]), path)
            left[part] = divergence(self._expected, self.texts.logits(classifier))
            self.progress("leave one part out", number, len(parts), {})
        path.unlink()
        return sorted(parts, key=lambda part: left[part])

    def _named(self, what: str) -> Progress:
        def tell(_: str, done: int, total: int | None, figures: Mapping[str, float]) -> None:
            self.progress(what, done, total, figures)

        return tell
