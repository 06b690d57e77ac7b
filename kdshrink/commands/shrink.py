"""`kdshrink shrink`: a smaller copy of a model."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config.commands import ShrinkConfig, input_paths
from ..files import write_text
from ..models.architectures import family_of
from ..models.source import Source, find_model, tokenizer_files
from ..output import final_files, name_of, open_output
from ..progress import Progress, silent
from ..publishing.card import model_card
from ..publishing.push import PushResult, check_push, pushed
from ..publishing.record import make_record, write_record
from ..shrinking.vocabulary import (
    Text,
    TrimmedTokenizer,
    count_pieces,
    read_settings,
    trim_tokenizer,
)
from ..shrinking.vocabulary_cost import held_out_cost, is_held_out
from ..shrinking.weights import CopyReport

if TYPE_CHECKING:
    from ..data.load import TaskData
from ..shrinking.weights import check_source, note_pipeline, plan_for, shrink_source


@dataclass(frozen=True)
class ShrinkResult:
    """What shrink() wrote; sizes are numbers of parameters and bytes of their tensors."""

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

    Weights go from file to file a tensor at a time; no model is made, but for `init="scratch"` and
    `init="calibrated"`.

    Raises:
        KdshrinkError: As `errors` lists.
    """
    source = find_model(config.model, config)
    output_dir = config.output_dir or Path(_default_name(config, source))
    with open_output(output_dir, "shrink", overwrite=config.overwrite, inputs=input_paths(config)):
        return _shrink(source, config, output_dir, progress or silent)


def _shrink(
    source: Source, config: ShrinkConfig, output_dir: Path, progress: Progress
) -> ShrinkResult:
    repo_id = check_push(config, output_dir)
    tokenizer_files(source)
    plan = plan_for(source, config, calibrated=config.init == "calibrated")
    check_source(source, plan)
    note_pipeline(source)
    texts = _calibration_texts(source, config) if config.init == "calibrated" else None
    trimmed, vocabulary, calibration, heads, device = None, None, None, None, None
    if config.vocab_from is not None:
        trimmed, vocabulary = _trim(source, config, progress)
    with final_files(output_dir) as folder:
        plan, report = shrink_source(
            source,
            config,
            folder,
            init=config.init,
            seed=config.seed,
            trimmed=trimmed,
            progress=progress,
        )
        if texts is not None:
            from ..calibration.calibrate import calibrate_student
            from ..models.devices import describe_device, pick_device

            kept = None if trimmed is None else trimmed.kept
            options: Any = {"kept": kept, "progress": progress}
            done = calibrate_student(source, folder, plan, texts, config, **options)
            calibration = {**done.to_dict(), "data": texts.source}
            heads = done.heads
            device = describe_device(pick_device(config.device))
        record = make_record(
            "shrink",
            config,
            device,
            [source],
            None if vocabulary is None else vocabulary["data"],
            source=source.describe(),
            base=(source.record or {}).get("base") or (None if source.task else source.name),
            task=source.task,
            data=(source.record or {}).get("data"),
            training_languages=[] if config.init == "scratch" else source.training_languages,
            layers=list(plan.layers),
            of_layers=source.depth,
            heads=heads,
            **({} if calibration is None else {"calibration": calibration}),
        )
        result = ShrinkResult(
            output_dir,
            tuple(plan.layers),
            plan.width,
            report,
            vocabulary,
            calibration,
        )
        record["results"] = {k: v for k, v in result.to_dict().items() if k != "output_dir"}
        write_text(folder / "README.md", model_card(name_of(output_dir), record))
        write_record(folder, record)
    return pushed(result, repo_id, config)


def _trim(
    source: Source, config: ShrinkConfig, progress: Progress
) -> tuple[TrimmedTokenizer, dict[str, Any]]:
    """Cut the tokenizer down to the text of --vocab-from; what was done, for the result."""
    from ..data.load import load_data
    from ..models.loading import load_tokenizer, prefix_words

    tokenizer = load_tokenizer(source, config, source.task)
    wanted = replace(config, data=config.vocab_from)
    data = load_data(wanted, None, purpose="evaluate", labels="unused", token=config.token)
    if data.task == "token":
        prefix_words(tokenizer)
    total = sum(map(len, data.splits.values()))
    chosen = np.zeros(len(tokenizer), dtype=np.int64)
    held_counts = np.zeros_like(chosen)
    held_texts: dict[str, list[Text]] = {}
    done = 0
    for table in data.splits.values():
        for batch in table.select_columns(["text", "language"]).iter(1000):
            rows = range(done, done + len(batch["text"]))
            held = [i for i, row in enumerate(rows) if is_held_out(row)]
            rest = [
                text for text, row in zip(batch["text"], rows, strict=True) if not is_held_out(row)
            ]
            if rest:
                chosen += count_pieces(tokenizer, [rest])
            if held:
                held_counts += count_pieces(tokenizer, [[batch["text"][i] for i in held]])
            for i in held:
                held_texts.setdefault(batch["language"][i], []).append(batch["text"][i])
            done = rows.stop
            progress("count pieces", done, total, {})
    limits: Any = {"vocab_size": config.vocab_size, "min_count": config.vocab_min_count}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        settings = read_settings(Path(folder))
    estimate = trim_tokenizer(tokenizer, chosen, settings, **limits)
    costs = held_out_cost(
        tokenizer.backend_tokenizer, estimate.backend(), tokenizer.unk_token, held_texts
    )
    trimmed = trim_tokenizer(tokenizer, chosen + held_counts, settings, **limits)
    return trimmed, {
        "before": len(tokenizer),
        "after": len(trimmed.kept),
        "data": data.source,
        "held_out": {language: asdict(cost) for language, cost in costs.items()},
    }


def _calibration_texts(source: Source, config: ShrinkConfig) -> TaskData:
    """The text of --data, or without it of --vocab-from.

    Raises:
        ModelError: Models of this type cannot be calibrated.
    """
    from ..data.load import load_data

    family_of(source.config, "calibrated")
    wanted = replace(config, data=config.data or config.vocab_from)
    return load_data(wanted, ("train",), purpose="train", labels="unused", token=config.token)


def _default_name(config: ShrinkConfig, source: Source) -> str:
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
    return name if name != source.name else f"{name}-copy"
