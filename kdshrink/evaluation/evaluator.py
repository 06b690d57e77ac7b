"""Runs a model over tokenised examples and scores its predictions, pooled over languages and by language."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, distributed
from transformers import PreTrainedTokenizerBase

from ..data.batching import batches_by_length
from ..data.encoding import Collator, cut_off, encode, examples_at, token_counts
from ..data.labels import match_labels, names_in_data
from ..data.load import WHOLE_FILE, TaskData
from ..data.registry import Task
from ..data.sampling import language_codes
from ..data.tags import OUTSIDE, are_entities, entity_types, scheme_of_labels, to_iob2
from ..distributed import joined
from ..errors import DataError, ModelError
from ..models.devices import evaluation_precision, execution_on
from ..models.loading import fitting_length
from ..models.onednn import packed_linears
from ..models.source import Source
from ..progress import Progress, silent
from .metrics import Scores, entity_scores, text_scores
from .results import EvalResult, LanguageScore

_SHOWN = 80
"""Characters of a text in an error."""


@dataclass(frozen=True)
class Predictions:
    """A model's predictions, in the order of the examples.

    Attributes:
        classes: One class per example, or for token tasks one per word, the examples concatenated; -1
            for a word that was cut off.
        probabilities: The probability of each predicted class, float32; 0 for a word that was cut off.
        bounds: (n + 1,) where each example's predictions begin and end; None if each has one.
    """

    classes: np.ndarray
    probabilities: np.ndarray
    bounds: np.ndarray | None


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put every module in eval mode, and restore each module's former mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@torch.inference_mode()
def predict(
    model: torch.nn.Module,
    encoded: Dataset,
    *,
    task: Task,
    collate: Collator,
    batch_size: int | None,
    device: torch.device,
    shared: bool = True,
    progress: Progress = silent,
    what: str = "evaluate",
) -> Predictions:
    """Run a model over encoded examples, in batches of similar length, the longest first.

    Args:
        encoded: As `encoding.encode` makes it, for this model's tokenizer.
        shared: Whether the processes of a distributed run share the batches, and each gets all
            predictions: then all of them must call this.
        batch_size: The largest number of examples in a batch, fewer where they are long; None for as
            many as suit the device.

    Raises:
        ModelError: A logit is not finite.
    """
    total = len(encoded)
    bounds = _word_bounds(encoded) if task == "token" else None
    size = total if bounds is None else int(bounds[-1])
    classes, probabilities = np.full(size, -1, np.int32), np.zeros(size, np.float32)
    columns = ["input_ids", *(["positions"] if task == "token" else [])]
    examples = encoded.select_columns(columns)
    positions = execution_on(device).positions
    batches = batches_by_length(token_counts(encoded), tokens=positions, size=batch_size)[::-1]
    together = shared and distributed.is_available() and distributed.is_initialized()
    if together:
        batches = batches[distributed.get_rank() :: distributed.get_world_size()]
    done, share, first_bad = 0, sum(map(len, batches)), total
    with _evaluating(model), packed_linears(device), evaluation_precision(device):
        for rows in batches:
            batch = examples_at(examples, rows)
            inputs = {name: tensor.to(device) for name, tensor in collate(batch).items()}
            logits = model(**inputs).logits.float()
            if len(bad := rows[_not_finite(logits, inputs["attention_mask"])]):
                first_bad = int(bad.min())
                break
            best = logits.softmax(-1).max(-1)
            values, indices = best.values.cpu().numpy(), best.indices.cpu().numpy()
            if bounds is None:
                classes[rows], probabilities[rows] = indices, values
            else:
                words, there = _places(rows, batch, bounds)
                classes[words], probabilities[words] = indices[there], values[there]
            done += len(rows)
            progress(what, done * total // share, total, {})
    if together:
        first_bad = -int(joined(np.array([-first_bad]), device)[0])
    if first_bad < total:
        raise NotFiniteError(first_bad)
    if together:
        classes, probabilities = (joined(part, device) for part in (classes, probabilities))
    return Predictions(classes, probabilities, bounds)


def _places(
    rows: np.ndarray, examples: Sequence[Mapping[str, Any]], bounds: np.ndarray
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Match the words of a batch with their indices among all words.

    Args:
        rows: (B,) the indices of the examples.
        bounds: The index of each example's first word.

    Returns:
        (W,) the indices of the words among all words; and where their predictions are in the batch: the
        rows and the positions, each (W,).
    """
    words, lines, columns = [], [], []
    for line, row in enumerate(rows):
        positions = np.asarray(examples[line]["positions"])
        kept = np.flatnonzero(positions >= 0)
        words.append(bounds[row] + kept)
        lines.append(np.full(len(kept), line))
        columns.append(positions[kept])
    return np.concatenate(words), (np.concatenate(lines), np.concatenate(columns))


class NotFiniteError(ModelError):
    """A model's logits for an example are not finite."""

    def __init__(self, row: int) -> None:
        super().__init__(f"The model's prediction for example {row + 1} is not finite.")
        self.row = row


def _not_finite(logits: Tensor, attention_mask: Tensor) -> np.ndarray:
    """(B,) whether a text has logits that are not finite, at positions other than padding."""
    finite = logits.isfinite().all(-1)
    if finite.dim() == 2:
        finite = (finite | ~attention_mask.bool()).all(1)
    return ~finite.cpu().numpy()


def not_finite(who: str, table: Dataset, row: int) -> ModelError:
    """The error for a prediction that is not finite, with the text that it was for."""
    example = table[row]
    text = example["text"] if isinstance(example["text"], str) else " ".join(example["text"])
    return ModelError(
        f"{who} gives no finite prediction for text {row + 1} ({example['language']}): "
        f"{' '.join(text.split())[:_SHOWN]!r}.\n"
        "Its weights are damaged, or its activations overflow their type. Take an earlier checkpoint."
    )


def _word_bounds(encoded: Dataset) -> np.ndarray:
    """(n + 1,) where each example's words begin and end among all words."""
    counts = [
        len(positions)
        for batch in encoded.select_columns(["positions"]).iter(1000)
        for positions in batch["positions"]
    ]
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


@dataclass(frozen=True)
class Evaluator:
    """Scores models on one table of examples, tokenised once.

    Attributes:
        table: The examples, as in `TaskData.splits`.
        encoded: The same examples, tokenised.
        labels: Names of the data's labels.
        model_labels: Names of the model's classes, by id.
        split: The name of the split, for the result.
        tag_scheme: The scheme that entity tags were written in, for the result.
    """

    table: Dataset
    encoded: Dataset
    labels: Sequence[str]
    model_labels: Sequence[str]
    task: Task
    collate: Collator
    batch_size: int | None
    device: torch.device
    split: str | None = None
    tag_scheme: str | None = None

    @property
    def scores_entities(self) -> bool:
        """Whether the labels are entity tags, scored by entity F1."""
        return self.task == "token" and are_entities(self.labels)

    def predict(self, model: torch.nn.Module, progress: Progress = silent) -> Predictions:
        try:
            return predict(
                model,
                self.encoded,
                task=self.task,
                collate=self.collate,
                batch_size=self.batch_size,
                device=self.device,
                progress=progress,
            )
        except NotFiniteError as error:
            raise not_finite("The model", self.table, error.row) from error

    def score(
        self, model: torch.nn.Module, progress: Progress = silent, *, per_class: bool = False
    ) -> EvalResult:
        began = time.perf_counter()
        predictions = self.predict(model, progress)
        seconds = time.perf_counter() - began
        return self.score_predictions(predictions, seconds, per_class=per_class)

    def score_predictions(
        self, predictions: Predictions, seconds: float, *, per_class: bool = False
    ) -> EvalResult:
        """Scores pooled and by language; `seconds` is how long predicting took."""
        gold = self.gold()
        predicted = self.predicted(predictions)
        codes, languages = language_codes(self.table)
        by_language = {}
        for code, language in enumerate(languages):
            rows = np.flatnonzero(codes == code)
            scores = self._scores([gold[i] for i in rows], [predicted[i] for i in rows])
            by_language[language] = LanguageScore(scores.score, len(rows))
        pooled = self._scores(gold, predicted)
        cut = int(cut_off(self.encoded).sum())
        without = int((predictions.classes < 0).sum()) - cut
        token = self.task == "token"
        return EvalResult(
            metric="entity_f1" if self.scores_entities else "macro_f1",
            score=pooled.score,
            details=pooled.details,
            mean_over_languages=float(np.mean([row.score for row in by_language.values()])),
            per_language=by_language,
            examples=len(self.table),
            examples_per_second=len(self.table) / max(seconds, 1e-9),
            cut_off_words=cut if token else None,
            cut_off_texts=None if token else cut,
            words_without_tokens=(without or None) if token else None,
            per_class=pooled.per_class if per_class else None,
            split=self.split,
            tag_scheme=self.tag_scheme,
        )

    def gold(self) -> list[Any]:
        """The names of the gold labels: one per example, or a list of tags per example."""
        names = self.labels
        values = chain.from_iterable(
            batch["label"] for batch in self.table.select_columns(["label"]).iter(1000)
        )
        if self.task == "token":
            return [[names[tag] for tag in tags] for tags in values]
        return [names[value] for value in values]

    def predicted(self, predictions: Predictions) -> list[Any]:
        """The names of the predicted labels, as `gold`; entity tags are converted to IOB2.

        A word without a token gets O, or None where the tags are not entity tags.
        """
        names = [*names_in_data(self.labels, self.model_labels)]
        names.append(OUTSIDE if self.scores_entities else None)
        if predictions.bounds is None:
            return [names[index] for index in predictions.classes]
        tag_lists = [
            [names[index] for index in predictions.classes[begin:end]]
            for begin, end in pairwise(predictions.bounds)
        ]
        scheme = scheme_of_labels(self.model_labels) if self.scores_entities else None
        if scheme in (None, "IOB2"):
            return tag_lists
        return [to_iob2([str(tag) for tag in tags], scheme) for tags in tag_lists]

    def _scores(self, gold: list[Any], predicted: list[Any]) -> Scores:
        if self.scores_entities:
            return entity_scores(gold, predicted)
        if self.task == "token":
            gold = list(chain.from_iterable(gold))
            predicted = list(chain.from_iterable(predicted))
        return text_scores(gold, predicted)

    def part(self, languages: Sequence[str]) -> Evaluator:
        """An evaluator of the examples in some of the languages."""
        codes, names = language_codes(self.table)
        wanted = [code for code, name in enumerate(names) if name in languages]
        rows = np.flatnonzero(np.isin(codes, wanted))
        return replace(self, table=self.table.select(rows), encoded=self.encoded.select(rows))


def check_labels(data: TaskData, source: Source) -> None:
    """Check that a model can predict the labels of the data.

    Raises:
        DataError: The data has no labels, or labels that the model does not know.
    """
    if data.labels is None:
        raise DataError(f"{data.name} has no labels, so there is nothing to score.")
    scheme = scheme_of_labels(source.labels)
    if data.task == "token" and are_entities(data.labels) and scheme is not None:
        # The tag schemes may differ: only the entity types must agree.
        labels, known = entity_types(data.labels, "IOB2"), entity_types(source.labels, scheme)
    else:
        labels, known = list(data.labels), list(source.labels)
    match_labels(labels, known, data=data.name, model=source.name)


def make_evaluator(
    data: TaskData,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    source: Source,
    *,
    max_length: int,
    batch_size: int | None,
    device: torch.device,
) -> Evaluator:
    """Make the evaluator of a split; of the model only the tokenizer and the classes are needed.

    Raises:
        DataError: The data has no labels, or labels that the model does not know.
    """
    check_labels(data, source)
    encoded = encode(
        data.splits[split],
        tokenizer,
        task=data.task,
        max_length=fitting_length(max_length, tokenizer, source.config),
        label_ids=None,
    )
    return Evaluator(
        data.splits[split],
        encoded,
        labels=data.labels or (),
        model_labels=source.labels,
        task=data.task,
        collate=Collator(int(tokenizer.pad_token_id)),
        batch_size=batch_size,
        device=device,
        split=WHOLE_FILE if data.whole_file else split,
        tag_scheme=data.tag_scheme,
    )


def seconds_to_score(model: torch.nn.Module, evaluator: Evaluator, texts: int = 64) -> float:
    """About how long a model takes for an evaluator's examples, from a sample of them, which it runs on twice."""
    rows = np.linspace(0, len(evaluator.table) - 1, min(texts, len(evaluator.table))).astype(int)
    sample = replace(
        evaluator, table=evaluator.table.select(rows), encoded=evaluator.encoded.select(rows)
    )
    for _ in range(2):  # the first one has what is done once
        began = time.perf_counter()
        sample.predict(model)
        seconds = time.perf_counter() - began
    return seconds * len(evaluator.table) / len(rows)
