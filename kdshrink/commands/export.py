"""`kdshrink export`: a classifier in ONNX, in fp16 and int8 as far as every language bears it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config.commands import ExportConfig, input_paths
from ..data.labels import read_label_map
from ..data.load import TaskData, load_data
from ..errors import ModelError, RefusedError
from ..evaluation.evaluator import Evaluator, check_labels, make_evaluator, seconds_to_score
from ..evaluation.results import EvalResult
from ..exporting.gate import Agreement, Gate, Verdict
from ..exporting.graph import dry_run, reads_token_types, write_graph
from ..exporting.ladder import Ladder, SampleTexts
from ..exporting.layout import check_tokenizer, write_model, write_tokenizer
from ..exporting.libraries import PACKAGES, require_onnx
from ..exporting.runtime import FILES, FOLDER, OnnxClassifier, Precision
from ..exporting.runtimes import unread
from ..files import write_text
from ..models.devices import peak_memory
from ..models.loading import fitting_length, load_classifier, model_sizes, require_task
from ..models.source import Source, find_classifier
from ..output import check_output, final_files, name_of, open_output
from ..progress import Progress, silent
from ..publishing.card import model_card
from ..publishing.push import PushResult, pushed
from ..publishing.record import write_record
from ..record import Export, Record
from ..training.trial import memory_in_use
from .inputs import data_request
from .options import access_of, ready_destination, record_of
from .plan import Estimate, Plan, PlannedData, PlannedModel, tokenizer_bytes

_CHECKED_TEXTS = 1000
_CPU = torch.device("cpu")
_SHARES: Mapping[Precision, float] = {"fp16": 1 / 2, "int8": 1 / 4}
"""Bytes of a graph, of those in float32."""


@dataclass(frozen=True)
class ExportResult:
    """What export() wrote.

    Attributes:
        fp32: The scores of the graph in fp32 on the development split.
        difference: The largest relative difference of its logits from the model's, on the same texts.
        changed: How many predictions rounding alone made others, between classes that were equal.
        max_drop: The points that fp16 and int8 may lose.
        too_small: The languages with too few examples for the gate to judge.
        verdicts: What the gate said of each scheme that was tried; the last one of a precision passed if one
            did.
        files: Bytes of each precision's graph.
        unread: By runtime what it is known not to read.
    """

    output_dir: Path
    fp32: EvalResult
    difference: float
    changed: int
    max_drop: float
    too_small: Sequence[str]
    verdicts: Sequence[Verdict]
    files: Mapping[str, int]
    unread: Mapping[str, Sequence[str]]
    pushed: PushResult | None = None

    @property
    def passed(self) -> bool:
        """Whether there is all that was asked for: fp16 and int8 passed the gate, or were not wanted."""
        return not self.refused

    @property
    def refused(self) -> list[Precision]:
        """The precisions of which no scheme passed the gate."""
        return _refused(self.verdicts)

    def described(self) -> dict[str, Any]:
        """What kdshrink.json says of it."""
        schemes = {v.scheme.precision: v.scheme.name for v in self.verdicts if v.passed}
        return {
            "split": self.fp32.split,
            "metric": self.fp32.metric,
            "score": self.fp32.score,
            "per_language": {
                name: {"score": row.score, "examples": row.examples}
                for name, row in self.fp32.per_language.items()
            },
            "difference": self.difference,
            "changed": self.changed,
            "max_drop": self.max_drop,
            "too_few_examples": list(self.too_small),
            "passed": self.passed,
            "schemes": schemes,
            "tried": [verdict.to_dict() for verdict in self.verdicts],
            "files": {f"{FOLDER}/{name}": size for name, size in self.files.items()},
            "unread": {name: list(faults) for name, faults in self.unread.items()},
        }

    def to_dict(self) -> dict[str, Any]:
        """The keys of --json."""
        hub = {} if self.pushed is None else {"hub": self.pushed.to_dict()}
        return {"output_dir": str(self.output_dir), **self.described(), **hub}


def export(config: ExportConfig, progress: Progress | None = None) -> ExportResult:
    """Write a classifier in ONNX: fp32 that computes what it does, fp16 and int8 that lose little in any language.

    Raises:
        RefusedError: No scheme of fp16 or of int8 passed the gate; the directory holds fp32, and the error the
            result.
        KdshrinkError: As `errors` lists.
    """
    output_dir = _output_dir(config)
    with open_output(output_dir, "export", overwrite=config.overwrite, inputs=input_paths(config)):
        require_onnx()
        destination = ready_destination(config, output_dir)
        source, data = _read(config)
        describe = partial(_record, config, source, data)
        result = write_export(config, source, data, output_dir, describe, progress or silent)
        if not result.passed:
            raise refusal(result, config.model, result)
        return pushed(result, destination)


def plan_export(config: ExportConfig, progress: Progress | None = None) -> Plan:
    """What `export` would do; its errors before the graph is made are raised too."""
    output_dir = _output_dir(config)
    check_output(output_dir, "export", overwrite=config.overwrite, inputs=input_paths(config))
    require_onnx()
    ready_destination(config, output_dir, create=False)
    return _plan(config, output_dir, *_read(config))


def _output_dir(config: ExportConfig) -> Path:
    return config.output_dir or Path(f"{Path(config.model.partition('@')[0]).name}-onnx")


def _read(config: ExportConfig) -> tuple[Source, TaskData]:
    """Find the model and read the data."""
    renamed = read_label_map(config.label_map)
    source = find_classifier(config.model, access_of(config), renamed)
    check_exportable(source)
    data = _data(config)
    require_task(source, data.task)
    check_labels(data, source)
    return source, data


def check_exportable(source: Source) -> None:
    """Raise ModelError unless a model is a classifier."""
    if source.task is None:
        raise ModelError(
            f"{source.name} has no head: only classifiers are exported, whose predictions can be scored.\n"
            "Make it one first, with kdshrink finetune."
        )


def write_export(
    config: ExportConfig,
    source: Source,
    data: TaskData,
    output_dir: Path,
    describe: Callable[[ExportResult], Record],
    progress: Progress,
    also: Sequence[Path] = (),
) -> ExportResult:
    """Write a classifier and its graphs to an open output directory.

    Args:
        data: Its development split, and training texts.
        describe: Makes the record of the directory.
        also: Further files that are to be in the directory.

    Returns:
        The result, which may be that fp16 or int8 did not pass.
    """
    loaded = load_classifier(source, data.task)
    with final_files(output_dir) as folder:
        work = _Export(
            config, source, data, loaded.model.eval(), loaded.tokenizer, folder, progress
        )
        result = work.run(output_dir)
        for path in also:
            shutil.copy2(path, folder)
        record = describe(result)
        write_text(folder / "README.md", model_card(name_of(output_dir), record.to_dict()))
        write_record(folder, record)
    return result


def _refused(verdicts: Sequence[Verdict]) -> list[Precision]:
    last = {verdict.scheme.precision: verdict for verdict in verdicts}
    return [precision for precision, verdict in last.items() if not verdict.passed]


def refusal(exported: ExportResult, model: str, result: Any) -> RefusedError:
    """The error for a model whose fp16 or int8 did not pass; `result` is that of the command."""
    lines = []
    for precision in exported.refused:
        tried = [verdict for verdict in exported.verdicts if verdict.scheme.precision == precision]
        least = min(tried, key=lambda verdict: verdict.loss)
        language, drop = least.worst
        lines.append(
            f"No {precision} of {model} stays within --max-drop {exported.max_drop:g}: the best, "
            f"{least.scheme.name}, loses {least.drop:.2f} points pooled and {drop:.2f} in {language}."
        )
    held = " and ".join(name for name, file in FILES.items() if file in exported.files)
    lines.append(f"{exported.output_dir} holds {held}. Allow a larger --max-drop, or ship {held}.")
    return RefusedError("\n".join(lines), result)


def _plan(config: ExportConfig, output_dir: Path, source: Source, data: TaskData) -> Plan:
    process = memory_in_use(_CPU)
    loaded = load_classifier(source, data.task)
    sizes = model_sizes(loaded.model)
    evaluator = make_evaluator(
        data,
        "validation",
        loaded.tokenizer,
        source,
        max_length=config.max_length,
        batch_size=None,
        device=_CPU,
    )
    scoring = seconds_to_score(loaded.model, evaluator)
    wanted = config.precisions
    seconds = {"scoring fp32, beside the model": 2 * scoring}
    if "fp16" in wanted:
        seconds["scoring the first fp16, beside fp32"] = 2 * scoring
    if "int8" in wanted:
        seconds["scoring the first int8"] = scoring
    return Plan(
        "export",
        output_dir,
        [PlannedModel.of("model", source.name, sizes)],
        [PlannedData.of("--data", data)],
        memory=Estimate(
            "the process's peak, while a graph is made smaller",
            {
                "the process before": process,
                "the model": sizes["bytes"],
                "its graph in onnxruntime": sizes["bytes"],
                "the graph that is made smaller": sizes["bytes"],
            },
            least=peak_memory(_CPU),
        ),
        disk=Estimate(
            "what there is at once, with fp16 in a half and int8 in a quarter of fp32's bytes",
            {
                "the model": sizes["bytes"],
                "tokenizer": tokenizer_bytes(source),
                **disk_of_graphs(sizes["bytes"], wanted),
            },
        ),
        seconds=Estimate(
            "scoring the development split, from the time that torch takes for a sample of it; making the "
            "graph, and more schemes if the first one is refused, are not in it",
            seconds,
        ),
    )


def disk_of_graphs(weights: int, precisions: Sequence[str]) -> dict[str, float]:
    """Bytes that exporting a model writes besides its weights, by what they are.

    Args:
        weights: Bytes of the model's weights, in float32.
    """
    parts: dict[str, float] = {f"{FOLDER}/{FILES['fp32']}": weights}
    smaller = {name: weights * share for name, share in _SHARES.items() if name in precisions}
    if smaller:  # each is tried beside where it is kept
        parts |= {f"{FOLDER}/{FILES[name]}": size for name, size in smaller.items()}
        parts["a graph that is tried"] = max(smaller.values())
    if "int8" in precisions:
        parts["the graph with smoothed activations"] = weights
    return parts


def _data(config: ExportConfig) -> TaskData:
    """The development split, and training texts to calibrate on; a single file is scored whole."""
    request = data_request(config)
    if Path(str(config.data)).expanduser().is_file():
        return load_data(request, ("validation",), purpose="evaluate", token=config.token)
    return load_data(request, ("train", "validation"), purpose="train", token=config.token)


@dataclass(frozen=True)
class _Export:
    """An export under way: all that its steps read."""

    config: ExportConfig
    source: Source
    data: TaskData
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    folder: Path
    progress: Progress

    def run(self, output_dir: Path) -> ExportResult:
        """Write the files; in the result is what was found on the way."""
        write_model(self.source, self.model, self.folder)
        types = reads_token_types(self.model.config)
        write_tokenizer(self.tokenizer, self.folder, token_types=types)
        longest = fitting_length(self.config.max_length, self.tokenizer, self.source.config)
        texts = self.data.splits["validation"][:_CHECKED_TEXTS]["text"]
        check_tokenizer(self.tokenizer, self.folder, texts, longest)
        evaluator = make_evaluator(
            self.data,
            "validation",
            self.tokenizer,
            self.source,
            max_length=longest,
            batch_size=None,
            device=_CPU,
        )
        graphs = self.folder / FOLDER
        graphs.mkdir()
        agreement = self._fp32(graphs / FILES["fp32"], longest)
        fp32 = evaluator.score(agreement, self.progress)
        agreement.check()
        gate = Gate(fp32, self.config.max_drop)
        verdicts: list[Verdict] = []
        if smaller := [name for name in _SHARES if name in self.config.precisions]:
            texts = SampleTexts.draw(self.data, self.tokenizer, longest)
            for precision in smaller:
                verdicts += self._smaller(precision, graphs, gate, evaluator, texts)
        if "fp32" not in self.config.precisions and not _refused(verdicts):
            for path in graphs.glob(f"{FILES['fp32']}*"):
                path.unlink()
        return ExportResult(
            output_dir=output_dir,
            fp32=fp32,
            difference=agreement.largest,
            changed=agreement.changed,
            max_drop=self.config.max_drop,
            too_small=gate.too_small,
            verdicts=verdicts,
            files={path.name: path.stat().st_size for path in sorted(graphs.iterdir())},
            unread=unread(self.folder, self.source.config, self.data.task),
        )

    def _fp32(self, path: Path, longest: int) -> Agreement:
        """Write the graph in fp32 and try it on a few lengths."""
        self.progress("export to ONNX", 0, None, {})
        write_graph(self.model, path)
        classifier = OnnxClassifier(path)
        dry_run(self.model, classifier, sorted({1, min(7, longest), longest}))
        return Agreement(self.model, classifier)

    def _smaller(
        self,
        precision: Precision,
        graphs: Path,
        gate: Gate,
        evaluator: Evaluator,
        texts: SampleTexts,
    ) -> Sequence[Verdict]:
        """Write the first graph of a precision that passes the gate; what was said of all that were tried."""
        with TemporaryDirectory(dir=self.folder) as tried:
            fp32 = graphs / FILES["fp32"]
            ladder = Ladder(precision, fp32, Path(tried), gate, evaluator, texts, self.progress)
            if found := ladder.climb():
                for path in found.parent.glob(f"{found.name}*"):
                    path.rename(graphs / path.name)
        return ladder.verdicts


def _record(config: ExportConfig, source: Source, data: TaskData, result: ExportResult) -> Record:
    former = source.record
    kept = ("data", "results")  # of the same weights, so they hold still
    facts = {name: getattr(former, name) for name in kept if getattr(former, name) is not None}
    record = record_of(
        "export",
        config,
        "cpu",
        [source],
        data.reference,
        source=source.describe(),
        base=former.base,
        task=source.task,
        training_languages=source.training_languages,
        layers=list(former.layers),
        of_layers=former.of_layers,
        max_length=former.max_length,
        **{name: fact.to_dict() for name, fact in facts.items()},
    )
    return with_export(record, result)


def holds_export(record: Record, precisions: Sequence[str], max_drop: float) -> bool:
    """Whether a directory with this record has graphs of these precisions that passed with this --max-drop."""
    made = record.export
    if made is None or not made.passed or made.max_drop != max_drop:
        return False
    wanted = {f"{FOLDER}/{file}" for name, file in FILES.items() if name in precisions}
    return wanted <= {*made.files}


def with_export(record: Record, result: ExportResult) -> Record:
    """A model's record, with its graphs."""
    versions = {name: version(name) for name in PACKAGES}
    return replace(
        record,
        export=Export.from_dict(result.described()),
        versions={**record.versions, **versions},
    )
