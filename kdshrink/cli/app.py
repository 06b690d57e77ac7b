"""The Typer commands: each makes a config of its options, calls one function and shows the result."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from .. import __version__
from ..config import commands as config
from ..config.fields import kebab
from ..errors import Interrupted, OutputError, RefusedError
from . import console, tables
from .config_file import read_options
from .options import help_order, parameter, value
from .progress import ProgressBar, RunTable
from .streams import flush_stdout

app = typer.Typer(
    name="kdshrink",
    help="Make large multilingual encoders small: copy the teacher's weights, then distil.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


_DRY_RUN = (
    "Resolve and check everything, print what would run (models, data, steps, and estimates of memory, disk and "
    "time) and stop; nothing is written."
)


def _deliver(
    result: dict[str, Any], show: Callable[[dict[str, Any]], None], chosen: object
) -> None:
    """Print a result. A closed pipe is an error only if the result is not on disk too."""
    places = (result.get(key) for key in ("output_dir", "report", "output", "url"))
    kept = next(filter(None, (*places, getattr(chosen, "output_dir", None))), None)
    if result.get("dry_run"):
        kept = None
    try:
        show(result)
        flush_stdout()
    except BrokenPipeError:
        if kept is None:
            raise
    except OSError as error:
        where = f"\nThe result itself is complete: {kept}." if kept else ""
        raise OutputError(f"stdout cannot be written: {error.strerror}.{where}") from error


def _file_parameter(command: str, config_class: type) -> inspect.Parameter:
    """The parameter for --config, whose file gives the defaults of the others."""

    def read(context: typer.Context, path: str | None) -> None:
        if path is not None and not context.resilient_parsing:
            context.default_map = read_options(Path(path), command, config_class)

    option = typer.Option(
        "--config",
        help="Read options from this YAML file, or from the kdshrink.json of a result; what is typed comes first.",
        rich_help_panel="More options",
        metavar="PATH",
        callback=read,
        is_eager=True,
    )
    return inspect.Parameter(
        "config_file",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[str | None, option],
    )


def _flag(name: str, help: str) -> inspect.Parameter:
    """The parameter for a flag that is not of the config, in the panel of the output."""
    option = typer.Option(f"--{kebab(name)}", help=help, rich_help_panel="Output")
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, option]
    )


def _command(
    name: str,
    config_class: type,
    target: str,
    show: Callable[[dict[str, Any]], None],
    epilog: str,
    display: type[ProgressBar | RunTable] = ProgressBar,
    *,
    runs_long: bool = True,
) -> Callable[[Callable[[], None]], None]:
    """Register a command that builds a config and calls `module:function` of the library.

    `display` shows its progress; one that runs long has --dry-run.
    """

    def register(documented: Callable[[], None]) -> None:
        hints = get_type_hints(config_class)
        fields = sorted(
            dataclasses.fields(config_class), key=lambda item: help_order(config_class, item)
        )
        parameters = [parameter(config_class, item, hints[item.name]) for item in fields]
        parameters.append(_flag("json", "Print one JSON object on stdout."))
        if runs_long:
            parameters.append(_flag("dry_run", _DRY_RUN))

        if "data" in hints:
            parameters.append(_file_parameter(name, config_class))

        def run(**typed: Any) -> None:
            as_json, dry = typed.pop("json"), typed.pop("dry_run", False)
            console.hide(typed.get("token"))
            chosen = config_class(**{item.name: value(item, hints, typed) for item in fields})
            shown = tables.show_plan if dry else show
            shown = console.print_json if as_json else shown
            deliver = partial(_deliver, show=shown, chosen=chosen)
            module, function = ("commands.dry_run:dry_run" if dry else target).split(":")
            try:
                with display() as progress:
                    work = getattr(import_module(f"kdshrink.{module}"), function)
                    result = work(chosen, progress).to_dict()
            except RefusedError as refused:
                deliver(refused.result.to_dict())
                raise
            except KeyboardInterrupt:
                # Typer would end with 130 too, but without a message.
                raise Interrupted("Stopped by Ctrl-C; no result was written.", 130) from None
            deliver(result)

        run.__name__ = documented.__name__
        run.__doc__ = documented.__doc__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        app.command(name, epilog=epilog)(run)

    return register


def _examples(*commands: str) -> str:
    return "\n\n".join(["Examples:", *(f"[cyan]{command}[/cyan]" for command in commands)])


@_command(
    "finetune",
    config.FinetuneConfig,
    "commands.finetune:finetune",
    tables.show_training,
    _examples(
        "kdshrink finetune xlm-roberta-base --data massive -o teacher",
        "kdshrink finetune ./encoder --data reviews.csv --text-column body --label-column stars",
        "kdshrink finetune sample-base --data sample --num-train-epochs 3 -o tried",
    ),
)
def finetune() -> None:
    """Fine-tune an encoder as a classifier of texts or of words, on all languages together."""


@_command(
    "shrink",
    config.ShrinkConfig,
    "commands.shrink:shrink",
    tables.show_shrink,
    _examples(
        "kdshrink shrink xlm-roberta-base --layers 6",
        "kdshrink shrink teacher --layers 6 --hidden-size 384 -o student",
        "kdshrink shrink teacher --vocab-from massive --languages de,fr,it -o small",
        "kdshrink shrink teacher --layers 6 --init calibrated --data lines.txt -o student",
    ),
)
def shrink() -> None:
    """Copy a model's weights into a smaller one: fewer layers, a smaller width or vocabulary."""


@_command(
    "distill",
    config.DistillConfig,
    "commands.distill:distill",
    tables.show_training,
    _examples(
        "kdshrink distill --teacher teacher --data massive --layers 6",
        "kdshrink distill --teacher teacher --student student --data massive -o distilled",
        "kdshrink distill --teacher sample --data sample",
        "kdshrink distill --teacher teacher --init calibrated --hidden-size 192 --data massive",
        "kdshrink distill --teacher teacher --data lines.txt --weight task=0",
        "kdshrink distill --teacher teacher --data massive --export int8 --dry-run",
    ),
)
def distill() -> None:
    """Train a student on its teacher's hidden states, attention and logits, and on the labels.

    The loss is TinyBERT's, with the task's own. Each student layer is matched with the teacher
    layer that it was copied from; where hidden sizes differ, a projection is learned, and dropped at the end.
    """


@_command(
    "eval",
    config.EvalConfig,
    "commands.evaluate:evaluate",
    tables.show_evaluation,
    _examples(
        "kdshrink eval distilled --data massive --languages de,sw",
        "kdshrink eval distilled --data massive --json | jq .per_language",
        "kdshrink eval sample --data sample --per-class --predictions predictions.jsonl",
    ),
)
def evaluate() -> None:
    """Score a classifier on labelled data, over all languages and by language."""


@_command(
    "zero-shot",
    config.ZeroShotConfig,
    "commands.evaluate:zero_shot",
    tables.show_zero_shot,
    _examples(
        "kdshrink zero-shot distilled --data massive",
        "kdshrink zero-shot my-model --data massive --seen-languages english",
    ),
)
def zero_shot() -> None:
    """Score a classifier on the languages that it was trained on, and on those that it was not."""


@_command(
    "export",
    config.ExportConfig,
    "commands.export:export",
    tables.show_export,
    _examples(
        "kdshrink export student --data massive",
        "kdshrink export student --data reviews.csv --precision fp32,fp16,int8 -o shipped",
        "kdshrink export student --data massive --max-drop 1 --json | jq .schemes",
    ),
)
def export() -> None:
    """Write a classifier in ONNX, as fp32, and as fp16 and the smallest int8 that lose little in any language."""


@_command(
    "compare",
    config.CompareConfig,
    "commands.compare:compare",
    tables.show_compared,
    _examples(
        "kdshrink compare teacher student shipped#int8 --data massive -o report.html",
        "kdshrink compare student other --baseline teacher --data massive --threads 1",
        "kdshrink compare teacher student --data sample --json | jq .models.student.difference",
    ),
)
def compare() -> None:
    """Compare models on the same texts: scores by language, chance, size, latency and memory."""


@_command(
    "push",
    config.PushConfig,
    "commands.push:push",
    tables.show_push,
    _examples(
        "kdshrink push student --hub-model-id my-org/student",
        "kdshrink push student --hub-model-id my-org/student --private --hub-revision candidate",
        "kdshrink push student --hub-model-id their-org/student --create-pr",
    ),
    runs_long=False,
)
def push() -> None:
    """Upload a model directory to the Hub in one commit; unchanged files are not sent again."""


@_command(
    "info",
    config.InfoConfig,
    "commands.info:info",
    tables.show_info,
    _examples(
        "kdshrink info student",
        "kdshrink info my-org/student@main --json | jq -r '.chain[].command'",
    ),
    runs_long=False,
)
def info() -> None:
    """Show how a model was made, and its layers, size, scores and languages."""


@_command(
    "reproduce",
    config.ReproduceConfig,
    "commands.reproduce:reproduce",
    tables.show_reproduction,
    _examples(
        "kdshrink reproduce no-finetune --scale sample -o tried",
        "kdshrink reproduce initialization -o paper --jobs 4",
        "kdshrink reproduce zero-shot --scale small --models ./encoder --data-dir massive=corpora/massive",
        "kdshrink reproduce data-size --plan | head",
    ),
    RunTable,
)
def reproduce() -> None:
    """Run one of the paper's experiments, and compare its scores with the paper's.

    An experiment is a grid of finetune and distill runs. Finished runs are reused and interrupted ones
    resumed; several processes or machines may share OUTPUT_DIR.
    """


@_command(
    "curves",
    config.CurvesConfig,
    "commands.curves:curves",
    tables.show_curves,
    _examples(
        "kdshrink curves student other -o curves.png",
        "kdshrink curves student --term task --json | jq '.curves.student[-1]'",
    ),
    runs_long=False,
)
def curves() -> None:
    """Show the training loss, or a score, of finetune and distill runs by step, also while they run."""


def _print_version(wanted: bool) -> None:
    if wanted:
        console.print_line(f"kdshrink {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass
