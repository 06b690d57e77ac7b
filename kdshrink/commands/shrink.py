"""`kdshrink shrink`: write a smaller copy of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.commands import ShrinkConfig, input_paths
from ..config.fields import kebab
from ..files import write_text
from ..models.architectures import family_of
from ..models.source import Source, find_model, tokenizer_files
from ..output import check_output, final_files, name_of, open_output
from ..progress import Progress, silent
from ..publishing.card import model_card
from ..publishing.push import PushResult, pushed
from ..publishing.record import write_record
from ..record import Record
from ..shrinking.plan import Shape, StudentPlan, plan_student
from ..shrinking.weights import (
    CopyReport,
    check_source,
    note_pipeline,
    plan_copy,
    shrink_source,
)
from .options import access_of, ready_destination, record_of, shape_of
from .plan import Estimate, Plan, PlannedData, PlannedModel, tokenizer_bytes

if TYPE_CHECKING:  # a plain copy imports no torch, transformers or tokenizers
    import torch

    from ..data.load import TaskData
    from ..shrinking.vocabulary import TrimmedTokenizer


@dataclass(frozen=True)
class ShrinkResult:
    """The result of `shrink`; sizes are in parameters and in bytes of the tensors."""

    output_dir: Path
    layers: tuple[int, ...]
    hidden_size: int
    copied: CopyReport
    vocabulary: Mapping[str, Any] | None
    calibration: Mapping[str, Any] | None = None
    pushed: PushResult | None = None

    def to_dict(self) -> dict[str, Any]:
        """The keys of --json."""
        result = {
            "output_dir": str(self.output_dir),
            "layers": list(self.layers),
            "hidden_size": self.hidden_size,
            **self.copied.to_dict(),
        }
        if self.vocabulary is not None:
            result["vocabulary"] = dict(self.vocabulary)
        if self.pushed is not None:
            result["hub"] = self.pushed.to_dict()
        if self.calibration is not None:
            result["calibration"] = dict(self.calibration)
        return result


def shrink(config: ShrinkConfig, progress: Progress | None = None) -> ShrinkResult:
    """Write a smaller copy of a model: fewer layers, a smaller width, a smaller vocabulary.

    Weights are copied from file to file one tensor at a time; no model is loaded, except for
    `init="scratch"` and `init="calibrated"`.

    Raises:
        KdshrinkError: As `errors` lists.
    """
    output_dir = config.output_dir or Path(_default_name(config))
    with open_output(output_dir, "shrink", overwrite=config.overwrite, inputs=input_paths(config)):
        destination = ready_destination(config, output_dir)
        result = _shrink(config, output_dir, _prepare(config, progress or silent))
        return pushed(result, destination)


def plan_shrink(config: ShrinkConfig, progress: Progress | None = None) -> Plan:
    """What `shrink` would do; its errors before weights are written are raised too."""
    output_dir = config.output_dir or Path(_default_name(config))
    check_output(output_dir, "shrink", overwrite=config.overwrite, inputs=input_paths(config))
    ready_destination(config, output_dir, create=False)
    return _plan(config, output_dir, _prepare(config, progress or silent))


@dataclass(frozen=True)
class _Prepared:
    """What is ready before the weights are written.

    Attributes:
        plan: The student's shape, with its trimmed vocabulary.
        device, texts: Where to calibrate, and on what.
        trimmed: The student's tokenizer, if its vocabulary is trimmed.
        vocabulary: How it was trimmed, for the result.
    """

    source: Source
    shape: Shape
    plan: StudentPlan
    device: torch.device | None
    texts: TaskData | None
    trimmed: TrimmedTokenizer | None
    vocabulary: dict[str, Any] | None
    progress: Progress

    @property
    def kept(self) -> Sequence[int] | None:
        """The source's ids of the student's tokens; None if they are the same."""
        return None if self.trimmed is None else self.trimmed.kept


def _prepare(config: ShrinkConfig, progress: Progress) -> _Prepared:
    source = find_model(config.model, access_of(config))
    tokenizer_files(source)
    shape = shape_of(config)
    calibrated = config.init == "calibrated"
    plan = plan_student(source.config, shape, calibrated=calibrated)
    check_source(source, plan)
    note_pipeline(source)
    device, texts = None, None
    if calibrated:
        from ..models.devices import pick_device

        device, texts = pick_device(config.device), _calibration_texts(source, config)
    trimmed, vocabulary = None, None
    if config.vocab_from is not None:
        trimmed, vocabulary = _trim(source, config, progress)
        plan = plan_student(source.config, shape, trimmed.kept, calibrated=calibrated)
    return _Prepared(source, shape, plan, device, texts, trimmed, vocabulary, progress)


def _shrink(config: ShrinkConfig, output_dir: Path, ready: _Prepared) -> ShrinkResult:
    source = ready.source
    with final_files(output_dir) as folder:
        plan, report = shrink_source(
            source,
            ready.shape,
            folder,
            init=config.init,
            seed=config.seed,
            trimmed=ready.trimmed,
            progress=ready.progress,
        )
        calibration = None
        if ready.texts is not None and ready.device is not None:
            calibration = _calibrate(config, ready, folder, ready.texts, ready.device)
        result = ShrinkResult(
            output_dir,
            tuple(plan.layers),
            plan.width,
            report,
            ready.vocabulary,
            None if calibration is None else calibration.described,
        )
        record = _record(source, config, plan, result, calibration)
        write_text(folder / "README.md", model_card(name_of(output_dir), record.to_dict()))
        write_record(folder, record)
    return result


def _plan(config: ShrinkConfig, output_dir: Path, ready: _Prepared) -> Plan:
    source, plan = ready.source, ready.plan
    sizes = plan_copy(source.directory, plan).to_dict()
    models = [
        PlannedModel(
            "source",
            source.name,
            source.depth,
            source.width,
            source.vocabulary,
            sizes["parameters_before"],
            sizes["bytes_before"],
        ),
        PlannedModel(
            "student",
            config.init,
            len(plan.layers),
            plan.width,
            plan.config["vocab_size"],
            sizes["parameters_after"],
            sizes["bytes_after"],
        ),
    ]
    data, notes = [], []
    if ready.texts is not None:
        data.append(PlannedData.of(f"--{kebab(_names_texts(config))}", ready.texts))
        notes.append(
            "Calibrating was not tried: its time, memory and spilled activations are not told."
        )
    else:
        notes.append("Weights are copied some rows at a time, in little memory.")
    if ready.vocabulary is not None:
        before, after = ready.vocabulary["before"], ready.vocabulary["after"]
        notes.append(f"Of {before:,} tokens {after:,} are kept, as --vocab-from has them.")
    disk = {"the result": sizes["bytes_after"], "tokenizer": tokenizer_bytes(source)}
    if ready.texts is not None:  # the calibrated weights are written beside the copied ones
        disk["calibrated weights"] = sizes["bytes_after"]
    return Plan(
        "shrink",
        output_dir,
        models,
        data,
        disk=Estimate("what there is at once; the tokenizer is counted as the source's", disk),
        notes=notes,
    )


@dataclass(frozen=True)
class _Calibrated:
    """How a student was calibrated.

    Attributes:
        described: The calibration, for the result and the record.
        heads: For each layer and head, the teacher's layer and head that it corresponds to.
    """

    described: dict[str, Any]
    heads: Any
    device: str


def _calibrate(
    config: ShrinkConfig, ready: _Prepared, folder: Path, texts: TaskData, device: torch.device
) -> _Calibrated:
    from ..calibration.calibrate import calibrate_student
    from ..calibration.texts import CalibrationData
    from ..models.devices import describe_device

    data = CalibrationData.sample(
        texts,
        config.calibration_samples,
        max_length=config.max_length,
        copies=config.calibration_copies,
        multilingual=config.calibration_multilingual,
    )
    done = calibrate_student(
        ready.source, folder, ready.plan, data, device, kept=ready.kept, progress=ready.progress
    )
    described = {**done.to_dict(), "data": texts.reference}
    return _Calibrated(described, done.heads, str(describe_device(device)))


def _record(
    source: Source,
    config: ShrinkConfig,
    plan: StudentPlan,
    result: ShrinkResult,
    calibration: _Calibrated | None,
) -> Record:
    former = source.record
    return record_of(
        "shrink",
        config,
        None if calibration is None else calibration.device,
        [source],
        None if result.vocabulary is None else result.vocabulary["data"],
        source=source.describe(),
        base=former.base or (None if source.task else source.name),
        task=source.task,
        data=None if former.data is None else former.data.to_dict(),
        training_languages=[] if config.init == "scratch" else source.training_languages,
        layers=list(plan.layers),
        of_layers=source.depth,
        heads=None if calibration is None else calibration.heads,
        **({} if calibration is None else {"calibration": calibration.described}),
        results={k: v for k, v in result.to_dict().items() if k != "output_dir"},
    )


def _trim(
    source: Source, config: ShrinkConfig, progress: Progress
) -> tuple[TrimmedTokenizer, dict[str, Any]]:
    """Trim the tokenizer to the text of --vocab-from; also a description for the result."""
    from ..data.load import load_data
    from ..models.loading import load_tokenizer, prefix_words
    from ..shrinking.vocabulary_cost import trim_by_texts
    from .inputs import data_request

    tokenizer = load_tokenizer(source, source.task)
    request = data_request(config, name="vocab_from")
    data = load_data(request, None, purpose="evaluate", labels="unused", token=config.token)
    if data.task == "token":
        prefix_words(tokenizer)
    trimmed, costs = trim_by_texts(
        tokenizer,
        list(data.splits.values()),
        vocab_size=config.vocab_size,
        min_count=config.vocab_min_count,
        progress=progress,
    )
    return trimmed, {
        "before": len(tokenizer),
        "after": len(trimmed.kept),
        "data": data.reference,
        "held_out": {language: asdict(cost) for language, cost in costs.items()},
    }


def _calibration_texts(source: Source, config: ShrinkConfig) -> TaskData:
    """The texts of --data, else those of --vocab-from.

    Raises:
        ModelError: Models of this type cannot be calibrated.
    """
    from ..data.load import load_data
    from .inputs import data_request

    family_of(source.config, "calibrated")
    request = data_request(config, name=_names_texts(config))
    return load_data(request, ("train",), purpose="train", labels="unused", token=config.token)


def _names_texts(config: ShrinkConfig) -> str:
    """The field that names the texts to calibrate on."""
    return "data" if config.data else "vocab_from"


def _default_name(config: ShrinkConfig) -> str:
    name = Path(config.model.partition("@")[0]).name
    if config.layers is not None:
        name += f"-{config.layers}l"
    elif config.layer_map is not None:
        name += f"-{config.layer_map.replace(',', '-')}"
    if config.hidden_size is not None:
        name += f"-{config.hidden_size}h"
    if config.vocab_from is not None:
        name += f"-{Path(config.vocab_from).stem}"
    if config.init == "calibrated":
        name += "-calibrated"
    return name if name != config.model else f"{name}-copy"
