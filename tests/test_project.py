"""What can be derived is checked: public names, the README's commands."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import kdshrink

from .helpers.runner import run

ROOT = Path(__file__).parent.parent


def test_public_names_resolve() -> None:
    for name in kdshrink.__all__:
        assert getattr(kdshrink, name) is not None
    with pytest.raises(AttributeError):
        _ = kdshrink.no_such_name


def test_readme_names_only_options_that_there_are() -> None:
    environment = {**os.environ, "_TYPER_FORCE_DISABLE_TERMINAL": "1", "TERMINAL_WIDTH": "200"}
    commands = (
        "finetune",
        "shrink",
        "distill",
        "eval",
        "zero-shot",
        "push",
        "info",
        "reproduce",
        "curves",
    )
    known = {"--version", "--help"}
    for command in commands:
        done = run(command, "--help", env=environment)
        assert done.returncode == 0
        known |= set(re.findall(r"--[a-z][a-z0-9-]*", done.stdout))
    text = (ROOT / "README.md").read_text()
    for line in re.findall(r"^\$ kdshrink .*$|`--[^`]*`", text, re.MULTILINE):
        for option in re.findall(r"--[a-z][a-z0-9-]*", line):
            assert option in known, option


def test_readme_begins_with_the_two_commands() -> None:
    blocks = re.findall(r"^```bash\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    assert "kdshrink distill --teacher sample --data sample" in blocks[0]
    assert "pytest" in blocks[1]
    assert all("-c constraints.txt" in block and "$ " not in block for block in blocks[:2])
