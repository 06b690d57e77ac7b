"""What scores a model: its answers to tokenised examples, pooled over languages and by language."""

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
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.batching import cut_by_tokens
from ..data.encoding import Collator, cut_off, encode, examples_at, token_counts
from ..data.labels import match_labels
from ..data.load import WHOLE_FILE, TaskData
from ..data.registry import Task
from ..data.sampling import language_codes
from ..data.tags import OUTSIDE, are_entities, entity_types, scheme_of_labels, to_iob2
from ..distributed import joined
from ..errors import DataError, ModelError
from ..models.devices import forward_positions
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
    """What a model answers, in the order of the examples.

    Attributes:
        classes: A class an example, or for token tasks a class a word, all examples one after
            another; -1 for a word that was cut off.
        probabilities: The model's probability of each, float32; 0 for a word that was cut off.
        bounds: Where each example's answers begin and end (n + 1 numbers); None for one each.
    """

    classes: np.ndarray
    probabilities: np.ndarray
    bounds: np.ndarray | None


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put every module in eval mode, and each back in its own mode after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@torch.inference_mode()
def predict(
    model: PreTrainedModel,
    encoded: Dataset,
    *,
    task: Task,
    collate: Collator,
    batch_size: int | None,
    device: torch.device,
    progress: Progress = silent,
    what: str = "evaluate",
) -> Predictions:
    """Run a model over encoded examples, those of like length together, the longest first.

    Several processes of a run share the batches, and each gets all answers: all of them must call it.

    Args:
        encoded: As `encoding.encode` makes it, for this model's tokenizer.
        batch_size: Examples in a batch at most; fewer where they are long; None for as many as
            suit the device.

    Raises:
        ModelError: An answer is not finite.
    """
    total = len(encoded)
    bounds = _word_bounds(encoded) if task == "token" else None
    answers = total if bounds is None else int(bounds[-1])
    classes = np.full(answers, -1, dtype=np.int32)
    probabilities = np.zeros(answers, dtype=np.float32)
    columns = ["input_ids", *(["positions"] if task == "token" else [])]
    examples = encoded.select_columns(columns)
    batches = _by_length(token_counts(encoded), batch_size, device)
    together = distributed.is_available() and distributed.is_initialized()
    if together:
        batches = batches[distributed.get_rank() :: distributed.get_world_size()]
    done, mine, first_bad = 0, sum(map(len, batches)), total
    with _evaluating(model), packed_linears(device):
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
            progress(what, done * total // mine, total, {})
    if together:
        first_bad = -int(joined(np.array([-first_bad]), device)[0])
    if first_bad < total:
        raise _BadAnswerError(first_bad)
    if together:
        classes, probabilities = (joined(answers, device) for answers in (classes, probabilities))
    return Predictions(classes, probabilities, bounds)


def _places(
    rows: np.ndarray, examples: Sequence[Mapping[str, Any]], bounds: np.ndarray
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Where the predictions of a batch's words belong among all words, and where they stand in the batch.

    Args:
        rows: (B,) the numbers of the examples.
        bounds: The number of each example's first word.

    Returns:
        (W,), and the lines and the positions in them, each (W,).
    """
    words, lines, columns = [], [], []
    for line, row in enumerate(rows):
        positions = np.asarray(examples[line]["positions"])
        kept = np.flatnonzero(positions >= 0)
        words.append(bounds[row] + kept)
        lines.append(np.full(len(kept), line))
        columns.append(positions[kept])
    return np.concatenate(words), (np.concatenate(lines), np.concatenate(columns))


class _BadAnswerError(ModelError):
    """A model's answer to an example is not finite."""

    def __init__(self, row: int) -> None:
        super().__init__(f"The model's answer to example {row + 1} is not finite.")
        self.row = row


def _not_finite(logits: Tensor, attention_mask: Tensor) -> np.ndarray:
    """(B,) whether a text's logits, padding apart, are not all finite."""
    finite = logits.isfinite().all(-1)
    if finite.dim() == 2:
        finite = (finite | ~attention_mask.bool()).all(1)
    return ~finite.cpu().numpy()


def not_finite(who: str, table: Dataset, row: int) -> ModelError:
    """The error of an answer that is not finite, with the text that it was for."""
    example = table[row]
    text = example["text"] if isinstance(example["text"], str) else " ".join(example["text"])
    return ModelError(
        f"{who} has no finite answer to text {row + 1} ({example['language']}): "
        f"{' '.join(text.split())[:_SHOWN]!r}.\n"
        "Its weights are damaged, or its numbers too large for their type. Take an earlier checkpoint."
    )


def _by_length(lengths: np.ndarray, size: int | None, device: torch.device) -> list[np.ndarray]:
    """Rows in batches of like length, the longest first."""
    positions = forward_positions(device.type)
    order = np.argsort(lengths, kind="stable")
    cuts = [*cut_by_tokens(lengths[order], positions, size), len(order)]
    return [order[begin:end] for begin, end in pairwise(cuts)][::-1]


def _word_bounds(encoded: Dataset) -> np.ndarray:
    """Where each example's words begin and end among all words, n + 1 numbers."""
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
        encoded: The same, tokenised.
        labels: Names of the data's labels.
        model_labels: Names of the model's classes, by id.
        split: Which split the examples are, for the result.
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
        """Whether the labels are tags of entities, scored as such."""
        return self.task == "token" and are_entities(self.labels)

    def predict(self, model: PreTrainedModel, progress: Progress = silent) -> Predictions:
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
        except _BadAnswerError as error:
            raise not_finite("The model", self.table, error.row) from error

    def score(
        self, model: PreTrainedModel, progress: Progress = silent, *, per_class: bool = False
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
        answers = self.answers(predictions)
        codes, languages = language_codes(self.table)
        by_language = {}
        for code, language in enumerate(languages):
            rows = np.flatnonzero(codes == code)
            scores = self._scores([gold[i] for i in rows], [answers[i] for i in rows])
            by_language[language] = LanguageScore(scores.score, len(rows))
        pooled = self._scores(gold, answers)
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
        """The right answers by name: a name an example, or a list of them."""
        names = self.labels
        values = chain.from_iterable(
            batch["label"] for batch in self.table.select_columns(["label"]).iter(1000)
        )
        if self.task == "token":
            return [[names[tag] for tag in tags] for tags in values]
        return [names[value] for value in values]

    def answers(self, predictions: Predictions) -> list[Any]:
        """The model's answers by name; entity tags in IOB2, as the data's.

        A word without a token is answered with O, or, where tags are no entities', with None.
        """
        names = [*self.model_labels, OUTSIDE if self.scores_entities else None]
        if predictions.bounds is None:
            return [names[index] for index in predictions.classes]
        answers = [
            [names[index] for index in predictions.classes[begin:end]]
            for begin, end in pairwise(predictions.bounds)
        ]
        scheme = scheme_of_labels(self.model_labels) if self.scores_entities else None
        if scheme in (None, "IOB2"):
            return answers
        return [to_iob2([str(tag) for tag in tags], scheme) for tags in answers]

    def _scores(self, gold: list[Any], answers: list[Any]) -> Scores:
        if self.scores_entities:
            return entity_scores(gold, answers)
        if self.task == "token":
            gold, answers = list(chain.from_iterable(gold)), list(chain.from_iterable(answers))
        return text_scores(gold, answers)

    def part(self, languages: Sequence[str]) -> Evaluator:
        """An evaluator of the examples in some of the languages."""
        codes, names = language_codes(self.table)
        wanted = [code for code, name in enumerate(names) if name in languages]
        rows = np.flatnonzero(np.isin(codes, wanted))
        return replace(self, table=self.table.select(rows), encoded=self.encoded.select(rows))


def check_labels(data: TaskData, source: Source) -> None:
    """Check that a model knows what it is scored on.

    Raises:
        DataError: The data has no labels, or labels that the model does not know.
    """
    if data.labels is None:
        raise DataError(f"{data.name} has no labels, so there is nothing to score.")
    scheme = scheme_of_labels(source.labels)
    if data.task == "token" and are_entities(data.labels) and scheme is not None:
        # Schemes need not agree: what counts is which entities the model can find.
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
    """What scores a model, of which only the tokenizer and the classes matter, on a split of the data.

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
