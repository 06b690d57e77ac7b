"""Scores of models by language, and on languages they were not trained on."""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import distributed
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .batching import cut_by_tokens, forward_positions
from .checkpoint import (
    RECORD,
    Source,
    check_output,
    disk_errors,
    find_model,
    make_record,
    whole_directory,
    write_json,
)
from .config import EvalConfig, ZeroShotConfig
from .data import TaskData, language_codes, load_data
from .encoding import Collator, encode, match_labels, token_counts
from .errors import DataError, OutputError
from .languages import NAMED, Task, language_of
from .loading import (
    describe_device,
    fitting_length,
    load_classifier,
    pick_device,
    require_task,
    to_device,
)
from .metrics import AVERAGING, METRICS, MODE, Scores, entity_scores, text_scores
from .packing import packed_linears
from .progress import Progress, silent

logger = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class LanguageScore:
    score: float
    examples: int


@dataclass(frozen=True)
class EvalResult:
    """Scores of one model on one split.

    Attributes:
        metric: macro_f1 or entity_f1 (or negative_loss, where there are no labels to score).
        score: Over all languages pooled.
        details: Accuracy, or precision and recall, pooled.
        mean_over_languages: Mean of the languages' scores.
        cut_off_words: Words beyond --max-length, counted as missed; None for text tasks.
        split: What was scored, where it is known.
    """

    metric: str
    score: float
    details: Mapping[str, float]
    mean_over_languages: float
    per_language: Mapping[str, LanguageScore]
    examples: int
    examples_per_second: float
    cut_off_words: int | None = None
    per_class: Mapping[str, float] | None = None
    split: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The keys of --json."""
        result: dict[str, Any] = {"metric": self.metric, "score": self.score, **self.details}
        if self.metric == "macro_f1":
            result["averaging"] = AVERAGING
        elif self.metric == "entity_f1":
            result["mode"] = MODE
        result |= {
            "mean_over_languages": self.mean_over_languages,
            "per_language": {
                name: {"score": row.score, "examples": row.examples}
                for name, row in self.per_language.items()
            },
            "examples": self.examples,
            "examples_per_second": round(self.examples_per_second, 3),
        }
        if self.cut_off_words is not None:
            result["cut_off_words"] = self.cut_off_words
        if self.split is not None:
            result["split"] = self.split
        if self.per_class is not None:
            result["per_class"] = dict(self.per_class)
        return result

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> EvalResult:
        """Undo `to_dict`."""
        return cls(
            metric=content["metric"],
            score=content["score"],
            details={k: content[k] for k in ("accuracy", "precision", "recall") if k in content},
            mean_over_languages=content["mean_over_languages"],
            per_language={k: LanguageScore(**row) for k, row in content["per_language"].items()},
            examples=content["examples"],
            examples_per_second=content["examples_per_second"],
            cut_off_words=content.get("cut_off_words"),
            per_class=content.get("per_class"),
            split=content.get("split"),
        )


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
    done, mine = 0, sum(map(len, batches))
    with _evaluating(model), packed_linears(device):
        for rows in batches:
            batch = examples.__getitems__(rows.tolist())
            inputs = {name: tensor.to(device) for name, tensor in collate(batch).items()}
            best = model(**inputs).logits.float().softmax(-1).max(-1)
            values, indices = best.values.cpu().numpy(), best.indices.cpu().numpy()
            if bounds is None:
                classes[rows], probabilities[rows] = indices, values
            else:
                for line, row in enumerate(rows):
                    positions = np.asarray(batch[line]["positions"])
                    kept = np.flatnonzero(positions >= 0)
                    classes[bounds[row] + kept] = indices[line, positions[kept]]
                    probabilities[bounds[row] + kept] = values[line, positions[kept]]
            done += len(rows)
            progress(what, done * total // mine, total, {})
    if together:
        classes, probabilities = (_joined(answers, device) for answers in (classes, probabilities))
    return Predictions(classes, probabilities, bounds)


def _joined(answers: np.ndarray, device: torch.device) -> np.ndarray:
    """The answers of all processes, each of which has less than any answer where it has none."""
    tensor = torch.from_numpy(answers).to(device)
    distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
    return tensor.cpu().numpy()


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

    def predict(self, model: PreTrainedModel, progress: Progress = silent) -> Predictions:
        return predict(
            model,
            self.encoded,
            task=self.task,
            collate=self.collate,
            batch_size=self.batch_size,
            device=self.device,
            progress=progress,
        )

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
        token = self.task == "token"
        return EvalResult(
            metric=METRICS[self.task],
            score=pooled.score,
            details=pooled.details,
            mean_over_languages=float(np.mean([row.score for row in by_language.values()])),
            per_language=by_language,
            examples=len(self.table),
            examples_per_second=len(self.table) / max(seconds, 1e-9),
            cut_off_words=int((predictions.classes < 0).sum()) if token else None,
            per_class=pooled.per_class if per_class else None,
            split=self.split,
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
        """The model's answers by name. A word that was cut off is answered with O."""
        names = [*self.model_labels, "O"]
        if predictions.bounds is None:
            return [names[index] for index in predictions.classes]
        return [
            [names[index] for index in predictions.classes[begin:end]]
            for begin, end in zip(predictions.bounds, predictions.bounds[1:], strict=False)
        ]

    def _scores(self, gold: list[Any], answers: list[Any]) -> Scores:
        return entity_scores(gold, answers) if self.task == "token" else text_scores(gold, answers)

    def part(self, languages: Sequence[str]) -> Evaluator:
        """An evaluator of the examples in some of the languages."""
        codes, names = language_codes(self.table)
        wanted = [code for code, name in enumerate(names) if name in languages]
        rows = np.flatnonzero(np.isin(codes, wanted))
        return replace(self, table=self.table.select(rows), encoded=self.encoded.select(rows))


def _label_ids(data: TaskData, source: Source) -> list[int]:
    """The model's id of each of the data's labels.

    Raises:
        DataError: The data has no labels, or labels that the model does not know.
    """
    if data.labels is None:
        raise DataError(f"{data.name} has no labels, so there is nothing to score.")
    return match_labels(data.labels, source.labels)


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
    label_ids = _label_ids(data, source)
    encoded = encode(
        data.splits[split],
        tokenizer,
        task=data.task,
        max_length=fitting_length(max_length, tokenizer, source.config),
        label_ids=label_ids,
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
        split=split,
    )


def evaluate(config: EvalConfig, progress: Progress | None = None) -> EvalResult:
    """Score a model on a split of labelled data, pooled over languages and by language.

    Raises:
        KdshrinkError: As `errors` lists.
    """
    device = pick_device(config.device)
    if config.predictions is not None:
        _check_file(config.predictions)
    _check_place(config)
    source = find_model(config.model, config)
    data = load_data(config, (config.split,), purpose="evaluate", token=config.token)
    model, evaluator = _load(config, source, data, device)
    began = time.perf_counter()
    predictions = evaluator.predict(model, progress or silent)
    seconds = time.perf_counter() - began
    if config.predictions is not None:
        _write_predictions(config.predictions, evaluator, predictions)
    result = evaluator.score_predictions(predictions, seconds, per_class=config.per_class)
    _keep("eval", config, source, data, device, result.to_dict())
    return result


def _check_place(config: EvalConfig | ZeroShotConfig) -> None:
    if config.output_dir is not None:
        check_output(config.output_dir, overwrite=config.overwrite)


def _keep(
    command: str,
    config: EvalConfig | ZeroShotConfig,
    source: Source,
    data: TaskData,
    device: torch.device,
    results: Mapping[str, Any],
) -> None:
    """Write a kdshrink.json of the evaluation, if a directory is named for it."""
    if config.output_dir is None:
        return
    record = make_record(
        command,
        config,
        describe_device(device),
        [source],
        data.source,
        source=source.describe(),
        data=data.source,
        task=data.task,
        results=dict(results),
    )
    with whole_directory(config.output_dir) as folder:
        write_json(folder / RECORD, record)


def _load(
    config: EvalConfig | ZeroShotConfig, source: Source, data: TaskData, device: torch.device
) -> tuple[PreTrainedModel, Evaluator]:
    """The model on its device and what scores it; what its config.json rules out is told first."""
    require_task(source, data.task)
    _label_ids(data, source)
    loaded = load_classifier(config.model, config, data.task)
    evaluator = make_evaluator(
        data,
        config.split,
        loaded.tokenizer,
        loaded.source,
        max_length=config.max_length,
        batch_size=config.batch_size,
        device=device,
    )
    return to_device(loaded.model, device), evaluator


def _check_file(path: Path) -> None:
    """Raise OutputError unless --predictions can be written here."""
    folder = path.absolute().parent
    if path.is_dir():
        raise OutputError(f"--predictions {path} is a directory. Give the name of a file.")
    if not folder.is_dir():
        raise OutputError(f"--predictions {path}: there is no directory {folder}. Make it first.")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"--predictions {path} cannot be written: no permission in {folder}.")


def _write_predictions(path: Path, evaluator: Evaluator, predictions: Predictions) -> None:
    """A JSON line an example; the file appears whole or not at all."""
    codes, languages = language_codes(evaluator.table)
    partial = path.with_name(f".{path.name}.part")
    gold, answers = evaluator.gold(), evaluator.answers(predictions)
    try:
        with disk_errors(path):
            with partial.open("w", encoding="utf-8") as file:
                for row, (right, answer) in enumerate(zip(gold, answers, strict=True)):
                    if predictions.bounds is None:
                        probability: Any = round(float(predictions.probabilities[row]), 6)
                    else:
                        begin, end = predictions.bounds[row], predictions.bounds[row + 1]
                        values = predictions.probabilities[begin:end]
                        probability = [round(float(value), 6) for value in values]
                    line = {
                        "language": languages[codes[row]],
                        "gold": right,
                        "predicted": answer,
                        "probability": probability,
                    }
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
            os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class ZeroShotResult:
    """Scores on the languages that a model was trained on, and on those it was not.

    Attributes:
        seen: None where none of the seen languages is in the data.
        gap: Score on the seen languages less score on the unseen ones.
        random_score: The metric when the majority class of the unseen languages' examples is always
            answered; for tokens the commonest tag of an entity.
        majority_accuracy: The accuracy of always answering the majority class (of words: tag).
        seen_from: Where the list of seen languages comes from.
    """

    metric: str
    seen: EvalResult | None
    unseen: EvalResult
    gap: float | None
    random_score: float
    majority_accuracy: float
    seen_from: str

    def to_dict(self) -> dict[str, Any]:
        """The keys of --json."""
        return {
            "metric": self.metric,
            "seen": None if self.seen is None else self.seen.to_dict(),
            "unseen": self.unseen.to_dict(),
            "gap": self.gap,
            "random_score": self.random_score,
            "majority_accuracy": self.majority_accuracy,
            "seen_from": self.seen_from,
        }


def zero_shot(config: ZeroShotConfig, progress: Progress | None = None) -> ZeroShotResult:
    """Score a model on the languages that it was not trained on, beside those it was.

    The model's own kdshrink.json says which these are, unless --seen-languages does; else the data
    set's list serves.

    Raises:
        KdshrinkError: As `errors` lists.
    """
    device = pick_device(config.device)
    _check_place(config)
    source = find_model(config.model, config)
    everything = replace(config, languages=config.languages or ("all",))
    data = load_data(everything, (config.split,), purpose="evaluate", token=config.token)
    present = language_codes(data.splits[config.split])[1]
    seen, unseen, seen_from = _language_groups(config, source, data, present)
    if not unseen:
        raise DataError(
            f"None of these languages is unseen by {seen_from}: {', '.join(present)}.\n"
            "Name others with --languages, or say which count as unseen with --unseen-languages."
        )
    model, evaluator = _load(config, source, data, device)
    unseen_part = evaluator.part(unseen)
    on_seen = evaluator.part(seen).score(model, progress or silent) if seen else None
    on_unseen = unseen_part.score(model, progress or silent)
    random_score, majority_accuracy = majority_scores(unseen_part.gold(), data.task)
    result = ZeroShotResult(
        metric=on_unseen.metric,
        seen=on_seen,
        unseen=on_unseen,
        gap=None if on_seen is None else on_seen.score - on_unseen.score,
        random_score=random_score,
        majority_accuracy=majority_accuracy,
        seen_from=seen_from,
    )
    _keep("zero-shot", config, source, data, device, result.to_dict())
    return result


def _language_groups(
    config: ZeroShotConfig, source: Source, data: TaskData, present: Sequence[str]
) -> tuple[list[str], list[str], str]:
    """Which of the present languages are seen and unseen, and what says so.

    What the flags name counts as it stands. A kdshrink.json is compared by language, so that a model
    trained on `en_ewt` has seen `en_pud`. --unseen-languages takes languages out of any seen list and
    leaves unseen only what it names.
    """
    trained = {language_of(name) for name in source.training_languages}
    named_unseen = config.unseen_languages is not None
    if config.seen_languages is not None:
        seen, seen_from = [name for name in present if name in data.seen], "--seen-languages"
    elif trained:
        seen, seen_from = (
            [name for name in present if language_of(name) in trained],
            "kdshrink.json",
        )
        if named_unseen and (both := [name for name in seen if name in data.unseen]):
            logger.warning(
                "%s was trained on %s, which --unseen-languages names",
                config.model,
                ", ".join(both),
            )
            seen = [name for name in seen if name not in both]
    else:
        seen = [name for name in present if name in data.seen]
        seen_from = "--unseen-languages" if named_unseen else "the data set's list"
        if not named_unseen:
            note = NAMED[data.name].lists_note if data.name in NAMED else "this data has none"
            logger.info("%s does not say its training languages; seen: %s", config.model, note)
    unseen = [
        name for name in present if name not in seen and (not named_unseen or name in data.unseen)
    ]
    return seen, unseen, seen_from


def majority_scores(gold: Sequence[Any], task: Task) -> tuple[float, float]:
    """The metric, and the accuracy, of always answering the majority class.

    For tokens the metric is that of answering every word with the commonest tag of an entity, and the
    accuracy that of answering every word with the commonest tag.
    """
    if task == "sequence":
        (majority, count), *_ = Counter(gold).most_common(1)
        return text_scores(gold, [majority] * len(gold)).score, count / len(gold)
    counts = Counter(chain.from_iterable(gold))
    (_, count), *_ = counts.most_common(1)
    entities = [(tag, number) for tag, number in counts.most_common() if tag != "O"]
    accuracy = count / sum(counts.values())
    if not entities:
        return 0.0, accuracy
    answers = [[entities[0][0]] * len(tags) for tags in gold]
    return entity_scores(gold, answers).score, accuracy
