"""`kdshrink eval` and `kdshrink zero-shot`: score a classifier by language."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..config.commands import EvalConfig, ZeroShotConfig, input_paths
from ..data.labels import read_label_map
from ..data.languages import UNDETERMINED, comparable
from ..data.load import TaskData, load_data, split_named
from ..data.registry import NAMED
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
from ..evaluation.metrics import majority_scores
from ..evaluation.results import EvalResult
from ..exporting.runtime import OnnxClassifier, onnx_file
from ..files import atomic_file, to_json
from ..models.devices import describe_device, pick_device, to_device
from ..models.loading import load_classifier, load_tokenizer, require_task
from ..models.source import Source, find_classifier
from ..output import check_file, check_output, final_files, open_output
from ..progress import Progress, silent
from ..publishing.record import write_record
from ..training.run import peak_memory
from .inputs import data_request
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
    if data.whole_file and config.split is not None:
        raise DataError(
            f"--split {config.split}: {data.name} is a single file, which has no splits.\n"
            "Leave --split out to score all of it, or give a directory of train, validation and test."
        )
    require_task(source, data.task)
    check_labels(data, source)
    model: torch.nn.Module
    if config.backend == "torch":
        loaded = load_classifier(source, data.task)
        model, tokenizer = to_device(loaded.model, device), loaded.tokenizer
    else:
        graph = onnx_file(source, "int8" if config.backend == "onnx:int8" else "fp32")
        model, tokenizer = OnnxClassifier(graph), load_tokenizer(source, data.task)
    evaluator = make_evaluator(
        data,
        next(iter(data.splits)),
        tokenizer,
        source,
        max_length=config.max_length,
        batch_size=config.batch_size,
        device=device,
    )
    return model, evaluator


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

    Which languages are seen is taken from --seen-languages, else from the model's kdshrink.json, else from
    the data set's list.

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
    _seen_and_unseen(config, source, data)
    return _plan("zero-shot", config, device, source, data)


def _zero_shot(config: ZeroShotConfig, device: torch.device, progress: Progress) -> ZeroShotResult:
    source, data = _read(config, config.languages or ("all",))
    seen, unseen, seen_from = _seen_and_unseen(config, source, data)
    model, evaluator = _load(config, source, data, device)
    unseen_part = evaluator.part(unseen)
    on_seen = evaluator.part(seen).score(model, progress) if seen else None
    on_unseen = unseen_part.score(model, progress)
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


def _seen_and_unseen(
    config: ZeroShotConfig, source: Source, data: TaskData
) -> tuple[list[str], list[str], str]:
    """As `_language_groups`, of the languages of the split.

    Raises:
        DataError: None of them is unseen.
    """
    present = language_codes(next(iter(data.splits.values())))[1]
    seen, unseen, seen_from = _language_groups(config, source, data, present)
    if not unseen:
        raise DataError(
            f"None of these languages is unseen according to {seen_from}: {', '.join(present)}.\n"
            "Name others with --languages, or say which count as unseen with --unseen-languages."
        )
    return seen, unseen, seen_from


def _language_groups(
    config: ZeroShotConfig, source: Source, data: TaskData, present: Sequence[str]
) -> tuple[list[str], list[str], str]:
    """Which of the present languages are seen and unseen, and where that is known from.

    Names given by the options are taken literally. The languages of a kdshrink.json are compared by
    language code, so that a model trained on `en_ewt` has seen `en_pud`. With --unseen-languages only the
    languages that it names are unseen, and none of them is seen.
    """
    trained = {comparable(name) for name in source.training_languages}
    named_unseen = config.unseen_languages is not None
    if config.seen_languages is not None:
        seen, seen_from = [name for name in present if name in data.seen], "--seen-languages"
    elif trained:
        if not named_unseen:
            present = _known(config, trained, present)
        seen = [name for name in present if comparable(name) in trained]
        seen_from = "kdshrink.json"
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
            if data.name not in NAMED:
                raise DataError(
                    f"{config.model} does not say its training languages, and {data.name} has no lists.\n"
                    f"{_SAY_SEEN}"
                )
            note = NAMED[data.name].lists_note
            logger.info(
                "%s does not say its training languages; seen and unseen: %s", config.model, note
            )
    unseen = [
        name for name in present if name not in seen and (not named_unseen or name in data.unseen)
    ]
    return seen, unseen, seen_from


_SAY_SEEN = "Say which languages it was trained on with --seen-languages."


def _known(config: ZeroShotConfig, trained: set[str], present: Sequence[str]) -> list[str]:
    """The present languages for which it is known whether the model was trained on them.

    Raises:
        DataError: There are none.
    """
    if trained == {UNDETERMINED}:
        raise DataError(
            f"{config.model} was trained on data without a language, so no language is known to be "
            f"unseen.\n{_SAY_SEEN}"
        )
    if UNDETERMINED in trained:
        logger.warning("%s was also trained on data without a language", config.model)
    known = [name for name in present if name != UNDETERMINED]
    if not known:
        raise DataError(
            f"{config.data} does not say the language of its texts.\n"
            "Give it in a column (--language-column), or by one directory per language."
        )
    if len(known) < len(present):
        logger.warning("%s: texts without a language are left out", config.data)
    return known
