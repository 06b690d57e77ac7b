"""The model card: what a result's README.md says, made from its record alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from ..data.languages import language_of
from ..data.registry import NAMED

_PIPELINES = {"sequence": "text-classification", "token": "token-classification"}
_TASK_NAMES = {"sequence": "Text classification", "token": "Token classification"}
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
_PAPER = "https://arxiv.org/abs/2406.16524"
_Record = Mapping[str, Any]


def model_card(name: str, record: _Record) -> str:
    """A card for the model that the record describes.

    Args:
        name: The model's name: of its directory, or ORG/NAME on the Hub.
        record: As in kdshrink.json.
    """
    sections = [
        f"---\n{_metadata(name, record).to_yaml()}\n---",
        f"# {name.rpartition('/')[2]}",
        _origin(record),
        _languages(record),
        _use(name, record),
        _scores(record),
        _comparison(record),
        _sizes(record),
        _made(record),
        _limits(record),
        _licence(record),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


# --- metadata


def _metadata(name: str, record: _Record) -> ModelCardData:
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
    """The nearest model on the Hub that this one descends from: its teacher first, else by the chain."""
    parent = record.get("teacher") or record.get("source") or {}
    steps = [{"models": [parent]}, *reversed(record.get("chain", []))]
    for step in steps:
        for model in step["models"]:
            if model.get("revision"):
                return model["model"].partition("@")[0]
    return None


def _tags(record: _Record) -> list[str]:
    return {
        "distill": ["knowledge-distillation"],
        "shrink": ["model-compression"],
    }.get(record["command"], [])


def _codes(record: _Record) -> list[str]:
    """ISO 639 codes of the training languages, as far as they are known."""
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
    """The scores of the record as model-index: pooled, then by language."""
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
    """Each split that the model was scored on, with the scores."""
    results = record.get("results") or {}
    if "per_language" in results:
        yield "validation", results
    models = (results.get("comparison") or {}).get("models") or {}
    if "distilled student" in models:
        for group in ("seen", "unseen"):
            if models["distilled student"][group]:
                yield "test", models["distilled student"][group]


# --- text


def _origin(record: _Record) -> str:
    source = (record.get("source") or {}).get("model")
    task = record.get("task")
    kind = {"sequence": "A classifier of texts", "token": "A tagger of words"}.get(
        str(task), "An encoder"
    )
    if record["command"] == "finetune":
        return f"{kind}: {_model(record, source)}, fine-tuned on {_data(record)}."
    if record["command"] == "shrink":
        text = f"{kind}, smaller than its source: the weights of {_model(record, source)}"
        if layers := record.get("layers"):
            total = record.get("of_layers")
            text += f", layers {_listed(layers)} of {total}"
        if calibration := record.get("calibration"):
            count = sum(calibration["texts"].values())
            return (
                f"{text}, calibrated on {count:,} texts in {_listed(list(calibration['texts']))} to compute "
                "what its source does, and not trained since. It is a start for distillation."
            )
        return (
            f"{text}, copied and not trained since. It is a start for distillation; "
            "as it is, expect it to do much worse than its source."
        )
    start = {
        "from-teacher": "It started as a copy of the teacher's own weights",
        "from-base": "It started from the weights of the teacher's base",
        "from-scratch": "It started from random weights",
        "calibrated": "It started from weights calibrated to compute what the teacher does",
    }.get(record["start"], f"It started {record['start']}")
    text = (
        f"{kind}, distilled: it learned from {_model(record, record['teacher']['model'])} on "
        f"{_data(record)}. {start}"
    )
    if layers := record.get("layers"):
        text += f"; its {len(layers)} layers stand for layers {_listed(layers)} of the teacher's {record['of_layers']}"
    return f"{text}. {_objective(record)}."


def _objective(record: _Record) -> str:
    """Which terms of the objective were on."""
    weights = record["config"].get("weights") or {}
    possible = _TERMS if record.get("task") else dict(list(_TERMS.items())[:3])
    on = [shown for term, shown in possible.items() if weights.get(term, 1)]
    learned = record.get("task") and weights.get("task", 1)
    if not on:
        return "It learned from the labels alone"
    labels = ", and the labels learned" if learned else "; no label was used"
    return f"The teacher's {_listed(on)} were matched{labels}, as in [The Privileged Students]({_PAPER})"


def _model(record: _Record, name: object) -> str:
    """A model's name, with a link if it is on the Hub."""
    parent = record.get("teacher") or record.get("source") or {}
    if parent.get("revision"):
        plain = str(name).partition("@")[0]
        return f"[{plain}](https://huggingface.co/{plain})"
    base = hub_base(record)
    origin = f", which descends from [{base}](https://huggingface.co/{base})" if base else ""
    return f"`{name}`{origin}"


def _listed(items: Sequence[object]) -> str:
    words = [str(item) for item in items]
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


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


def _languages(record: _Record) -> str | None:
    trained = record.get("training_languages") or []
    if not trained:
        return None
    text = f"## Languages\n\nTrained on: {_listed(trained)}."
    named = NAMED.get((record.get("data") or {}).get("name", ""))
    if named is not None:
        codes = {language_of(unit) for unit in trained}
        others = [unit.name for unit in named.units if unit.code not in codes]
        if others:
            text += (
                f"\n\nNever trained on for this task: {_listed(others)}. What it does in these rests on "
                "the pretraining of its base alone."
            )
    return text


def _use(name: str, record: _Record) -> str:
    task = record.get("task")
    if not task:
        code = (
            "from transformers import AutoModel, AutoTokenizer\n\n"
            f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n'
            f'model = AutoModel.from_pretrained("{name}")'
        )
    elif task == "token":
        code = (
            "from transformers import pipeline\n\n"
            f'tag = pipeline("{_PIPELINES[task]}", model="{name}", aggregation_strategy="simple")\n'
            'print(tag("Anna Weber bor i Lisboa."))'
        )
    else:
        code = (
            "from transformers import pipeline\n\n"
            f'classify = pipeline("{_PIPELINES[task]}", model="{name}")\n'
            'print(classify("Wake me up at seven tomorrow."))'
        )
    return f"## Use\n\n```python\n{code}\n```"


def _scores(record: _Record) -> str | None:
    results = record.get("results") or {}
    if "per_language" not in results:
        return None
    metric = _METRIC_NAMES[results["metric"]]
    rows = [
        f"| {name} | {row['score']:.4f} | {row['examples']:,} |"
        for name, row in results["per_language"].items()
    ]
    return (
        f"## Scores\n\n{metric} on the development set, which also chose the checkpoint (step "
        f"{results['best_step']:,} of {results['steps']:,}): {results['score']:.4f} over all languages "
        f"pooled.\n\n| language | {metric} | examples |\n|---|---|---|\n" + "\n".join(rows)
    )


def _comparison(record: _Record) -> str | None:
    comparison = (record.get("results") or {}).get("comparison")
    if not comparison:
        return None
    models = comparison["models"]
    lines = [
        f"On the test set, {_METRIC_NAMES[comparison['metric']]}, beside its teacher:",
        "",
        f"| language | {' | '.join(models)} |",
        f"|---|{'---|' * len(models)}",
    ]
    for group, shown in (("seen", "trained on"), ("unseen", "never trained on")):
        scored = [model[group] for model in models.values()]
        if scored[0] is None:
            continue
        for language in scored[0]["per_language"]:
            cells = [f"{one['per_language'][language]['score']:.4f}" for one in scored]
            lines.append(f"| {language} ({shown}) | {' | '.join(cells)} |")
        pooled = [f"{one['score']:.4f}" for one in scored]
        lines.append(f"| all {shown}, pooled | {' | '.join(pooled)} |")
    return "\n".join(lines)


def _sizes(record: _Record) -> str | None:
    parts = (record.get("results") or {}).get("parts")
    if parts:
        whole = {**parts, "all": record["results"]}
        rows = [
            f"| {part} | {n['parameters_before']:,} | {n['parameters_after']:,} "
            f"| {n['bytes_before'] / 1e6:,.1f} | {n['bytes_after'] / 1e6:,.1f} |"
            for part, n in whole.items()
        ]
        head = "| part | parameters before | after | MB before | after |\n|---|---|---|---|---|\n"
    elif sizes := record.get("sizes"):
        rows = [
            f"| {model} | {n['layers']} | {n['hidden_size']} | {n['vocabulary']:,} "
            f"| {n['parameters']:,} | {n['bytes'] / 1e6:,.1f} |"
            for model, n in sizes.items()
        ]
        head = (
            "| | layers | hidden size | vocabulary | parameters | MB in float32 |\n"
            "|---|---|---|---|---|---|\n"
        )
    else:
        return None
    return "## Size\n\n" + head + "\n".join(rows)


def _made(record: _Record) -> str:
    chain = record.get("chain") or []
    commands = "\n".join(f"$ {step['command']}" for step in chain)
    pinned = [
        f"- `{model['model']}` is commit `{model['revision']}`"
        for step in chain
        for model in step["models"]
        if model.get("revision")
    ]
    for step in chain:
        data = step.get("data") or {}
        if data.get("revision"):
            pinned.append(
                f"- the data `{data['name']}` is {data['hub_id']} at `{data['revision']}`"
            )
        elif data.get("fingerprint"):
            pinned.append(
                f"- the data `{data['name']}` was read from files of SHA-256 `{data['fingerprint'][:16]}…`"
            )
    versions = record.get("versions") or {}
    used = ", ".join(
        f"{name} {versions[name]}" for name in ("torch", "transformers") if name in versions
    )
    device = f" on {record['device']}" if record.get("device") else ""
    text = f"## How it was made\n\nWith kdshrink {record['kdshrink_version']} ({used}){device}:\n\n"
    text += f"```console\n{commands}\n```"
    if pinned:
        text += "\n\n" + "\n".join(dict.fromkeys(pinned))
    return text + "\n\n`kdshrink.json` beside this file has every option, seed and result."


def _limits(record: _Record) -> str:
    results = record.get("results") or {}
    limits = []
    if record["command"] == "shrink":
        limits.append("It was cut and not trained since; its scores were not measured.")
    elif results.get("comparison"):
        limits.append(
            "The development scores are a little kind: the same data chose the checkpoint."
        )
    elif results.get("metric") in _HUB_METRICS:
        limits.append(
            "The scores above are of the development set, which chose the checkpoint; on a test set expect "
            "somewhat less. Languages it was not trained on were not scored."
        )
    if results.get("vocabulary"):
        limits.append(
            "Its vocabulary was cut to what a given text uses: other languages, scripts and subjects are "
            "split into more pieces, or unknown ones."
        )
    if record.get("task"):
        limits.append(
            "It knows only the labels of its training data, and answers with one of them always."
        )
        limits.append(
            "It learned from its data and its base whatever bias they have; no study of that was made."
        )
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits) if limits else ""


def _licence(record: _Record) -> str:
    found = record.get("licences") or []
    if not found:
        return (
            "## Licence\n\nThe model that this one was made from names no licence in its card, so none is "
            "claimed here: look at its source, and at the licence of the data."
        )
    names = _listed([one.get("license_name", one["license"]) for one in found])
    return f"## Licence\n\n{names}, as named by the model that this one was made from. The data has its own."
