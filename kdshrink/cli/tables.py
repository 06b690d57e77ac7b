"""Prints results as tables."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from ..comparing.sheets import language_sheet, notes, score_sheet, size_sheet, speed_sheet
from ..progress import duration
from .console import stdout


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    return table


def _metric_name(metric: str) -> str:
    return {"macro_f1": "macro-F1", "entity_f1": "entity F1", "negative_loss": "negative loss"}[
        metric
    ]


def _score_table(result: Mapping[str, Any], title: str) -> Table:
    table = _table("language", _metric_name(result["metric"]), "examples", title=title)
    for language, row in result["per_language"].items():
        table.add_row(language, _number(row["score"]), f"{row['examples']:,}")
    table.add_section()
    if "mean_over_languages" in result:
        table.add_row("mean over languages", _number(result["mean_over_languages"]), "")
    examples = sum(row["examples"] for row in result["per_language"].values())
    table.add_row("all languages pooled", _number(result["score"]), f"{examples:,}")
    return table


def _details(result: Mapping[str, Any]) -> Iterable[str]:
    for name in ("accuracy", "precision", "recall"):
        if name in result:
            yield f"{name} {result[name]:.4f}"
    if "averaging" in result:
        yield result["averaging"]
    if "mode" in result:
        yield f"mode: {result['mode']}"
    if result.get("tag_scheme"):
        yield f"tags are {result['tag_scheme']}"
    if result.get("cut_off_words"):
        yield f"{result['cut_off_words']} words cut off by --max-length count as missed"
    if result.get("words_without_tokens"):
        yield f"{result['words_without_tokens']} words without a token count as missed"
    if result.get("cut_off_texts"):
        yield f"{result['cut_off_texts']} texts are longer than --max-length and were cut"


def show_evaluation(result: Mapping[str, Any]) -> None:
    out = stdout()
    out.print(_score_table(result, "Scores"))
    out.print("; ".join(_details(result)))
    if "per_class" in result:
        table = _table("class", "F1")
        for name, score in result["per_class"].items():
            table.add_row(name, _number(score))
        out.print(table)


def show_zero_shot(result: Mapping[str, Any]) -> None:
    out = stdout()
    if result["seen"] is not None:
        out.print(_score_table(result["seen"], f"Seen languages (by {result['seen_from']})"))
    out.print(_score_table(result["unseen"], "Unseen languages"))
    out.print(
        f"gap {_number(result['gap'])}; always predicting the majority class scores "
        f"{_number(result['random_score'])} (accuracy {_number(result['majority_accuracy'])})"
    )
    out.print("; ".join(_details(result["unseen"])))


def show_shrink(result: Mapping[str, Any]) -> None:
    out = stdout()
    table = _table("part", "parameters before", "after", "MB before", "after")
    for part, sizes in result["parts"].items():
        table.add_row(part, *_sizes(sizes))
    table.add_section()
    table.add_row("all", *_sizes(result))
    out.print(table)
    out.print(f"layers of the source, 1-based: {', '.join(map(str, result['layers']))}")
    if vocabulary := result.get("vocabulary"):
        out.print(
            f"vocabulary: {vocabulary['before']:,} tokens before, {vocabulary['after']:,} after"
        )
        held_out = vocabulary.get("held_out")
        if held_out:
            table = _table(
                "language", "tokens per text, before", "after", "unknown, before", "after"
            )
            for language, row in held_out.items():
                table.add_row(
                    language,
                    f"{row['tokens_before']:.2f}",
                    f"{row['tokens_after']:.2f}",
                    f"{row['unknown_before']:.3%}",
                    f"{row['unknown_after']:.3%}",
                )
            out.print("cost for other text, estimated on a held-out tenth of the data:")
            out.print(table)
    if calibration := result.get("calibration"):
        _show_calibration(out, calibration, result["layers"])
    _show_where(out, result)


def _show_calibration(out: Console, calibration: Mapping[str, Any], layers: Iterable[int]) -> None:
    texts = ", ".join(f"{name} {count:,}" for name, count in calibration["texts"].items())
    out.print(
        f"calibrated on {calibration['tokens']:,} tokens; texts by language: {texts}; "
        f"{calibration['multilingual_sentences']:,} multilingual sentences"
    )
    table = _table("hidden states after", "relative error")
    places = ["the embeddings", *(f"layer {number} of the source" for number in layers)]
    for place, error in zip(places, calibration["relative_error"], strict=True):
        table.add_row(place, _number(error))
    out.print(table)
    if shares := calibration["agreement"]:
        ascending = sorted(shares, key=lambda language: shares[language])
        lowest = ", ".join(f"{language} {shares[language]:.0%}" for language in ascending[:3])
        mean = sum(shares.values()) / len(shares)
        out.print(
            f"predicts as the teacher on held-out texts: {mean:.1%} over {len(shares)} languages; "
            f"lowest: {lowest}"
        )


def _sizes(sizes: Mapping[str, int]) -> list[str]:
    return [
        f"{sizes['parameters_before']:,}",
        f"{sizes['parameters_after']:,}",
        f"{sizes['bytes_before'] / 1e6:,.1f}",
        f"{sizes['bytes_after'] / 1e6:,.1f}",
    ]


def show_training(result: Mapping[str, Any]) -> None:
    out = stdout()
    step = result["best_step"]
    best = f"best checkpoint (step {step})" if step else "the model before training, which is best"
    out.print(_score_table(result, f"Development set, {best}"))
    if comparison := result.get("comparison"):
        _show_comparison(out, comparison)
    out.print(
        f"{result['steps']} steps in {result['train_seconds']:.0f} s, "
        f"{result['examples_per_second']:.1f} examples/s, "
        f"peak memory {result['peak_memory_bytes'] / 2**20:,.0f} MiB"
    )
    if exported := result.get("export"):
        _show_graphs(out, exported)
    _show_where(out, result)


def show_info(result: Mapping[str, Any]) -> None:
    out = stdout()
    for name, value in _info_rows(result):
        out.print(f"{name:<15}  {value}", soft_wrap=True)
    if result["score"] is not None:
        out.print(_score_table(result, f"Scores, {result['split']} set"))
    for number, step in enumerate(result["chain"], 1):
        out.print(f"{number}. {step['command']}", soft_wrap=True)
        for model in step["models"]:
            if model["revision"]:
                out.print(f"     {model['model']} at {model['revision']}", soft_wrap=True)
        if step["data"]:
            known = (
                step["data"].get("revision") or step["data"].get("fingerprint") or "not recorded"
            )
            out.print(f"     data {step['data']['name']}: {known}", soft_wrap=True)


def _info_rows(result: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    yield "model", result["model"] + (f" at {result['revision']}" if result["revision"] else "")
    yield "kind", f"{result['architecture'] or 'unknown'} ({result['task'] or 'no'} task)"
    if result["command"]:
        yield "made by", f"kdshrink {result['kdshrink_version']} {result['command']}"
    for name in ("teacher", "source", "base", "hub_base"):
        if result[name]:
            yield name.replace("hub_base", "base on the Hub"), result[name]
    shape = f"{result['layers']}, hidden size {result['hidden_size']}, {result['heads']} heads"
    if result["layers_of"]:
        shape += f" (layers {', '.join(map(str, result['layer_map']))} of {result['layers_of']})"
    yield "layers", shape
    if result["vocabulary"]:
        yield "vocabulary", f"{result['vocabulary']:,}"
    if result["parameters"] is not None:
        yield "size", f"{result['parameters']:,} parameters, {result['bytes'] / 1e6:,.1f} MB"
    if result["labels"]:
        shown = result["labels"][:8]
        more = f" and {len(result['labels']) - 8} more" if len(result["labels"]) > 8 else ""
        yield "labels", ", ".join(shown) + more
    yield "languages", ", ".join(result["training_languages"]) or "none recorded"
    yield "licence", ", ".join(one["license"] for one in result["licences"]) or "none named"


def _show_where(out: Console, result: Mapping[str, Any]) -> None:
    out.print(f"written to {result['output_dir']}", soft_wrap=True)
    if "hub" in result:
        _show_pushed(out, result["hub"])


def show_export(result: Mapping[str, Any]) -> None:
    out = stdout()
    _show_graphs(out, result)
    _show_where(out, result)


def _show_graphs(out: Console, result: Mapping[str, Any]) -> None:
    columns = [verdict["scheme"] for verdict in result["tried"]]
    title = f"{_metric_name(result['metric'])} in fp32, and the points that others lose"
    table = _table("language", "examples", "fp32", *columns, title=title)
    for language, row in result["per_language"].items():
        drops = [verdict["per_language"][language]["drop"] for verdict in result["tried"]]
        told = language in result["too_few_examples"]
        name = f"{language} (too few to tell)" if told else language
        table.add_row(name, f"{row['examples']:,}", _number(row["score"]), *map(_points, drops))
    table.add_section()
    pooled = [_points(verdict["drop"]) for verdict in result["tried"]]
    examples = sum(row["examples"] for row in result["per_language"].values())
    table.add_row("all languages pooled", f"{examples:,}", _number(result["score"]), *pooled)
    passed = ["passed" if verdict["passed"] else "refused" for verdict in result["tried"]]
    table.add_row(f"at most {result['max_drop']:g}", "", "", *passed)
    table.add_row("MB", "", "", *(f"{verdict['bytes'] / 1e6:,.1f}" for verdict in result["tried"]))
    out.print(table)
    for verdict in result["tried"]:
        if verdict["passed"] and verdict["kept_in_fp32"]:
            out.print(f"{verdict['precision']} keeps in fp32: {', '.join(verdict['kept_in_fp32'])}")
        if verdict["difference"] is not None:
            far = verdict["difference"]
            out.print(f"{verdict['scheme']}: its logits are those of fp32 up to {far:.1g}")
    for name, size in result["files"].items():
        out.print(f"{name}: {size / 1e6:,.1f} MB")
    for runtime, faults in result["unread"].items():
        for fault in faults:
            out.print(f"{runtime}: {fault}")


def _points(drop: float) -> str:
    return f"{drop:+.2f}"


def show_compared(result: Mapping[str, Any]) -> None:
    out = stdout()
    for make in (language_sheet, score_sheet, size_sheet, speed_sheet):
        sheet = make(result)
        table = _table(*sheet.columns, title=sheet.title)
        for row in sheet.rows:
            table.add_row(*row)
        out.print(table)
    for note in notes(result):
        out.print(note)
    if result["report"]:
        out.print(f"written to {result['report']}", soft_wrap=True)


def show_push(result: Mapping[str, Any]) -> None:
    _show_pushed(stdout(), result)


def _show_pushed(out: Console, pushed: Mapping[str, Any]) -> None:
    if pushed["pull_request"]:
        line = f"pull request {pushed['pull_request']}"
    elif pushed["changed"]:
        line = f"pushed to {pushed['url']} (commit {pushed['commit']})"
    else:
        line = f"{pushed['url']} is up to date (commit {pushed['commit']})"
    out.print(line, soft_wrap=True)


def _show_comparison(out: Console, comparison: Mapping[str, Any]) -> None:
    models = comparison["models"]
    table = _table("language", *models, title=f"Test set, {_metric_name(comparison['metric'])}")
    for group in ("seen", "unseen"):
        results = {name: model[group] for name, model in models.items()}
        first = next(iter(results.values()))
        if first is None:
            continue
        for language in first["per_language"]:
            scores = [r["per_language"][language]["score"] for r in results.values()]
            table.add_row(f"{language} ({group})", *map(_number, scores))
        table.add_row(
            f"{group}, pooled", *(_number(r["score"]) for r in results.values()), style="bold"
        )
        table.add_section()
    sizes = [f"{model['parameters'] / 1e6:,.2f} M" for model in models.values()]
    table.add_row("parameters", *sizes)
    out.print(table)


def show_reproduction(result: Mapping[str, Any]) -> None:
    out = stdout()
    if result["report"] is None:
        out.out(result["shell"], end="", highlight=False)
        return
    if result["name"] == "data":
        table = _table("data", "training rows per language", "classes", "sets", "available")
        for row in result["rows"]:
            count = "–" if row["train_rows"] is None else f"{row['train_rows']:,.1f}"
            sizes = (row["classes"], row["units"], row["at_hand"])
            table.add_row(row["data"], count, *map(str, sizes))
        out.print(table)
    else:
        loss = any(row["measure"].startswith("loss") for row in result["rows"])
        columns = [*dict.fromkeys(row["column"] for row in result["rows"] if row["values"])]
        table = _table(result["name"], *columns)
        for label in dict.fromkeys(row["row"] for row in result["rows"]):
            cells = {row["column"]: row for row in result["rows"] if row["row"] == label}
            table.add_row(label, *(_score_cell(cells.get(column), loss) for column in columns))
        out.print(table)
    missing = sum(1 for row in result["rows"] if row.get("not_run"))
    if missing:
        out.print(f"{missing} of {len(result['rows'])} cells were not run: the report says why")
    runs = result["runs"]
    if result["plan"]:
        out.print(f"{len(runs['done'])} runs done, {len(runs['found'])} found finished")
    out.print(f"report: {result['report']}", soft_wrap=True)


def _score_cell(row: Mapping[str, Any] | None, loss: bool) -> str:
    if row is None or row["mean"] is None:
        return "–"
    digits = 4 if loss else 2
    text = f"{row['mean']:.{digits}f}"
    if row["standard_deviation"] is not None:
        text += f" ± {row['standard_deviation']:.{digits}f}"
    return text + (f" (paper {row['paper'][0]['score']:.2f})" if row["paper"] else "")


def show_curves(result: Mapping[str, Any]) -> None:
    out = stdout()
    curves = {name: dict(map(tuple, points)) for name, points in result["curves"].items()}
    table = _table("step", *curves, title=result["term"])
    for step in sorted({step for curve in curves.values() for step in curve}):
        table.add_row(f"{step:,}", *(_number(curve.get(step)) for curve in curves.values()))
    out.print(table)
    if result["output"]:
        out.print(f"drawn to {result['output']}", soft_wrap=True)


def show_plan(plan: Mapping[str, Any]) -> None:
    out = stdout()
    if plan["models"]:
        table = _table("model", "", "layers", "width", "vocabulary", "parameters", "MB")
        for model in plan["models"]:
            sizes = (
                f"{model[name]:,}" for name in ("layers", "hidden_size", "vocabulary", "parameters")
            )
            table.add_row(model["role"], model["name"], *sizes, f"{model['bytes'] / 1e6:,.1f}")
        out.print(table)
    for line in _plan_lines(plan):
        out.print(line, soft_wrap=True)


def _plan_lines(plan: Mapping[str, Any]) -> Iterable[str]:
    for data in plan["data"]:
        examples = ", ".join(f"{split} {count:,}" for split, count in data["examples"].items())
        languages = ", ".join(data["languages"])
        yield f"{data['option']} {data['name']}: {examples}; languages: {languages}"
    if plan["training"]:
        yield _training_line(plan["training"])
    for name, unit in (("memory_bytes", _bytes), ("disk_bytes", _bytes), ("seconds", duration)):
        if estimate := plan[name]:
            what = {"seconds": "time"}.get(name, name.removesuffix("_bytes"))
            free = estimate.get("free")
            of = "" if free is None else f" of {_bytes(free)} free"
            parts = ", ".join(f"{part} {unit(size)}" for part, size in estimate["parts"].items())
            yield f"{what}: about {unit(estimate['total'])}{of}: {parts}"
            yield f"  estimate of {estimate['estimate_of']}"
    for run in plan["runs"]:
        state = "finished" if run["finished"] else "to do"
        yield f"{run['name']}: {state}: kdshrink {shlex.join(run['command'])}"
    yield from plan["notes"]
    where = f"; {plan['command']} would write to {plan['output_dir']}" if plan["output_dir"] else ""
    yield f"dry run: nothing was written{where}"


def _training_line(training: Mapping[str, Any]) -> str:
    batch = f"batches of {training['batch_size']} examples"
    if training["tokens_per_batch"]:
        batch = f"batches of up to {training['tokens_per_batch']:,} tokens"
    if training["gradient_accumulation_steps"] > 1:
        batch = f"{training['gradient_accumulation_steps']} {batch} a step"
    if training["processes"] > 1:
        batch += f" on each of {training['processes']} devices"
    resumed = training["resumed_from"]
    return (
        f"{training['steps']:,} steps ({training['epochs']:.3g} epochs of {training['steps_per_epoch']:,}), {batch}, "
        f"learning rate {training['learning_rate']:.3g} after {training['warmup_steps']:,} steps of warm-up"
        + ("" if resumed is None else f"; resumed from step {resumed:,}")
    )


def _bytes(count: float) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
