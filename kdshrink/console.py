"""The only module that prints: results to stdout; progress, notes and errors to stderr."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from .distributed import is_first, rank
from .progress import RunState

_PLAIN_SECONDS = 15.0


class _Notes:
    """A stream of notes, which fails no command: work goes on when its reader has gone away."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            _discard(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            _discard(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _discard(stream: TextIO) -> None:
    """Send what a stream still holds, and all that comes, to nowhere: else it fails again at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _occupy_closed() -> None:
    """Open the standard descriptors that are closed: else the next file opened becomes stdout."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            os.dup2(opened, descriptor)
            if opened != descriptor:
                os.close(opened)


@contextmanager
def steady_streams() -> Iterator[None]:
    """Streams that can be written whatever they were given as.

    What goes to a closed one goes nowhere, and a character that one cannot show is escaped.
    """
    before = sys.stdout, sys.stderr
    _occupy_closed()
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            # Not to be closed when it is collected: a library may write to the descriptor later.
            setattr(sys, name, os.fdopen(descriptor, "w", encoding="utf-8", closefd=False))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.stderr = _Notes(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def flush_stdout() -> None:
    """Have all that was printed written.

    Raises:
        OSError: It cannot be, and is dropped.
    """
    try:
        sys.stdout.flush()
    except OSError:
        _discard(sys.stdout)
        raise


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # rich would end the program here, and a result may be written all the same.
        raise


def _stdout() -> Console:
    # Without a terminal a table keeps its natural width: rich would fold it at 80 columns.
    width = None if sys.stdout.isatty() else 200
    return _Console(width=width, highlight=False, markup=False, emoji=False, quiet=not is_first())


def _stderr(quiet: bool | None = None) -> Console:
    return Console(
        stderr=True,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=True,
        quiet=not is_first() if quiet is None else quiet,
    )


def _labelled(label: str, colour: str, message: str) -> Text:
    return Text.assemble((f"{label}:", colour), " ", message)


_secrets: set[str] = set()


def hide(secret: str | None) -> None:
    """Never print this, whoever says it: a server may quote a token in its answer."""
    if secret and len(secret) >= 4:
        _secrets.add(secret)


def _masked(text: str) -> str:
    for secret in _secrets:
        text = text.replace(secret, "•••")
    return text


class _LogHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        text: str | Text = _masked(self.format(record))
        if record.levelno >= logging.WARNING:
            colour = "yellow" if record.levelno == logging.WARNING else "red"
            text = _labelled(record.levelname.lower(), colour, str(text))
        _active_console().print(text)


def show_log() -> None:
    """Send the library's log to stderr."""
    logger = logging.getLogger("kdshrink")
    if not logger.handlers:
        logger.addHandler(_LogHandler())
        logger.propagate = False


def print_error(message: str) -> None:
    """An error, of whichever process: it may be that one's alone."""
    label = "error" if is_first() else f"error in process {rank()}"
    _stderr(quiet=False).print(_labelled(label, "red", _masked(message)))


def print_traceback(error: BaseException) -> None:
    """The traceback of a bug, without the values of variables."""
    # A thousand frames of a recursion say no more than its last ones.
    limit = -12 if isinstance(error, RecursionError) else None
    sys.stderr.write(_masked("".join(traceback.format_exception(error, limit=limit))))


def print_line(line: str) -> None:
    _stdout().print(line, soft_wrap=True)


def print_json(result: Mapping[str, Any]) -> None:
    """One JSON object on one line."""
    if not is_first():
        return
    text = _masked(json.dumps(result, ensure_ascii=False, allow_nan=False))
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = _masked(json.dumps(result, allow_nan=False))
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


_live: list[RichProgress | Live] = []


def _active_console() -> Console:
    return _live[-1].console if _live else _stderr()


class Progress:
    """A `kdshrink.progress.Progress`: a live bar on a terminal, else a plain line now and then."""

    def __init__(self) -> None:
        self._bar: RichProgress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._last = time.monotonic()
        self._began: dict[str, float] = {}

    def __enter__(self) -> Progress:
        if sys.stderr.isatty() and is_first():
            self._bar = RichProgress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}{task.fields[figures]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=_stderr(),
                transient=True,
            )
            self._bar.start()
            _live.append(self._bar)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            _live.remove(self._bar)
            self._bar.stop()

    def __call__(
        self, what: str, done: int, total: int | None, figures: Mapping[str, float]
    ) -> None:
        shown = "".join(f" {name} {value:.4f}" for name, value in figures.items())
        began = self._began.setdefault(what, time.monotonic())
        seconds = time.monotonic() - began
        rate = f"{done / seconds:.1f}/s" if seconds > 1 else ""
        if self._bar is not None:
            if what not in self._tasks:
                self._tasks[what] = self._bar.add_task(what, total=total, figures="", rate="")
            fields: dict[str, Any] = {"figures": shown} if figures else {}
            self._bar.update(self._tasks[what], completed=done, total=total, rate=rate, **fields)
            if total is not None and done >= total:
                self._bar.remove_task(self._tasks.pop(what))
                self._began.pop(what)
        elif figures or time.monotonic() - self._last > _PLAIN_SECONDS:
            self._last = time.monotonic()
            of = f"/{total}" if total else ""
            _stderr().print(f"{what} {done}{of}{shown} {rate}".rstrip())


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
    out = _stdout()
    out.print(_score_table(result, "Scores"))
    out.print("; ".join(_details(result)))
    if "per_class" in result:
        table = _table("class", "F1")
        for name, score in result["per_class"].items():
            table.add_row(name, _number(score))
        out.print(table)


def show_zero_shot(result: Mapping[str, Any]) -> None:
    out = _stdout()
    if result["seen"] is not None:
        out.print(_score_table(result["seen"], f"Seen languages (by {result['seen_from']})"))
    out.print(_score_table(result["unseen"], "Unseen languages"))
    out.print(
        f"gap {_number(result['gap'])}; always answering the majority class scores "
        f"{_number(result['random_score'])} (accuracy {_number(result['majority_accuracy'])})"
    )
    out.print("; ".join(_details(result["unseen"])))


def show_shrink(result: Mapping[str, Any]) -> None:
    out = _stdout()
    table = _table("part", "parameters before", "after", "MB before", "after")
    for part, sizes in result["parts"].items():
        table.add_row(part, *_sizes(sizes))
    table.add_section()
    table.add_row("all", *_sizes(result))
    out.print(table)
    out.print(f"layers of the source, 1-based: {', '.join(map(str, result['layers']))}")
    if vocabulary := result.get("vocabulary"):
        out.print(
            f"vocabulary: {vocabulary['before']:,} pieces before, {vocabulary['after']:,} after"
        )
        held_out = vocabulary.get("held_out")
        if held_out:
            table = _table("language", "tokens a text, before", "after", "unknown, before", "after")
            for language, row in held_out.items():
                table.add_row(
                    language,
                    f"{row['tokens_before']:.2f}",
                    f"{row['tokens_after']:.2f}",
                    f"{row['unknown_before']:.3%}",
                    f"{row['unknown_after']:.3%}",
                )
            out.print(
                "what other text suffers, estimated on a tenth of the data that was held out:"
            )
            out.print(table)
    if calibration := result.get("calibration"):
        _show_calibration(out, calibration, result["layers"])
    _show_where(out, result)


def _show_calibration(out: Console, calibration: Mapping[str, Any], layers: Iterable[int]) -> None:
    texts = ", ".join(f"{name} {count:,}" for name, count in calibration["texts"].items())
    out.print(f"calibrated on {calibration['tokens']:,} tokens; texts by language: {texts}")
    table = _table("hidden states after", "relative error")
    places = ["the embeddings", *(f"layer {number} of the source" for number in layers)]
    for place, error in zip(places, calibration["relative_error"], strict=True):
        table.add_row(place, _number(error))
    out.print(table)


def _sizes(sizes: Mapping[str, int]) -> list[str]:
    return [
        f"{sizes['parameters_before']:,}",
        f"{sizes['parameters_after']:,}",
        f"{sizes['bytes_before'] / 1e6:,.1f}",
        f"{sizes['bytes_after'] / 1e6:,.1f}",
    ]


def show_training(result: Mapping[str, Any]) -> None:
    out = _stdout()
    out.print(
        _score_table(result, f"Development set, best checkpoint (step {result['best_step']})")
    )
    if comparison := result.get("comparison"):
        _show_comparison(out, comparison)
    out.print(
        f"{result['steps']} steps in {result['train_seconds']:.0f} s, "
        f"{result['examples_per_second']:.1f} examples/s, "
        f"peak memory {result['peak_memory_bytes'] / 2**20:,.0f} MiB"
    )
    _show_where(out, result)


def show_info(result: Mapping[str, Any]) -> None:
    out = _stdout()
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


def show_push(result: Mapping[str, Any]) -> None:
    _show_pushed(_stdout(), result)


def _show_pushed(out: Console, pushed: Mapping[str, Any]) -> None:
    if pushed["pull_request"]:
        line = f"pull request {pushed['pull_request']}"
    elif pushed["changed"]:
        line = f"pushed to {pushed['url']} (commit {pushed['commit']})"
    else:
        line = f"{pushed['url']} has all of it already (commit {pushed['commit']})"
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


class Board:
    """A `kdshrink.progress.Board`: a live table on a terminal, else a line at each change."""

    def __init__(self) -> None:
        self._live: Live | None = None
        self._told: dict[str, str] = {}
        self._last: dict[str, float] = {}

    def __enter__(self) -> Board:
        if sys.stderr.isatty():
            self._live = Live(console=_stderr(), transient=True, refresh_per_second=4)
            self._live.start()
            _live.append(self._live)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            _live.remove(self._live)
            self._live.stop()

    def __call__(self, states: Sequence[RunState]) -> None:
        if self._live is not None:
            self._live.update(_board_table(states, self._live.console.height - 4))
            return
        for state in states:
            changed = self._told.get(state.name) != state.state
            due = time.monotonic() - self._last.get(state.name, 0.0) > 4 * _PLAIN_SECONDS
            if (changed and state.state != "waiting") or (state.state == "running" and due):
                self._told[state.name] = state.state
                self._last[state.name] = time.monotonic()
                done = sum(one.state == "done" for one in states)
                line = f"[{done}/{len(states)}] {state.name}: {state.state} {_reached(state)}"
                _stderr().print(_masked(line.rstrip()))


def _reached(state: RunState) -> str:
    of = f"/{state.steps}" if state.steps else ""
    step = "" if state.step is None else f"step {state.step}{of} "
    figures = " ".join(f"{name} {value:.4f}" for name, value in state.figures.items())
    return f"{step}{figures}{' ' if state.note else ''}{state.note}".strip()


_STATE_COLOURS = {"running": "cyan", "elsewhere": "magenta", "done": "green", "failed": "red"}


def _board_table(states: Sequence[RunState], height: int) -> Table:
    """The runs under way and those around them, as many as there is room for."""
    order = {"failed": 0, "running": 1, "elsewhere": 1, "done": 3, "waiting": 2, "blocked": 4}
    shown = sorted(states, key=lambda state: order[state.state])[: max(3, height - 3)]
    chosen = {state.name for state in shown}
    counts = Counter(state.state for state in states)
    title = ", ".join(f"{count} {state}" for state, count in counts.items())
    table = Table("run", "state", "reached", title=title, title_justify="left")
    for state in states:
        if state.name in chosen:
            colour = _STATE_COLOURS.get(state.state, "")
            table.add_row(state.name, Text(state.state, colour), _masked(_reached(state)))
    return table


def show_reproduction(result: Mapping[str, Any]) -> None:
    out = _stdout()
    if result["report"] is None:
        out.out(result["shell"], end="", highlight=False)
        return
    if result["name"] == "data":
        table = _table("data", "training rows a language", "classes", "sets in all", "at hand")
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
    out = _stdout()
    curves = {name: dict(map(tuple, points)) for name, points in result["curves"].items()}
    table = _table("step", *curves, title=result["term"])
    for step in sorted({step for curve in curves.values() for step in curve}):
        table.add_row(f"{step:,}", *(_number(curve.get(step)) for curve in curves.values()))
    out.print(table)
    if result["output"]:
        out.print(f"drawn to {result['output']}", soft_wrap=True)
