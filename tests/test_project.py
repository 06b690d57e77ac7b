"""What can be derived is checked: public names, the README's commands."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

import pytest

import kdshrink
from kdshrink.config.commands import NAMED_DATA
from kdshrink.data.registry import NAMED

from .helpers.runner import run

ROOT = Path(__file__).parent.parent
READMES = [
    ROOT / "README.md",
    *ROOT.glob("kdshrink/*/README.md"),
    *ROOT.glob("tests/**/README.md"),
]


def test_public_names_resolve() -> None:
    for name in kdshrink.__all__:
        assert getattr(kdshrink, name) is not None
    with pytest.raises(AttributeError):
        _ = kdshrink.no_such_name


def test_type_checkers_see_the_public_names() -> None:
    tree = ast.parse(Path(str(kdshrink.__file__)).read_text(encoding="utf-8"))
    seen = {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }
    assert seen == kdshrink._HOMES


def test_configs_know_the_named_data() -> None:
    assert tuple(NAMED) == NAMED_DATA


def test_readmes_name_only_options_that_there_are() -> None:
    environment = {**os.environ, "_TYPER_FORCE_DISABLE_TERMINAL": "1", "TERMINAL_WIDTH": "200"}
    commands = (
        "finetune",
        "shrink",
        "distill",
        "eval",
        "zero-shot",
        "export",
        "compare",
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
    text = "\n".join(file.read_text() for file in READMES)
    for line in re.findall(r"^\$ kdshrink .*$|`--[^`]*`", text, re.MULTILINE):
        for option in re.findall(r"--[a-z][a-z0-9-]*", line):
            assert option in known, option


def test_readme_begins_with_the_two_commands() -> None:
    blocks = re.findall(r"^```bash\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    assert "kdshrink distill --teacher sample --data sample" in blocks[0]
    assert "pytest" in blocks[1]
    assert all("-c constraints.txt" in block and "$ " not in block for block in blocks[:2])


def test_links_between_readmes_lead_somewhere() -> None:
    for file in READMES:
        for target in re.findall(r"\]\(((?!https?:)[^)]+)\)", file.read_text()):
            path, _, anchor = target.partition("#")
            page = (file.parent / path).read_text()
            headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
            assert not anchor or anchor in anchors, f"{file}: {target}"
