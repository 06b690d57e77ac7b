"""`kdshrink compare`: models on the same texts, by score, size, speed and memory."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..comparing.candidates import Candidate, find_candidates, parse_name, require_same_labels
from ..comparing.counts import Labels
from ..comparing.latency import Classify, Text, cpu_threads, draw_texts, measure
from ..comparing.memory import Memory, Probe
from ..comparing.report import report_files, write_report
from ..comparing.results import ComparedModel, CompareResult, Conditions
from ..comparing.scores import ScoredTexts
from ..config.command_line import command_line
from ..config.commands import CompareConfig, input_paths
from ..data.labels import read_label_map
from ..data.load import TaskData, load_data, split_named
from ..data.sampling import language_codes
from ..distributed import world_size
from ..errors import DataError, OutputError, RefusedError, UsageError
from ..evaluation.evaluator import Evaluator, check_labels, make_evaluator, seconds_to_score
from ..evaluation.groups import LanguageGroups
from ..exporting.runtime import Runnable
from ..models.devices import describe_device, peak_memory, pick_device
from ..models.loading import fitting_length, require_task
from ..models.whole import first_line
from ..output import check_file
from ..progress import Progress, silent
from ..reproduction.plots import require_matplotlib
from .groups import language_groups
from .inputs import check_split, data_request
from .options import access_of
from .plan import Estimate, Plan, PlannedData, PlannedModel

logger = logging.getLogger(__name__)


def compare(config: CompareConfig, progress: Progress | None = None) -> CompareResult:
    """Compare models on the same texts with a baseline, and write a report if a file is given.

    All models are in memory at once, since they take turns when their latency is measured.

    Raises:
        RefusedError: The report could not be written; the error holds the result.
        KdshrinkError: As `errors` lists.
    """
    device = _checked(config)
    with cpu_threads(config.threads) as threads:
        result = _prepare(config, device, threads, progress or silent).run()
    if config.output_file is None:
        return result
    written = replace(result, files=report_files(config.output_file))
    try:
        write_report(written, config.output_file)
    except (OSError, OutputError) as error:
        raise RefusedError(
            f"The models are compared, and the report could not be written.\n{first_line(error)}",
            result,
        ) from error
    return written


def plan_compare(config: CompareConfig, progress: Progress | None = None) -> Plan:
    """What `compare` would do; its errors before scoring are raised too."""
    device = _checked(config)
    with cpu_threads(config.threads) as threads:
        return _prepare(config, device, threads, progress or silent).plan()


def _checked(config: CompareConfig) -> torch.device:
    """Check what can be checked without models and data; the device that the models run on."""
    if world_size() > 1:
        raise UsageError("compare runs in one process: start it without torchrun.")
    named = [parse_name(name) for name in config.all_models]
    on_cpu = any(precision is not None for _, precision in named)
    if on_cpu and config.device not in ("auto", "cpu"):
        raise UsageError(
            f"--device {config.device}: the graphs that export wrote run on the CPU, and models that are "
            "compared run on one device."
        )
    device = pick_device("cpu" if on_cpu else config.device)
    if config.output_file is not None:
        require_matplotlib()
        inputs = [Path(name).expanduser() for name, _ in named]
        inputs = [*input_paths(config), *(path for path in inputs if path.exists())]
        for path in report_files(config.output_file):
            check_file(path, "-o", overwrite=config.overwrite, inputs=inputs)
    return device


@dataclass(frozen=True)
class _Comparison:
    """A comparison whose models and data have been found to fit together.

    Attributes:
        candidates: In the order of the result.
        groups: Which languages are seen and unseen, and where that is known from; None if it is not.
        threads: Of the CPU, for each model.
    """

    config: CompareConfig
    candidates: Sequence[Candidate]
    data: TaskData
    split: str
    groups: tuple[LanguageGroups, str] | None
    device: torch.device
    threads: int
    progress: Progress

    @property
    def baseline(self) -> str:
        return self.config.baseline or self.candidates[0].name

    def run(self) -> CompareResult:
        """Load all models, let each of them predict, then let them take turns."""
        loaded = {one.name: one.load(self.device) for one in self.candidates}
        evaluators = {
            one.name: self._evaluator(one, loaded[one.name].tokenizer) for one in self.candidates
        }
        predicted = {
            name: _per_text(evaluator.predicted(evaluator.predict(model.model, self.progress)))
            for (name, evaluator), model in zip(evaluators.items(), loaded.values(), strict=True)
        }
        first = evaluators[self.baseline]
        codes, languages = language_codes(first.table)
        groups = None if self.groups is None else self.groups[0]
        texts = ScoredTexts(
            _per_text(first.gold()), codes, languages, groups, first.scores_entities
        )
        scores = texts.compare(predicted, self.baseline, self.config.seed)
        classify = {one.name: self._classify(one, loaded[one.name]) for one in self.candidates}
        calls = draw_texts(first.table["text"], self.config.seed)
        speeds = measure(classify, calls, self.baseline, self.progress)
        memory = self._memory(classify, max(calls, key=_characters))
        models = {
            one.name: ComparedModel(one, scores[one.name], speeds[one.name], memory[one.name])
            for one in self.candidates
        }
        return CompareResult(self.baseline, models, self._conditions(first))

    def plan(self) -> Plan:
        """Load all models, and let each of them predict a sample of the examples."""
        seconds = {}
        loaded = [(one, one.load(self.device)) for one in self.candidates]
        for one, runnable in loaded:
            evaluator = self._evaluator(one, runnable.tokenizer)
            seconds[f"scoring {one.name}"] = seconds_to_score(runnable.model, evaluator)
        return Plan(
            "compare",
            None,
            [self._planned(one) for one in self.candidates],
            [PlannedData.of("--data", self.data)],
            memory=Estimate(
                "the process's peak, as it was with all models loaded, for a sample of the examples",
                {"the process": peak_memory(self.device)},
            ),
            seconds=Estimate(
                "scoring, from a sample of the examples; measuring latency and memory is not in it",
                seconds,
            ),
        )

    def _planned(self, candidate: Candidate) -> PlannedModel:
        source = candidate.source
        role = "baseline" if candidate.name == self.baseline else "model"
        sizes = (source.depth, source.width, source.vocabulary)
        return PlannedModel(role, candidate.name, *sizes, candidate.parameters, candidate.bytes)

    def _evaluator(self, candidate: Candidate, tokenizer: PreTrainedTokenizerBase) -> Evaluator:
        return make_evaluator(
            self.data,
            self.split,
            tokenizer,
            candidate.source,
            max_length=self.config.max_length,
            batch_size=self.config.batch_size,
            device=self.device,
        )

    def _classify(self, candidate: Candidate, loaded: Runnable) -> Classify:
        length = fitting_length(self.config.max_length, loaded.tokenizer, candidate.source.config)
        return Classify(loaded, self.data.task, length, self.device)

    def _memory(
        self, classify: Mapping[str, Classify], texts: Sequence[Text]
    ) -> dict[str, Memory | None]:
        """The memory that each model takes for a batch of texts."""
        found = {}
        for number, one in enumerate(self.candidates):
            self.progress("measure memory", number, len(self.candidates), {})
            probe = Probe(
                one.source,
                self.data.task,
                one.graph,
                classify[one.name].longest,
                str(self.device),
                self.threads,
                texts,
            )
            found[one.name] = probe.measure()
        return found

    def _conditions(self, evaluator: Evaluator) -> Conditions:
        groups, groups_from = self.groups or (None, None)
        return Conditions(
            data=self.data.name,
            split=str(evaluator.split),
            metric="entity_f1" if evaluator.scores_entities else "macro_f1",
            examples=len(evaluator.table),
            groups=groups,
            groups_from=groups_from,
            device=describe_device(self.device),
            threads=self.threads,
            seed=self.config.seed,
            command=command_line("compare", self.config),
        )


def _prepare(
    config: CompareConfig, device: torch.device, threads: int, progress: Progress
) -> _Comparison:
    """Find the models and the data, and check that they fit together.

    Raises:
        KdshrinkError: As `errors` lists.
    """
    split = split_named(config.split or "test")
    request = data_request(config, languages=config.languages or ("all",))
    renamed = read_label_map(config.label_map)
    candidates = find_candidates(config.all_models, access_of(config), renamed)
    data = load_data(request, (split,), purpose="evaluate", token=config.token)
    check_split(config.split, data)
    for one in candidates:
        require_task(one.source, data.task)
        check_labels(data, one.source)
    require_same_labels(candidates, data.task)
    split = next(iter(data.splits))
    present = language_codes(data.splits[split])[1]
    baseline = next(one for one in candidates if one.name == (config.baseline or one.name))
    groups = None
    try:
        groups = language_groups(config, baseline.source, data, present)
    except DataError as error:  # what is compared need not be known to be seen or unseen
        logger.info("No seen and unseen languages: %s", error)
    return _Comparison(config, candidates, data, split, groups, device, threads, progress)


def _per_text(labels: Sequence[Any]) -> Labels:
    """Labels of texts as lists of one, as those of words are lists."""
    return [[label] if isinstance(label, str) else label for label in labels]


def _characters(texts: Sequence[Text]) -> int:
    """The length of a batch: its longest text, as often as it is padded to that."""
    return len(texts) * max(
        len(text if isinstance(text, str) else " ".join(text)) for text in texts
    )
