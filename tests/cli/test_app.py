"""The command line: help, options to config, errors and exit codes, JSON and tables, completion."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from kdshrink import __version__
from kdshrink.cli import app as cli
from kdshrink.cli import console, tables
from kdshrink.cli.progress import ProgressBar
from kdshrink.config import commands as config
from kdshrink.data.registry import MASSIVE
from kdshrink.errors import UsageError

from ..helpers.runner import run

COMMANDS = {
    "finetune": (
        config.FinetuneConfig,
        "commands.finetune",
        "finetune",
        ["m", "--data", "massive"],
    ),
    "shrink": (config.ShrinkConfig, "commands.shrink", "shrink", ["m"]),
    "distill": (
        config.DistillConfig,
        "commands.distill",
        "distill",
        ["--teacher", "t", "--data", "massive"],
    ),
    "eval": (config.EvalConfig, "commands.evaluate", "evaluate", ["m", "--data", "massive"]),
    "zero-shot": (
        config.ZeroShotConfig,
        "commands.evaluate",
        "zero_shot",
        ["m", "--data", "massive"],
    ),
    "compare": (
        config.CompareConfig,
        "commands.compare",
        "compare",
        ["m", "n", "--data", "massive"],
    ),
}
COMPLETIONS = Path(__file__).parents[2] / "completions"
PLAIN = {"_TYPER_FORCE_DISABLE_TERMINAL": "1", "TERMINAL_WIDTH": "160"}

# A command of no model, registered as cli.py registers its own.
TOY = """
import os, signal, sys, time, types
from kdshrink import errors
from kdshrink.cli import app as cli
from kdshrink.cli.main import main
from kdshrink.config import commands as config
toy = types.ModuleType("kdshrink.toy")
class Result:
    def to_dict(self): return {{"score": 0.5, "name": "größer [b]"}}
def work(config, progress):
    {body}
    return Result()
toy.work = work
sys.modules["kdshrink.toy"] = toy
@cli._command("toy", config.ShrinkConfig, "toy:work", lambda result: None, "")
def command():
    "A toy."
main()
"""


def run_toy(body: str, *typed: str, **how: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", TOY.format(body=body), "toy", "m", *typed]
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how}
    return subprocess.run(command, text=True, timeout=60, **how)


def help_of(*typed: str) -> str:
    result = run(*typed, "--help", env={**os.environ, **PLAIN})
    assert result.returncode == 0
    return result.stdout


def config_of(monkeypatch: pytest.MonkeyPatch, command: str, *typed: str) -> Any:
    """The config that a command hands to its library function."""
    _, module, function, required = COMMANDS[command]
    received = []

    def work(chosen: object, progress: object) -> Any:
        received.append(chosen)
        return SimpleNamespace(to_dict=lambda: {"score": 1.0})

    library = SimpleNamespace(**{function: work})
    monkeypatch.setitem(sys.modules, f"kdshrink.{module}", library)  # type: ignore[arg-type]
    result = CliRunner().invoke(cli.app, [command, *required, *typed, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"score": 1.0}
    return received[0]


# --- help


def test_help_and_version_load_no_torch() -> None:
    code = (
        "import kdshrink, sys\n"
        "assert not {'torch', 'transformers', 'typer'} & set(sys.modules)\n"
        "from kdshrink.cli.main import main\n"
        "for typed in (['--help'], ['distill', '--help'], ['--version'], ['eval', 'm']):\n"
        "    sys.argv = ['kdshrink', *typed]\n"
        "    try: main()\n"
        "    except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'huggingface_hub', 'sklearn'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert f"kdshrink {__version__}\n" in result.stdout


_LEFT_OUT = "torch transformers datasets tokenizers sklearn"


@pytest.mark.parametrize(
    ("typed", "left_out"),
    [
        ("info sample", f"{_LEFT_OUT} numpy jinja2"),
        ("shrink sample --layers 6 -o OUT", _LEFT_OUT),
        ("shrink sample --hidden-size 48 --intermediate-size 100 -o OUT", _LEFT_OUT),
    ],
)
def test_info_and_copying_weights_load_no_torch(typed: str, left_out: str, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from kdshrink.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        f"assert not {set(left_out.split())} & set(sys.modules)\n"
    )
    words = typed.replace("OUT", str(tmp_path / "out")).split()
    subprocess.run([sys.executable, "-c", code, *words, "--json"], check=True)


def test_every_command_is_listed() -> None:
    shown = help_of()
    assert all(f" {command} " in shown for command in (*COMMANDS, "push", "info"))


@pytest.mark.parametrize("command", ["push", "info"])
def test_help_of_the_hub_s_commands(command: str) -> None:
    shown = help_of(command)
    assert "─ Hub ─" in shown
    assert shown.partition("Examples:")[2].count(f"kdshrink {command}") >= 2


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(command: str) -> None:
    config_class = COMMANDS[command][0]
    shown = " ".join(help_of(command).replace("│", " ").split())
    for item in dataclasses.fields(config_class):
        flags = item.metadata["flags"] or ["--" + item.name.replace("_", "-")]
        if not item.metadata["argument"]:
            assert all(flag in shown for flag in flags)
        # A long option name leaves the help little room: look for its first words.
        assert " ".join(item.metadata["help"].split()[:2]) in shown, item.name
    assert "--json" in shown
    assert "--dry-run" in shown
    examples = shown.partition("Examples:")[2]
    assert examples.count(f"kdshrink {command}") >= 2
    position = [shown.find(f"─ {panel} ─") for panel in ("Data", "Run", "Hub")]
    assert -1 < position[0] < position[1] < position[2]


@pytest.mark.parametrize(
    ("command", "first"),
    [
        ("distill", "teacher student recipe init layers hidden-size data languages num-train-epochs "
         "max-steps batch-size learning-rate export max-drop output-dir help"),
        ("shrink", "init layers hidden-size vocab-from data languages output-dir help"),
    ],
)  # fmt: skip
def test_help_shows_first_what_most_runs_need(command: str, first: str) -> None:
    panel = help_of(command).partition("─ Options ─")[2].partition("╰")[0]
    named = re.findall(r"^│ [* ]*--([a-z-]+)", panel, re.MULTILINE)
    assert named == first.split()


def test_only_two_flags_have_a_no(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = help_of("distill")
    assert {word for word in shown.split() if word.startswith("--no-")} == {
        "--no-bf16",
        "--no-compare",
    }
    assert config_of(monkeypatch, "distill").bf16 is None
    assert config_of(monkeypatch, "distill", "--no-bf16").bf16 is False
    assert config_of(monkeypatch, "distill", "--bf16").bf16 is True


# --- options to config


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_said_gives_the_config_s_defaults(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config_class = COMMANDS[command][0]
    required: dict[str, Any] = {
        "distill": {"teacher": "t"},
        "compare": {"models": ("m", "n")},
    }.get(command, {"model": "m"})
    data = None if command == "shrink" else "massive"
    assert config_of(monkeypatch, command) == config_class(**required, data=data)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_reaches_the_config(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config_class = COMMANDS[command][0]
    # What excludes another option is tested apart.
    skipped = {"data", "teacher", "student", "base", "resume", "hub_revision", "tokens_per_batch"}
    skipped |= {"shard_teacher", "backend"}
    sample: dict[str, tuple[list[str], object]] = {
        "init": {
            "shrink": (["--init", "scratch"], "scratch"),
            "distill": (["--init", "from-scratch"], "from-scratch"),
        }.get(command, ([], None)),
        "task": (["--task", "token"], "token"),
        "separator": (["--separator", "tab"], "tab"),
        "attention_target": (["--attention-target", "scores"], "scores"),
        "recipe": (["--recipe", "paper"], "paper"),
        "prediction_loss": (["--prediction-loss", "mse"], "mse"),
        "weights": (["--weight", "hidden=0", "--weight", "task=2"], {"hidden": 0, "task": 2}),
        "train_fraction": (["--train-fraction", "0.05"], 0.05),
        "dropout": (["--dropout", "0.1"], 0.1),
        "bf16": (["--bf16"], True),
        "compare": (["--compare"], True),
        "export": (["--export", "fp32, int8"], ("fp32", "int8")),
        "batches": (["--batches", "random"], "random"),
        "cache_teacher": (["--cache-teacher", "all"], "all"),
        "device": (["--device", "cuda:1"], "cuda:1"),
        "output_dir": (["-o", "out [1]"], Path("out [1]")),
        "output_file": (["-o", "out [1].html"], Path("out [1].html")),
    }
    hints = inspect.get_annotations(config_class)
    for group in config_class.__mro__[1:-1]:
        hints = {**inspect.get_annotations(group), **hints}
    typed, expected = [], {}
    for item in dataclasses.fields(config_class):
        if item.name in skipped or item.metadata["argument"]:
            continue
        flag = "--" + item.name.replace("_", "-")
        kind = hints[item.name]
        if item.name in sample:
            words, value = sample[item.name]
        elif kind.startswith("tuple"):
            words, value = [flag, "de, sw-KE"], ("de", "sw-KE")
        elif kind == "bool":
            words, value = [flag], True
        elif kind.startswith("int"):
            words, value = [flag, "7"], 7
        elif kind.startswith("float"):
            words, value = [flag, "2.5"], 2.5
        elif kind.startswith("Path"):
            words, value = [flag, "a/b"], Path("a/b")
        else:
            assert kind.startswith("str"), kind
            words, value = [flag, "some"], "some"
        typed += words
        expected[item.name] = value
    chosen = config_of(monkeypatch, command, *typed)
    assert {name: getattr(chosen, name) for name in expected} == expected


def test_tokens_per_batch_need_batches_by_length(monkeypatch: pytest.MonkeyPatch) -> None:
    assert config_of(monkeypatch, "finetune", "--tokens-per-batch", "512").tokens_per_batch == 512
    assert config_of(monkeypatch, "finetune").batches == "by-length"
    with pytest.raises(UsageError, match="--batches random"):
        config.FinetuneConfig(model="m", data="d", tokens_per_batch=512, batches="random")


def test_the_other_names_of_batch_size_and_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = config_of(monkeypatch, "finetune", "--per-device-train-batch-size", "4", "--resume")
    assert (chosen.batch_size, chosen.resume) == (4, True)


# --- errors and exit codes, through main()


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["distill", "--teacher", "x", "--data", "massive", "--layers", "0"], "--layers 0: it"),
        (["eval", "x"], "--data is missing"),
        (["distill", "--data", "massive"], "--teacher"),
        (["finetune", "x", "--data", "massive", "--max-steps", "many"], "--max-steps"),
        (["distill", "--teacher", "x", "--data", "d", "--weight", "task"], "--weight task: this"),
        (["shrink", "x", "--init", "magic"], "magic"),
        (["shrunk", "x"], "shrunk"),
        (["shrink", "x", "--layer", "6"], "--layer"),
        ([], "Usage"),
    ],
)
def test_wrong_usage_ends_with_2(typed: list[str], message: str) -> None:
    result = run(*typed, env={**os.environ, **PLAIN})
    assert result.returncode == 2
    assert message in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    if typed:
        assert result.stdout == ""


def test_a_known_error_is_told_without_a_traceback() -> None:
    result = run_toy("raise errors.ShapeError('Found [1, 2] and :de: [red].\\nGive others.')")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == "error: Found [1, 2] and :de: [red].\nGive others.\n"


def test_a_full_disk_is_a_known_error() -> None:
    result = run_toy("import errno; raise OSError(errno.ENOSPC, 'No space left on device')")
    assert result.returncode == 1
    assert result.stderr.startswith("error: The disk is full")
    assert "Traceback" not in result.stderr


def test_a_bug_shows_its_traceback_but_no_secret() -> None:
    result = run_toy("secret = config.token; 1 / 0", "--token", "hf_secret")
    assert result.returncode == 1
    assert "ZeroDivisionError" in result.stderr
    assert "hf_secret" not in result.stderr


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_signals_end_with_their_exit_code(name: str, code: int) -> None:
    # A test run that was started in the background passes an ignored SIGINT on to its children.
    heard = "signal.signal(signal.SIGINT, signal.default_int_handler); "
    result = run_toy(f"{heard}os.kill(os.getpid(), signal.{name}); time.sleep(30)", "--json")
    assert result.returncode == code
    assert result.stdout == ""
    assert result.stderr.startswith("error: Stopped by ")
    assert "Traceback" not in result.stderr


def test_json_is_one_line_and_all_else_goes_to_stderr() -> None:
    body = (
        (
            "import logging, warnings; warnings.warn('noise');"
            " logging.getLogger('kdshrink.x').info('a [note]');"
            " logging.getLogger('kdshrink.x').warning('beware [of]');"
            " progress('training', 1, 2, {{'loss': 0.5}})"
        )
        .replace("{{", "{")
        .replace("}}", "}")
    )
    result = run_toy(body, "--json")
    assert result.returncode == 0
    assert result.stdout == '{"score": 0.5, "name": "größer [b]"}\n'
    assert result.stderr == "a [note]\nwarning: beware [of]\ntraining 1/2 loss 0.5000\n"


def test_libraries_are_quieted_by_running_not_by_importing() -> None:
    code = "import os, kdshrink.cli; assert 'TRANSFORMERS_VERBOSITY' not in os.environ"
    environment = {k: v for k, v in os.environ.items() if k != "TRANSFORMERS_VERBOSITY"}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
    result = run_toy("print(os.environ['TRANSFORMERS_VERBOSITY'])", env=environment)
    assert result.stdout == "error\n"
    environment["TRANSFORMERS_VERBOSITY"] = "info"
    result = run_toy("print(os.environ['TRANSFORMERS_VERBOSITY'])", env=environment)
    assert result.stdout == "info\n"


# --- what a person sees

SCORES: dict[str, Any] = {
    "metric": "macro_f1",
    "score": 0.8125,
    "accuracy": 0.9,
    "averaging": "macro over classes present in gold or prediction",
    "mean_over_languages": 0.75,
    "per_language": {
        "sw-KE": {"score": 0.5, "examples": 1200},
        "de-DE": {"score": 1.0, "examples": 3},
    },
    "examples_per_second": 10.0,
}


def test_evaluation_tables(capsys: pytest.CaptureFixture[str]) -> None:
    tables.show_evaluation({**SCORES, "per_class": {"[b]x[/b]": 0.25, ":smile:": None}})
    shown = capsys.readouterr().out
    assert shown.index("sw-KE") < shown.index("de-DE") < shown.index("pooled")
    for part in ("macro-F1", "0.5000", "0.8125", "0.7500", "1,200", "1,203", "accuracy 0.9000"):
        assert part in shown
    assert SCORES["averaging"] in shown
    assert "[b]x[/b]" in shown
    assert ":smile:" in shown
    assert "\x1b" not in shown


def test_zero_shot_tables(capsys: pytest.CaptureFixture[str]) -> None:
    result = {
        "metric": "macro_f1",
        "seen": SCORES,
        "unseen": {**SCORES, "score": 0.4},
        "gap": 0.4125,
        "random_score": 0.0333,
        "majority_accuracy": 0.1,
        "seen_from": "the model's kdshrink.json",
    }
    tables.show_zero_shot(result)
    shown = capsys.readouterr().out
    for part in ("Seen languages", "Unseen languages", "gap 0.4125", "0.0333", "0.1000"):
        assert part in shown
    tables.show_zero_shot({**result, "seen": None, "gap": None})
    assert "gap –" in capsys.readouterr().out


def test_shrink_table(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {
        "parameters_before": 2000,
        "parameters_after": 1000,
        "bytes_before": 8_000_000,
        "bytes_after": 4_000_000,
    }
    tables.show_shrink(
        {
            "output_dir": "some/[6l]/" + "long" * 60,
            "layers": [2, 4],
            "parts": {"embeddings": sizes, "layers": sizes, "head": sizes},
            "calibration": {
                "texts": {"de": 1000, "es": 24},
                "multilingual_sentences": 1900,
                "tokens": 12345,
                "relative_error": [0.0, 0.125, 0.25],
                "agreement": {"de": 1.0, "sw": 0.5, "th": 0.75, "nl": 0.95},
            },
            **sizes,
        }
    )
    lines = capsys.readouterr().out.splitlines()
    assert (
        "calibrated on 12,345 tokens; texts by language: de 1,000, es 24; 1,900 multilingual sentences"
        in lines
    )
    assert (
        "predicts as the teacher on held-out texts: 80.0% over 4 languages; "
        "lowest: sw 50%, th 75%, nl 95%" in lines
    )
    assert any("layer 4 of the source" in line and "0.2500" in line for line in lines)
    assert any("embeddings" in line and "2,000" in line and "4.0" in line for line in lines)
    assert "layers of the source, 1-based: 2, 4" in lines
    assert lines[-1] == "written to some/[6l]/" + "long" * 60


def test_training_tables(capsys: pytest.CaptureFixture[str]) -> None:
    models = {
        name: {"seen": SCORES, "unseen": None, "parameters": 1_500_000}
        for name in ("teacher", "untrained student", "distilled student")
    }
    tables.show_training(
        {
            **SCORES,
            "output_dir": "out",
            "steps": 40,
            "best_step": 30,
            "train_seconds": 12.3,
            "examples_per_second": 104.06,
            "peak_memory_bytes": 3 * 2**20,
            "comparison": {"metric": "macro_f1", "models": models},
        }
    )
    shown = capsys.readouterr().out
    for part in ("step 30", "40 steps in 12 s", "104.1 examples/s", "3 MiB", "untrained student"):
        assert part in shown
    assert "1.50 M" in shown
    assert shown.endswith("written to out\n")


def test_json_refuses_what_is_not_json(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        console.print_json({"loss": float("nan")})
    assert capsys.readouterr().out == ""


def test_progress_without_a_terminal_is_few_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar() as progress:
        for step in range(1000):
            progress("reading", step, 1000, {})
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) <= 1


# --- completion


def complete(*words: str) -> list[str]:
    """What bash is offered for the last of the words."""
    environment = {
        **os.environ,
        "_KDSHRINK_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(("kdshrink", *words)),
        "COMP_CWORD": str(len(words)),
    }
    result = run(env=environment)
    assert result.stderr == ""
    return result.stdout.split()


def test_completion_of_commands_data_models_and_languages() -> None:
    assert complete("fi") == ["finetune"]
    assert complete("finetune", "m", "--data", "m") == ["massive"]
    assert complete("shrink", "sam") == ["sample", "sample-base"]
    assert complete("compare", "m", "--baseline", "sam") == ["sample", "sample-base"]
    assert complete("distill", "--teacher", "sam") == ["sample", "sample-base"]
    languages = ("eval", "m", "--data", "massive", "--languages")
    assert complete(*languages, "se") == ["seen"]
    assert complete(*languages, "de-DE,sw") == ["de-DE,sw-KE"]
    assert complete("eval", "m", "--languages", "e") == ["english"]
    assert "sw-KE" in {unit.name for unit in MASSIVE.units}


@pytest.mark.parametrize(
    ("shell", "name"), [("bash", "kdshrink.bash"), ("zsh", "_kdshrink"), ("fish", "kdshrink.fish")]
)
def test_completions_are_current(shell: str, name: str) -> None:
    """To make one anew: _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION=1 kdshrink --show-completion bash > completions/kdshrink.bash"""
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    result = run("--show-completion", shell, env=environment)
    assert result.returncode == 0
    assert result.stdout == (COMPLETIONS / name).read_text()
