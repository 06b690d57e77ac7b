"""The command line: each command parses its options into a config, calls one function, shows its result."""

from __future__ import annotations

import dataclasses
import errno
import inspect
import logging
import os
import platform
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, get_type_hints

import typer

from . import __version__, console
from .config import commands as config
from .config.fields import refuse_empty, shown
from .errors import Interrupted, KdshrinkError, OutputError, Terminated
from .hub.client import cache_fault, chain_of

app = typer.Typer(
    name="kdshrink",
    help="Make large multilingual encoders small: copy the teacher's weights, then distil.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

# In the order in which --help shows them.
_PANELS = {
    "DataOptions": "Data",
    "ShapeOptions": "Shape of the student",
    "CalibrationOptions": "Shape of the student",
    "ObjectiveOptions": "Objective",
    "TrainingOptions": "Training",
    "EvaluationOptions": "Run",
    "DeviceOptions": "Run",
    "OutputOptions": "Output",
    "TokenOptions": "Hub",
    "SourceOptions": "Hub",
    "HubTarget": "Hub",
    "HubOptions": "Hub",
}
_DATA_NAMES = ("massive", "tsm", "universal-ner", "sample")
_MODEL_NAMES = ("sample", "sample-base")


def _complete_data(incomplete: str) -> list[str]:
    return [name for name in _DATA_NAMES if name.startswith(incomplete)]


def _complete_model(incomplete: str) -> list[str]:
    return [name for name in _MODEL_NAMES if name.startswith(incomplete)]


def _complete_languages(ctx: typer.Context, incomplete: str) -> list[str]:
    from .data.languages import GROUPS
    from .data.registry import NAMED

    named = NAMED.get(ctx.params.get("data") or ctx.params.get("vocab_from") or "")
    names = [*GROUPS, *([unit.name for unit in named.units] if named else [])]
    before, comma, last = incomplete.rpartition(",")
    return [before + comma + name for name in names if name.startswith(last)]


_COMPLETERS: dict[str, Callable[..., list[str]]] = {
    "data": _complete_data,
    "vocab_from": _complete_data,
    "languages": _complete_languages,
    "seen_languages": _complete_languages,
    "unseen_languages": _complete_languages,
    "model": _complete_model,
    "teacher": _complete_model,
    "student": _complete_model,
    "base": _complete_model,
}


def _group(config_class: type, name: str) -> str:
    """The name of the class, a config or a group of options, that declares a field."""
    return next(
        group.__name__
        for group in reversed(config_class.__mro__)
        if name in vars(group).get("__annotations__", {})
    )


def _help_order(config_class: type, item: dataclasses.Field[Any]) -> tuple[bool, int]:
    """What is required comes first, then the command's own options, then the groups."""
    required = item.default is item.default_factory is dataclasses.MISSING
    group = _group(config_class, item.name)
    return not required, [*_PANELS].index(group) if group in _PANELS else -1


def _parameter(config_class: type, item: dataclasses.Field[Any], hint: Any) -> inspect.Parameter:
    """The Typer parameter of a config's field."""
    options: dict[str, Any] = {"help": item.metadata["help"]}
    if item.name in _COMPLETERS:
        options["autocompletion"] = _COMPLETERS[item.name]
    default: Any = item.default
    metavar = _metavar(item, hint)
    if hint in (Path, Path | None):
        # As text: Typer would make "" the current directory.
        hint = str if hint is Path else str | None
    if item.metadata["parse"] is not None:
        hint = list[str] if item.metadata["repeatable"] else str | None
        if default is not dataclasses.MISSING or item.default_factory is not dataclasses.MISSING:
            default = [] if item.metadata["repeatable"] else None
    if item.metadata["argument"]:
        metadata: Any = typer.Argument(show_default=False, **options)
    else:
        kebab = f"--{item.name.replace('_', '-')}"
        flags = list(item.metadata["flags"] or [kebab])
        if item.name == "bf16":
            flags = ["--bf16/--no-bf16"]
        elif item.name == "compare":
            flags = ["--compare/--no-compare"]
        shown = not (default is None or default is False or default == [])
        metadata = typer.Option(
            *flags,
            rich_help_panel=_PANELS.get(_group(config_class, item.name)),
            show_default=shown and default is not dataclasses.MISSING,
            metavar=metavar,
            **options,
        )
    return inspect.Parameter(
        item.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if default is dataclasses.MISSING else default,
        annotation=Annotated[hint, metadata],
    )


def _metavar(item: dataclasses.Field[Any], hint: Any) -> str | None:
    if item.metadata["metavar"]:
        return item.metadata["metavar"]
    if item.metadata["parse"] is not None:
        return "A,B,…"
    return "PATH" if hint in (Path, Path | None) else None


def _value(item: dataclasses.Field[Any], hints: dict[str, Any], typed: dict[str, Any]) -> Any:
    """A config's value out of what was typed."""
    value, parse = typed[item.name], item.metadata["parse"]
    if value is None:
        return None
    if value != []:
        refuse_empty(item, value)
    if parse is not None:
        return parse(value)
    return Path(value) if hints[item.name] in (Path, Path | None) else value


def _deliver(
    result: dict[str, Any], show: Callable[[dict[str, Any]], None], chosen: object
) -> None:
    """Print a result. That its reader has gone away is no failure if the result stands on disk too."""
    places = (result.get(key) for key in ("output_dir", "report", "output", "url"))
    kept = next(filter(None, (*places, getattr(chosen, "output_dir", None))), None)
    try:
        show(result)
        console.flush_stdout()
    except BrokenPipeError:
        if kept is None:
            raise
    except OSError as error:
        where = f"\nThe result itself is whole: {kept}." if kept else ""
        raise OutputError(f"stdout cannot be written: {error.strerror}.{where}") from error


def _command(
    name: str,
    config_class: type,
    target: str,
    show: Callable[[dict[str, Any]], None],
    epilog: str,
    display: type[console.Progress | console.Board] = console.Progress,
) -> Callable[[Callable[[], None]], None]:
    """Register a command that builds a config and calls `module:function` of the library.

    `display` shows how far it is.
    """

    def register(documented: Callable[[], None]) -> None:
        hints = get_type_hints(config_class)
        fields = sorted(
            dataclasses.fields(config_class), key=lambda item: _help_order(config_class, item)
        )
        parameters = [_parameter(config_class, item, hints[item.name]) for item in fields]
        json_option = typer.Option(
            "--json", help="Print one JSON object on stdout.", rich_help_panel="Output"
        )
        parameters.append(
            inspect.Parameter(
                "json_output",
                inspect.Parameter.KEYWORD_ONLY,
                default=False,
                annotation=Annotated[bool, json_option],
            )
        )

        def run(**typed: Any) -> None:
            json_output = typed.pop("json_output")
            console.hide(typed.get("token"))
            chosen = config_class(**{item.name: _value(item, hints, typed) for item in fields})
            module, function = target.split(":")
            try:
                with display() as progress:
                    work = getattr(import_module(f".{module}", __package__), function)
                    result = work(chosen, progress).to_dict()
            except KeyboardInterrupt:
                # Typer would end with 130 too, but without a word.
                raise Interrupted("Stopped by Ctrl-C; no result was written.", 130) from None
            _deliver(result, console.print_json if json_output else show, chosen)

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
    console.show_training,
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
    console.show_shrink,
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
    console.show_training,
    _examples(
        "kdshrink distill --teacher teacher --data massive --layers 6",
        "kdshrink distill --teacher teacher --student student --data massive -o distilled",
        "kdshrink distill --teacher sample --data sample",
        "kdshrink distill --teacher teacher --init calibrated --hidden-size 192 --data massive",
        "kdshrink distill --teacher teacher --data lines.txt --weight task=0",
    ),
)
def distill() -> None:
    """Distil a teacher into a student: its layers, its logits and the labels (TinyBERT's objective).

    Every term has weight 1. Hidden states and attention are matched at the layers that the student's
    layers were copied from; where widths differ a projection is learned and then left out.
    """


@_command(
    "eval",
    config.EvalConfig,
    "commands.evaluate:evaluate",
    console.show_evaluation,
    _examples(
        "kdshrink eval distilled --data massive --languages de,sw",
        "kdshrink eval distilled --data massive --json | jq .per_language",
        "kdshrink eval sample --data sample --per-class --predictions answers.jsonl",
    ),
)
def evaluate() -> None:
    """Score a classifier, pooled over languages and by language."""


@_command(
    "zero-shot",
    config.ZeroShotConfig,
    "commands.evaluate:zero_shot",
    console.show_zero_shot,
    _examples(
        "kdshrink zero-shot distilled --data massive",
        "kdshrink zero-shot my-model --data massive --seen-languages english",
    ),
)
def zero_shot() -> None:
    """Score a classifier on languages that it was not trained on, beside those it was."""


@_command(
    "push",
    config.PushConfig,
    "commands.push:push",
    console.show_push,
    _examples(
        "kdshrink push student --hub-model-id my-org/student",
        "kdshrink push student --hub-model-id my-org/student --private --hub-revision candidate",
        "kdshrink push student --hub-model-id their-org/student --create-pr",
    ),
)
def push() -> None:
    """Push a directory to the Hub in one commit; what is there already is not sent again."""


@_command(
    "info",
    config.InfoConfig,
    "commands.info:info",
    console.show_info,
    _examples(
        "kdshrink info student",
        "kdshrink info my-org/student@main --json | jq -r '.chain[].command'",
    ),
)
def info() -> None:
    """Tell of a model: what it was made from and how, its layers, sizes, scores and languages."""


@_command(
    "reproduce",
    config.ReproduceConfig,
    "reproduction:reproduce",
    console.show_reproduction,
    _examples(
        "kdshrink reproduce no-finetune --scale sample -o tried",
        "kdshrink reproduce initialization -o paper --jobs 4",
        "kdshrink reproduce zero-shot --scale small --models ./encoder --data-dir massive=corpora/massive",
        "kdshrink reproduce data-size --plan | head",
    ),
    console.Board,
)
def reproduce() -> None:
    """Run one of the paper's experiments, on its models or on yours, and report it beside the paper.

    It is a grid of ordinary runs: finished ones are found, interrupted ones go on, and OUTPUT_DIR may be
    shared by several processes or machines at once.
    """


@_command(
    "curves",
    config.CurvesConfig,
    "commands.curves:curves",
    console.show_curves,
    _examples(
        "kdshrink curves student other -o curves.png",
        "kdshrink curves student --term task --json | jq '.curves.student[-1]'",
    ),
)
def curves() -> None:
    """Show the training loss by step of runs of finetune and distill, ended or under way."""


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


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    raise Terminated(128 + number)


def _quiet_libraries() -> None:
    """Let the libraries say only what is wrong: progress and notes are ours to show."""
    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("HF_HUB_VERBOSITY", "error"),
        ("DATASETS_VERBOSITY", "error"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("HF_DATASETS_DISABLE_PROGRESS_BARS", "1"),
        ("TOKENIZERS_PARALLELISM", "true"),
        ("TF_CPP_MIN_LOG_LEVEL", "3"),
    ):
        os.environ.setdefault(name, value)
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").setLevel(logging.ERROR)
    logging.getLogger("kdshrink").setLevel(logging.INFO)


def main() -> None:
    """Run the command line; known errors end with their exit code and without a traceback."""
    with console.steady_streams():
        try:
            if "_KDSHRINK_COMPLETE" not in os.environ:
                _prepare()
            app()
            code = 0
        except BaseException as error:
            code = _told(error)
        try:
            console.flush_stdout()
        except BrokenPipeError:
            code = code or 1
        except OSError as error:
            if not code:
                console.print_error(f"stdout cannot be written: {error.strerror}.")
            code = code or 1
    sys.exit(code)


def _prepare() -> None:
    _quiet_libraries()
    console.show_log()
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        console.hide(os.environ.get(variable))
    signal.signal(signal.SIGTERM, _on_sigterm)


def _told(error: BaseException) -> int:
    """Say what ended a command, and the exit code for it."""
    if isinstance(error, SystemExit):
        if isinstance(error, Terminated):
            console.print_error("Stopped by SIGTERM; no result was written.")
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        console.print_error("Stopped by Ctrl-C; no result was written.")
        return 130
    if isinstance(error, KdshrinkError):
        console.print_error(str(error))
        return error.exit_code
    if told := _known_fault(error):
        console.print_error(told)
        return 1
    console.print_traceback(error)
    console.print_error(
        f"This is a bug in kdshrink {__version__} (Python {platform.python_version()}).\n"
        "Please report it, with the command and the lines above."
    )
    return 1


def _known_fault(error: BaseException) -> str | None:
    """What the machine could not do, in words; None for a bug."""
    for one in chain_of(error):
        if told := _memory_fault(one):
            return told
        if isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"The disk is full: {one}.\nMake room and run the command again."
    if isinstance(error, UnicodeEncodeError):
        return (
            f"A name cannot be written as {error.encoding}: {shown(error.object)}.\n"
            "Rename it: the names of files and directories must be UTF-8."
        )
    return _os_error(error) if isinstance(error, OSError) else None


def _memory_fault(error: BaseException) -> str | None:
    said = str(error).partition("\n")[0]
    kind = "memory of the GPU" if type(error).__name__ == "OutOfMemoryError" else "memory"
    # PyTorch says of the CPU's memory so alone.
    short = isinstance(error, RuntimeError) and "can't allocate memory" in said
    if not (short or isinstance(error, MemoryError) or kind != "memory"):
        return None
    found = f": {shown(said)}" if said else ""
    return (
        f"There is not enough {kind}{found}\n"
        "Lower --batch-size or --tokens-per-batch (and raise --gradient-accumulation-steps), or "
        "--max-length."
    )


def _os_error(error: OSError) -> str:
    """What the system refused, in words."""
    if told := cache_fault(error):
        return told
    if error.errno is None:
        return str(error)
    what = f"{shown(error.filename)}: {error.strerror}" if error.filename else str(error)
    advice = {
        errno.EACCES: "Give another path, or get the permission.",
        errno.EPERM: "Give another path, or get the permission.",
        errno.EROFS: "Give a path on a file system that may be written to.",
        errno.ENOENT: "Check the path.",
        errno.EISDIR: "Give a file's path, not a directory's.",
        errno.ENOTDIR: "Check the path: what it names as a directory is a file.",
        errno.ENAMETOOLONG: "Give a shorter path.",
        errno.ELOOP: "Check the path: its links lead round in a circle.",
        errno.EMFILE: "Raise the limit of open files (ulimit -n).",
        errno.EIO: "The disk or its connection is failing; look into the system's log.",
    }.get(error.errno, "The system refused it; nothing that was whole before is lost.")
    return f"{what}.\n{advice}"
