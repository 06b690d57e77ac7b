"""`kdshrink eval` and `kdshrink zero-shot`: score a classifier by language."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..config.commands import EvalConfig, ZeroShotConfig, input_paths
from ..data.labels import read_label_map
from ..data.load import TaskData, load_data, split_named
from ..data.sampling import language_codes
from ..distributed import is_first
from ..errors import DataError
from ..evaluation.evaluator import (
    Evaluator,
    Predictions,
    check_labels,
    make_evaluator,
    seconds_to_score,
)
from ..evaluation.groups import LanguageGroups
from ..evaluation.metrics import majority_scores
from ..evaluation.results import EvalResult
from ..exporting.runtime import BACKENDS, load_runnable, onnx_file
from ..files import atomic_file, to_json
from ..models.devices import describe_device, peak_memory, pick_device
from ..models.loading import require_task
from ..models.source import Source, find_classifier
from ..output import check_file, check_output, final_files, open_output
from ..progress import Progress, silent
from ..publishing.record import write_record
from .groups import language_groups
from .inputs import check_split, data_request
from .options import access_of, record_of
from .plan import Estimate, Plan, PlannedData, PlannedModel

logger = logging.getLogger(__name__)


def evaluate(config: EvalConfig, progress: Progress | None = None) -> EvalResult:
    """Score a model on a split of labelled data, pooled over languages and by language.

    Raises:
        KdshrinkError: As `errors` lists.
    """
    device = _device(config)
    with _place("eval", config):
        _check_predictions(config)
        return _evaluate(config, device, progress or silent)


def plan_eval(config: EvalConfig, progress: Progress | None = None) -> Plan:
    """What `evaluate` would do; its errors before scoring are raised too."""
    device = _device(config)
    _check_place("eval", config)
    _check_predictions(config)
    source, data = _read(config)
    return _plan("eval", config, device, source, data)


def _check_predictions(config: EvalConfig) -> None:
    if config.predictions is not None and is_first():
        check_file(
            config.predictions,
            "--predictions",
            overwrite=config.overwrite,
            inputs=input_paths(config),
        )


def _evaluate(config: EvalConfig, device: torch.device, progress: Progress) -> EvalResult:
    source, data = _read(config)
    model, evaluator = _load(config, source, data, device)
    began = time.perf_counter()
    predictions = evaluator.predict(model, progress)
    seconds = time.perf_counter() - began
    if config.predictions is not None and is_first():
        _write_predictions(config.predictions, evaluator, predictions)
    result = evaluator.score_predictions(predictions, seconds, per_class=config.per_class)
    _keep("eval", config, source, data, device, result.to_dict())
    return result


def _read(
    config: EvalConfig | ZeroShotConfig, languages: tuple[str, ...] | None = None
) -> tuple[Source, TaskData]:
    """Find the model and read the split."""
    split = split_named(config.split or "test")
    request, renamed = data_request(config, languages=languages), read_label_map(config.label_map)
    source = find_classifier(config.model, access_of(config), renamed)
    return source, load_data(request, (split,), purpose="evaluate", token=config.token)


def _plan(
    command: str,
    config: EvalConfig | ZeroShotConfig,
    device: torch.device,
    source: Source,
    data: TaskData,
) -> Plan:
    model, evaluator = _load(config, source, data, device)
    seconds = seconds_to_score(model, evaluator)
    return Plan(
        command,
        config.output_dir,
        [PlannedModel.stored("model", source)],
        [PlannedData.of("--data", data)],
        memory=Estimate(
            "the process's peak, as it was for a sample of the examples",
            {"the process": peak_memory(device)},
        ),
        seconds=Estimate("scoring, from a sample of the examples", {"scoring": seconds}),
    )


def _device(config: EvalConfig | ZeroShotConfig) -> torch.device:
    """Where the model runs; onnxruntime's runs on the CPU."""
    return pick_device(config.device if config.backend == "torch" else "cpu")


def _check_place(command: str, config: EvalConfig | ZeroShotConfig) -> None:
    """Check the output directory as `_place` does, if one is given."""
    if config.output_dir is not None:
        inputs = input_paths(config)
        check_output(config.output_dir, command, overwrite=config.overwrite, inputs=inputs)


@contextmanager
def _place(command: str, config: EvalConfig | ZeroShotConfig) -> Iterator[None]:
    """Lock the output directory, if one is given."""
    if config.output_dir is None:
        yield
        return
    with open_output(
        config.output_dir, command, overwrite=config.overwrite, inputs=input_paths(config)
    ):
        yield


def _keep(
    command: str,
    config: EvalConfig | ZeroShotConfig,
    source: Source,
    data: TaskData,
    device: torch.device,
    results: Mapping[str, Any],
) -> None:
    """Write the kdshrink.json of the evaluation, if an output directory is given."""
    if config.output_dir is None or not is_first():
        return
    record = record_of(
        command,
        config,
        describe_device(device),
        [source],
        data.reference,
        source=source.describe(),
        data=data.reference,
        task=data.task,
        results=dict(results),
    )
    with final_files(config.output_dir) as folder:
        write_record(folder, record)


def _load(
    config: EvalConfig | ZeroShotConfig, source: Source, data: TaskData, device: torch.device
) -> tuple[torch.nn.Module, Evaluator]:
    """The model on its device, and its evaluator; what config.json rules out is reported first."""
    check_split(config.split, data)
    require_task(source, data.task)
    check_labels(data, source)
    graph = None
    if config.backend != "torch":
        graph = onnx_file(source, BACKENDS[config.backend])
    loaded = load_runnable(source, data.task, graph, device)
    evaluator = make_evaluator(
        data,
        next(iter(data.splits)),
        loaded.tokenizer,
        source,
        max_length=config.max_length,
        batch_size=config.batch_size,
        device=device,
    )
    return loaded.model, evaluator


def _write_predictions(path: Path, evaluator: Evaluator, predictions: Predictions) -> None:
    """Write one JSON line per example, atomically."""
    codes, languages = language_codes(evaluator.table)
    gold, predicted = evaluator.gold(), evaluator.predicted(predictions)
    with atomic_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        for row, (label, prediction) in enumerate(zip(gold, predicted, strict=True)):
            if predictions.bounds is None:
                probability: Any = round(float(predictions.probabilities[row]), 6)
            else:
                begin, end = predictions.bounds[row], predictions.bounds[row + 1]
                values = predictions.probabilities[begin:end]
                probability = [round(float(value), 6) for value in values]
            line = {
                "language": languages[codes[row]],
                "gold": label,
                "predicted": prediction,
                "probability": probability,
            }
            file.write(to_json(line) + "\n")


@dataclass(frozen=True)
class ZeroShotResult:
    """Scores on the languages that a model was trained on, and on those it was not.

    Attributes:
        seen: None where none of the seen languages is in the data.
        gap: The score on the seen languages minus the score on the unseen ones.
        random_score: The metric of always predicting the majority class of the unseen languages'
            examples; for tokens the most frequent entity tag.
        majority_accuracy: The accuracy of always predicting the majority class (for tokens: tag).
        seen_from: Where the list of seen languages comes from, such as "kdshrink.json".
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
    """Score a model on the languages that it was trained on, and on those that it was not.

    Raises:
        KdshrinkError: As `errors` lists.
    """
    device = _device(config)
    with _place("zero-shot", config):
        return _zero_shot(config, device, progress or silent)


def plan_zero_shot(config: ZeroShotConfig, progress: Progress | None = None) -> Plan:
    """What `zero_shot` would do; its errors before scoring are raised too."""
    device = _device(config)
    _check_place("zero-shot", config)
    source, data = _read(config, config.languages or ("all",))
    _groups(config, source, data)
    return _plan("zero-shot", config, device, source, data)


def _zero_shot(config: ZeroShotConfig, device: torch.device, progress: Progress) -> ZeroShotResult:
    source, data = _read(config, config.languages or ("all",))
    groups, seen_from = _groups(config, source, data)
    model, evaluator = _load(config, source, data, device)
    scores = groups.score(evaluator, model, progress)
    on_seen, on_unseen = scores["seen"], scores["unseen"]
    assert on_unseen is not None
    gold = evaluator.part(groups.unseen).gold()
    random_score, majority_accuracy = majority_scores(gold, data.task)
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


def _groups(config: ZeroShotConfig, source: Source, data: TaskData) -> tuple[LanguageGroups, str]:
    """As `language_groups`, of the languages of the split.

    Raises:
        DataError: None of them is unseen.
    """
    present = language_codes(next(iter(data.splits.values())))[1]
    groups, seen_from = language_groups(config, source, data, present)
    if not groups.unseen:
        raise DataError(
            f"None of these languages is unseen according to {seen_from}: {', '.join(present)}.\n"
            "Name others with --languages, or say which count as unseen with --unseen-languages."
        )
    return groups, seen_from
