"""The model card: what a result's README.md says, made from its record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from .languages import NAMED

_PIPELINES = {"sequence": "text-classification", "token": "token-classification"}
_HUB_METRICS = {"macro_f1": "f1", "entity_f1": "seqeval"}
_METRIC_NAMES = {
    "macro_f1": "macro-F1",
    "entity_f1": "entity F1 (seqeval)",
    "negative_loss": "negative loss",
}


def model_card(name: str, record: Mapping[str, Any]) -> str:
    """A card for the model that the record describes.

    Args:
        name: The model's name, for its title.
        record: As in kdshrink.json: command, source or teacher, task, training_languages, results.
    """
    parent = (record.get("teacher") or record.get("source") or {}).get("model")
    task = record.get("task")
    data_name = (record.get("data") or {}).get("name")
    metric = record.get("results", {}).get("metric")
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag=_PIPELINES.get(task) if task else None,
        base_model=parent if parent and _is_hub_id(parent) else None,
        base_model_relation="finetune" if parent and _is_hub_id(parent) else None,
        language=_codes(record) or None,
        datasets=[NAMED[data_name].hub_id]
        if data_name in NAMED and NAMED[data_name].hub_id
        else None,
        metrics=[_HUB_METRICS[metric]] if metric in _HUB_METRICS else None,
        tags=["kdshrink", "multilingual", "knowledge-distillation"],
    )
    sections = [f"---\n{metadata.to_yaml()}\n---", f"# {name}", _origin(record)]
    if scores := _scores(record):
        sections.append(scores)
    if sizes := _sizes(record):
        sections.append(sizes)
    if task:
        sections.append(_usage(name, task))
    sections.append(_made(record))
    return "\n\n".join(sections) + "\n"


def _is_hub_id(name: str) -> bool:
    return name.count("/") <= 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


def _codes(record: Mapping[str, Any]) -> list[str]:
    """ISO codes of the training languages, as far as the registry knows them."""
    named = NAMED.get((record.get("data") or {}).get("name", ""))
    if named is None:
        return []
    languages = record.get("training_languages", [])
    return sorted({unit.code for unit in named.units if unit.name in languages})


def _origin(record: Mapping[str, Any]) -> str:
    source = record.get("source") or {}
    if record["command"] == "finetune":
        text = f"`{source['model']}`, fine-tuned on {_data(record)}."
    elif record["command"] == "shrink":
        text = f"A smaller copy of `{source['model']}`"
        if layers := record.get("layers"):
            text += f", from its layers {', '.join(map(str, layers))}"
        if calibration := record.get("calibration"):
            count = sum(calibration["texts"].values())
            text += f", calibrated on {count:,} texts in {', '.join(calibration['texts'])}"
        text += ". It has not been trained since: distil it before you rely on it."
    else:
        text = (
            f"A student of `{record['teacher']['model']}`, started {record['start']} and distilled on "
            f"{_data(record)}."
        )
    languages = record.get("training_languages")
    if languages:
        text += f"\n\nTrained on: {', '.join(languages)}."
    return text


def _data(record: Mapping[str, Any]) -> str:
    data = record.get("data") or {}
    return f"{data.get('name')} ({len(data.get('languages', []))} languages)"


def _scores(record: Mapping[str, Any]) -> str | None:
    results = record.get("results") or {}
    if "per_language" not in results:
        return None
    metric = _METRIC_NAMES[results["metric"]]
    rows = [
        f"| {name} | {row['score']:.4f} | {row['examples']} |"
        for name, row in results["per_language"].items()
    ]
    return "\n".join(
        [
            "## Scores",
            "",
            f"{metric} on the development set, best checkpoint (step {results['best_step']}): "
            f"{results['score']:.4f} over all languages together.",
            "",
            f"| language | {metric} | examples |",
            "|---|---|---|",
            *rows,
        ]
    )


def _sizes(record: Mapping[str, Any]) -> str | None:
    parts = (record.get("results") or {}).get("parts")
    if not parts:
        return None
    rows = [
        f"| {part} | {sizes['parameters_before']:,} | {sizes['parameters_after']:,} |"
        for part, sizes in parts.items()
    ]
    return "\n".join(
        ["## Size", "", "| part | parameters before | after |", "|---|---|---|", *rows]
    )


def _usage(name: str, task: str) -> str:
    pipeline = _PIPELINES[task]
    return (
        "## Use\n\n```python\nfrom transformers import pipeline\n\n"
        f'classify = pipeline("{pipeline}", model="{name}")\n```'
    )


def _made(record: Mapping[str, Any]) -> str:
    options = ", ".join(
        f"{key}={value}"
        for key, value in record["config"].items()
        if value not in (None, False, {})
    )
    return (
        f"## How it was made\n\nkdshrink {record['kdshrink_version']}, `kdshrink {record['command']}`, "
        f"with {options}. `kdshrink.json` beside this file has the whole record."
    )
