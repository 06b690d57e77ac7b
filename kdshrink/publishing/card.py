"""Writes the model card, a result's README.md, from its record and the template card.md."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.languages import language_of
from ..data.registry import NAMED

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

_TEMPLATE = Path(__file__).with_name("card.md")
_PIPELINES = {"sequence": "text-classification", "token": "token-classification"}
_TASK_NAMES = {"sequence": "Text classification", "token": "Token classification"}
_KINDS = {"sequence": "A classifier of texts", "token": "A tagger of words"}
_HUB_METRICS = {"macro_f1": "f1", "entity_f1": "seqeval"}
_METRIC_NAMES = {
    "macro_f1": "macro-F1",
    "entity_f1": "entity F1 (seqeval)",
    "negative_loss": "negative loss",
}
_TERMS = {
    "embedding": "embeddings",
    "hidden": "hidden states",
    "attention": "attention",
    "prediction": "logits",
}
_STARTS = {
    "from-teacher": "It started as a copy of the teacher's own weights",
    "from-base": "It started from the weights of the teacher's base",
    "from-scratch": "It started from random weights",
    "calibrated": "It started from weights calibrated to compute what the teacher does",
}
_Record = Mapping[str, Any]


def model_card(name: str, record: _Record) -> str:
    """A card for the model that the record describes.

    Args:
        name: The model's name: of its directory, or ORG/NAME on the Hub.
        record: As in kdshrink.json.
    """
    # ModelCard.from_template does the same, but imports all of huggingface_hub, which takes longer than to
    # shrink a small model. torch requires jinja2, so it is always there.
    from jinja2 import Template

    template = Template(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(card_data=_metadata(name, record).to_yaml(), **_facts(name, record))


# --- metadata


def _metadata(name: str, record: _Record) -> ModelCardData:
    from huggingface_hub import ModelCardData

    base = hub_base(record)
    task = record.get("task")
    metric = (record.get("results") or {}).get("metric")
    data_id = _data_id(record)
    results = list(_eval_results(record)) if data_id else []
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=_PIPELINES.get(task) if task else None,
        base_model=base,
        base_model_relation="finetune" if base else None,
        language=_codes(record) or None,
        datasets=[data_id] if data_id else None,
        metrics=[_HUB_METRICS[metric]] if metric in _HUB_METRICS else None,
        model_name=name.rpartition("/")[2] if results else None,
        eval_results=results or None,
        tags=["kdshrink", "multilingual", *_tags(record)],
        **_licence_fields(record),
    )


def hub_base(record: _Record) -> str | None:
    """The nearest ancestor of the model on the Hub: its teacher, else by the chain of commands."""
    parent = record.get("teacher") or record.get("source") or {}
    steps = [{"models": [parent]}, *reversed(record.get("chain", []))]
    for step in steps:
        for model in step["models"]:
            if model.get("revision"):
                return model["model"].partition("@")[0]
    return None


def _tags(record: _Record) -> list[str]:
    tags = {"distill": ["knowledge-distillation"], "shrink": ["model-compression"]}
    return [*tags.get(record["command"], []), *(["onnx"] if record.get("export") else [])]


def _codes(record: _Record) -> list[str]:
    """ISO 639 codes of the training languages that have one."""
    codes = {language_of(unit) for unit in record.get("training_languages", [])}
    return sorted(code for code in codes if re.fullmatch(r"[a-z]{2,3}", code) and code != "und")


def _data_id(record: _Record) -> str | None:
    return (record.get("data") or {}).get("hub_id")


def _licence_fields(record: _Record) -> dict[str, Any]:
    found = record.get("licences") or []
    if len(found) > 1:
        return {"license": [one["license"] for one in found]}
    return dict(found[0]) if found else {}


def _eval_results(record: _Record) -> Iterator[EvalResult]:
    """The scores of the record for the model-index: over all languages, then by language."""
    from huggingface_hub import EvalResult

    data = record.get("data") or {}
    task = record.get("task")
    for split, result in _measured(record):
        if result["metric"] not in _HUB_METRICS:
            return
        fixed: dict[str, Any] = {
            "task_type": _PIPELINES[str(task)],
            "task_name": _TASK_NAMES[str(task)],
            "dataset_type": data["hub_id"],
            "dataset_split": split,
            "dataset_revision": data.get("revision"),
            "metric_type": "f1",
            "metric_name": _METRIC_NAMES[result["metric"]],
        }
        yield EvalResult(
            dataset_name=f"{data['name']}, languages pooled",
            dataset_config=None,
            metric_value=round(result["score"], 4),
            **fixed,
        )
        for language, row in result["per_language"].items():
            yield EvalResult(
                dataset_name=f"{data['name']} ({language})",
                dataset_config=language,
                metric_value=round(row["score"], 4),
                **fixed,
            )


def _measured(record: _Record) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each split that the model was scored on, with its scores."""
    results = record.get("results") or {}
    if "per_language" in results:
        yield "validation", results
    models = (results.get("comparison") or {}).get("models") or {}
    if "distilled student" in models:
        for group in ("seen", "unseen"):
            if models["distilled student"][group]:
                yield "test", models["distilled student"][group]


# --- facts for the template


def _facts(name: str, record: _Record) -> dict[str, Any]:
    """The variables of the template card.md."""
    task = record.get("task")
    results = record.get("results") or {}
    versions = record.get("versions") or {}
    libraries = [n for n in ("torch", "transformers") if n in versions]
    return {
        "name": name,
        "title": name.rpartition("/")[2],
        "command": record["command"],
        "task": task,
        "kind": _KINDS.get(str(task), "An encoder"),
        "parent": _parent(record),
        "data": _data(record),
        "layers": record.get("layers"),
        "of_layers": record.get("of_layers"),
        "calibration_texts": (record.get("calibration") or {}).get("texts"),
        "start": _STARTS.get(start := str(record.get("start")), f"It started {start}"),
        "matched": _matched(record),
        "learns_labels": bool(task and _weight(record, "task")),
        "trained_on": record.get("training_languages"),
        "not_trained_on": _not_trained_on(record),
        "results": results,
        "parts": {**results["parts"], "all": results} if results.get("parts") else None,
        "comparison_rows": list(_comparison_rows(record)),
        "sizes": record.get("sizes"),
        "export": record.get("export"),
        "kdshrink_version": record["kdshrink_version"],
        "libraries": ", ".join(f"{library} {versions[library]}" for library in libraries),
        "device": record.get("device"),
        "chain": record.get("chain") or [],
        "pinned": list(dict.fromkeys(_pinned(record))),
        "licences": [
            one.get("license_name", one["license"]) for one in record.get("licences") or []
        ],
        "hub_metrics": _HUB_METRICS,
        "metric_names": _METRIC_NAMES,
        "listed": _listed,
    }


def _listed(items: Sequence[object]) -> str:
    words = [str(item) for item in items]
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _parent(record: _Record) -> str:
    """The model that this one was made from, with a link if it is on the Hub."""
    parent = record.get("teacher") or record.get("source") or {}
    name = str(parent.get("model"))
    if parent.get("revision"):
        plain = name.partition("@")[0]
        return f"[{plain}](https://huggingface.co/{plain})"
    base = hub_base(record)
    origin = f", which descends from [{base}](https://huggingface.co/{base})" if base else ""
    return f"`{name}`{origin}"


def _data(record: _Record) -> str:
    data = record.get("data") or {}
    name = data.get("name") or "data that was not recorded"
    count = len(data.get("languages", []))
    examples = (data.get("examples") or {}).get("train")
    details = [
        f"{examples:,} examples" if examples else "",
        f"{count} languages" if count > 1 else "",
    ]
    inner = ", ".join(filter(None, details))
    shown = (
        f"[{name}](https://huggingface.co/datasets/{data['hub_id']})" if _data_id(record) else name
    )
    return f"{shown} ({inner})" if inner else shown


def _weight(record: _Record, term: str) -> float:
    weights = (record.get("config") or {}).get("weights") or {}
    return weights.get(term, 1)


def _matched(record: _Record) -> list[str]:
    """The parts of the teacher that the objective matched; an encoder without a head has no logits."""
    return [
        shown
        for term, shown in _TERMS.items()
        if _weight(record, term) and (term != "prediction" or record.get("task"))
    ]


def _not_trained_on(record: _Record) -> list[str]:
    """The languages of a named data set that the model was not trained on."""
    named = NAMED.get((record.get("data") or {}).get("name", ""))
    if named is None:
        return []
    codes = {language_of(unit) for unit in record.get("training_languages") or []}
    return [unit.name for unit in named.units if unit.code not in codes]


def _comparison_rows(record: _Record) -> Iterator[tuple[str, list[float]]]:
    """The rows of the comparison: a label, and the score of each model."""
    models = ((record.get("results") or {}).get("comparison") or {}).get("models") or {}
    for group, shown in (("seen", "trained on"), ("unseen", "never trained on")):
        scored = [model[group] for model in models.values()]
        if not scored or scored[0] is None:
            continue
        for language in scored[0]["per_language"]:
            yield (
                f"{language} ({shown})",
                [one["per_language"][language]["score"] for one in scored],
            )
        yield f"all {shown}, pooled", [one["score"] for one in scored]


def _pinned(record: _Record) -> Iterator[str]:
    """Sentences on the exact commits or files of the models and data of the chain."""
    chain = record.get("chain") or []
    for model in (model for step in chain for model in step["models"]):
        if model.get("revision"):
            yield f"`{model['model']}` is commit `{model['revision']}`"
    for data in (step.get("data") or {} for step in chain):
        if data.get("revision"):
            yield f"the data `{data['name']}` is {data['hub_id']} at `{data['revision']}`"
        elif data.get("fingerprint"):
            yield f"the data `{data['name']}` was read from files of SHA-256 `{data['fingerprint'][:16]}…`"
