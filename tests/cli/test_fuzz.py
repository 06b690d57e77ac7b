"""Whatever is typed behind a command: it is taken or refused in a few lines, and nothing falls through.

More examples by hand: KDSHRINK_FUZZ=2000 pytest tests/cli/test_fuzz.py
"""

from __future__ import annotations

import dataclasses
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import typer
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kdshrink.cli import console
from kdshrink.cli import main as program
from kdshrink.config import commands as config
from kdshrink.config.command_line import command_line
from kdshrink.config.fields import flag_of

COMMANDS: dict[str, tuple[type, str]] = {
    "finetune": (config.FinetuneConfig, "commands.finetune:finetune"),
    "shrink": (config.ShrinkConfig, "commands.shrink:shrink"),
    "distill": (config.DistillConfig, "commands.distill:distill"),
    "eval": (config.EvalConfig, "commands.evaluate:evaluate"),
    "zero-shot": (config.ZeroShotConfig, "commands.evaluate:zero_shot"),
    "push": (config.PushConfig, "commands.push:push"),
    "info": (config.InfoConfig, "commands.info:info"),
    "reproduce": (config.ReproduceConfig, "commands.reproduce:reproduce"),
    "compare": (config.CompareConfig, "commands.compare:compare"),
    "export": (config.ExportConfig, "commands.export:export"),
    "curves": (config.CurvesConfig, "commands.curves:curves"),
}
STRANGE = [
    "",
    " ",
    ",",
    "=",
    "-1",
    "0",
    "1",
    "0.5",
    "nan",
    "-inf",
    "1e999",
    "1e-320",
    "9" * 30,
    "1_0",
    "٣",
    "x" * 5000,
    "[red]",
    ":smile:",
    "\udcff",
    "\0",
    "a\nb",
    "../..",
    "~",
    "cuda:1",
    "task=1",
    "hidden=nan",
    "massive=x",
    "1,2,2",
    "org/name",
    "a/b/c",
    "none",
    "%s{}",
    "-",
    "--",
    "--data",
]
VALUES = st.one_of(
    st.sampled_from(STRANGE),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=20),
)
APP = typer.main.get_command(program.app)
COUNT = int(os.environ.get("KDSHRINK_FUZZ", "10"))


@contextmanager
def no_work(target: str) -> Iterator[list[Any]]:
    """The library function of a command replaced by one that notes its config."""
    received: list[Any] = []

    def work(chosen: object, progress: object) -> Any:
        received.append(chosen)
        return SimpleNamespace(to_dict=dict)

    module, function = target.split(":")
    library = SimpleNamespace(**{function: work})
    known = set(console._secrets)
    try:
        with patch.dict(sys.modules, {f"kdshrink.{module}": library}):  # type: ignore[dict-item]
            yield received
    finally:
        console._secrets.clear()
        console._secrets.update(known)


def code_of(call: Callable[[], None]) -> int:
    with pytest.raises(SystemExit) as ended:
        call()
    return ended.value.code


@st.composite
def typed_lines(draw: st.DrawFn, config_class: type) -> list[str]:
    arguments, options = [], []
    for item in dataclasses.fields(config_class):
        metadata = item.metadata
        required = item.default is item.default_factory is dataclasses.MISSING
        usual = {"name": "data", "data": "massive"}.get(item.name, "m")
        if metadata["argument"]:
            arguments.append(draw(st.one_of(st.just(usual), VALUES)))
        elif required or item.name == "data" or draw(st.integers(0, 5)) == 0:
            value = draw(st.one_of(st.just(usual), VALUES) if item.name == "data" else VALUES)
            flag = flag_of(item)
            options += [flag] if item.default is False else [flag, value]
    return [*options, "--json", *arguments]


@pytest.mark.defect("T15", "M6")
@pytest.mark.parametrize("command", COMMANDS)
def test_whatever_is_typed_is_taken_or_refused_in_a_few_lines(command: str) -> None:
    config_class, target = COMMANDS[command]

    # Not shrunk: that takes minutes, and a line of this length says enough.
    @settings(
        max_examples=COUNT,
        deadline=None,
        derandomize=COUNT == 10,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(typed=typed_lines(config_class))
    def check(typed: list[str]) -> None:
        out = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
        err = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
        argv = patch.object(sys, "argv", ["kdshrink", command, *typed])
        # Made once: Typer makes all its commands anew at each call.
        app = patch.object(program, "app", APP)
        streams = (redirect_stdout(out), redirect_stderr(err))
        with no_work(target) as received, argv, app, streams[0], streams[1]:
            ended = code_of(program.main)
        shown, said = out.buffer.getvalue().decode(), err.buffer.getvalue().decode()
        assert ended in (0, 2), said
        assert "Traceback" not in said
        if ended == 0 and received:
            assert (shown, said) == ("{}\n", "")
            command_line(command, received[0]).encode()
        elif said.startswith("error: "):
            assert len(said.splitlines()) <= 3
            assert max(map(len, said.splitlines())) < 400
        else:
            assert "Usage: " in said + shown or "Error" in said

    check()
