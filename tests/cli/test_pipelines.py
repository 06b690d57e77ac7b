"""In pipelines: secrets stay secret, readers may go away, and what the system refuses is told."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kdshrink.config.commands import ShrinkConfig
from kdshrink.data.registry import MASSIVE

from ..helpers import hub_data
from ..helpers.hub import WRITER, Desk, Fault, Hub, content

README = Path(__file__).parents[2] / "README.md"

ESCAPE = "\x1b["


def everything_in(folder: Path, secret: str) -> list[Path]:
    """The files whose content or name has the secret."""
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and (secret.encode() in path.read_bytes() or secret in str(path))
    ]


@pytest.mark.parametrize("by", ["--token", "HF_TOKEN"])
@pytest.mark.slow
def test_a_token_is_nowhere(
    by: str, desk: Desk, hub: Hub, model_dir: Path, text_data: Path
) -> None:
    """A chain with pushes, a failure, a bug and a stopped run; then everything is searched."""
    hub.add("org/model", model_dir, private=True)
    typed = ("--token", WRITER) if by == "--token" else ()
    token = None if by == "--token" else WRITER
    quoted = Fault(
        "/commit/", status=403, headers={"X-Error-Message": f"Bearer {WRITER} is not good"}
    )
    said = []

    def kds(*words: str, code: int = 0, **environment: str) -> None:
        done = desk.python("-m", "kdshrink", *words, *typed, token=token, **environment)
        assert done.returncode == code, done.stderr
        said.append(done.stdout + done.stderr)

    common = ("--data", str(text_data), "--max-steps", "2", "--save-steps", "1")
    kds("finetune", "org/model", *common, "-o", "teacher", "--push-to-hub", "--json")
    kds(
        "shrink",
        "teacher",
        "--layers",
        "2",
        "-o",
        "copy",
        "--push-to-hub",
        "--hub-model-id",
        "org/c",
    )
    kds("distill", "--teacher", "teacher", "--student", "copy", *common, "-o", "student")
    hub.faults = [quoted]
    kds("push", "student", "--hub-model-id", "org/s", code=1)
    assert "•••" in said[-1]
    kds("shrink", "org/none", code=1)
    kds("finetune", "org/model", *common, "--learning-rate", "1e30", "-o", "bad", code=1)
    kds("eval", "teacher", "--data", str(text_data), HF_DEBUG="1", TRANSFORMERS_VERBOSITY="debug")
    assert all(WRITER not in text for text in said)
    assert everything_in(desk.folder, WRITER) == []
    sent = [*hub.files("tester/teacher").values(), *hub.files("org/c").values()]
    assert all(WRITER.encode() not in data for data in sent)
    assert all(WRITER not in str(request) for request in hub.requests)
    assert all(WRITER.encode() not in request.body for request in hub.requests)


def test_a_config_does_not_show_its_token() -> None:
    assert WRITER not in repr(ShrinkConfig(model="m", token=WRITER))


def test_a_bug_s_traceback_has_no_token(desk: Desk) -> None:
    script = (
        "import sys; from kdshrink.cli.main import main; from kdshrink.commands import info\n"
        "def bug(config, progress): raise KeyError(config.token)\n"
        "info.info = bug; sys.argv = ['kdshrink', 'info', 'm', '--token', sys.argv[1]]; main()"
    )
    done = desk.python("-c", script, WRITER, token=None)
    assert done.returncode == 1
    assert "KeyError: '•••'" in done.stderr
    assert WRITER not in done.stderr


@pytest.mark.parametrize("typed", ["info model", "info model --json", "--help", "push --help"])
def test_a_reader_that_goes_away_is_no_traceback(typed: str, desk: Desk, model_dir: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "kdshrink", *shlex.split(typed)],
        env=desk.hub.environment(desk.home),
        cwd=desk.folder,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    assert done.returncode == 1
    assert done.stderr == ""


def test_no_colour_and_no_bars_without_a_terminal(desk: Desk, model_dir: Path) -> None:
    for typed in (("info", "model"), ("info", "nowhere/at/all"), ("shrink", "--help")):
        done = desk(*typed)
        assert ESCAPE not in done.stdout + done.stderr


@pytest.mark.parametrize("quiet", [True, False], ids=["NO_COLOR", "colour"])
def test_no_color_is_respected_on_a_terminal(quiet: bool, desk: Desk, model_dir: Path) -> None:
    master, slave = pty.openpty()
    environment = {**desk.hub.environment(desk.home), "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    if quiet:
        environment["NO_COLOR"] = "1"
    process = subprocess.Popen(
        [sys.executable, "-m", "kdshrink", "info", "nowhere/at/all"],
        env=environment,
        cwd=desk.folder,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 4096)
        except OSError:
            break
        if not part:
            break
        shown += part
    process.wait()
    os.close(master)
    assert b"error" in shown
    assert (b"\x1b[31m" in shown) is not quiet


def test_what_the_system_refuses_is_told(desk: Desk, model_dir: Path) -> None:
    unreadable = (
        "import os, sys; from kdshrink.cli.main import main; from kdshrink.commands import info\n"
    )
    unreadable += "def work(config, progress): open('/proc/1/mem/x')\n"
    unreadable += "info.info = work; sys.argv = ['kdshrink', 'info', 'm']; main()"
    done = desk.python("-c", unreadable)
    assert done.returncode == 1
    assert done.stderr.startswith("error: /proc/1/mem/x: ")
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_permission(desk: Desk, model_dir: Path) -> None:
    closed = desk.folder / "closed"
    closed.mkdir(mode=0o500)
    done = desk("shrink", "model", "--layers", "2", "-o", "closed/out")
    assert done.returncode == 1
    assert "no permission" in done.stderr


@pytest.mark.slow
def test_names_in_a_tokenizer_lead_nowhere(desk: Desk, hub: Hub, model_dir: Path) -> None:
    """A tokenizer or config with a path in its names writes nowhere but into OUT and the cache."""
    settings = json.loads((model_dir / "tokenizer_config.json").read_text())
    settings["chat_template"] = [
        {"name": "../../../outside", "template": "x"},
        {"name": "default", "template": "y"},
    ]
    settings["vocab_file"] = "../../outside.txt"
    (model_dir / "tokenizer_config.json").write_text(json.dumps(settings))
    hub.add("org/model", model_dir)
    before = set(content(desk.folder))
    hub.repos["models", "org/model"].commit("main", {"../../escaped.json": hub.blob("e", b"{}")})
    for typed in (
        ("shrink", "org/model", "--layers", "2", "-o", "out"),
        ("shrink", "org/model", "--vocab-from", "sample", "-o", "out2"),
    ):
        done = desk(*typed)
        assert done.returncode == 0, done.stderr
    new = {name for name in content(desk.folder) if name not in before}
    assert all(name.startswith(("home/", "out/", "out2/")) for name in new)
    assert not [
        p for p in desk.folder.parent.glob("*") if "outside" in p.name or "escaped" in p.name
    ]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("jq") is None, reason="needs jq")
def test_the_readme_s_workflow(desk: Desk, hub: Hub, massive_teacher: Path) -> None:
    """Its steps as they are written, but for fewer steps and thresholds that a random model passes."""
    hub.add("my-org/teacher", massive_teacher)
    data = hub_data.write_massive(
        desk.folder / "source", tuple(unit.name for unit in MASSIVE.units)
    )
    hub.add("AmazonScience/massive", data, kind="datasets", ref="refs/convert/parquet")
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", README.read_text(), re.M | re.S)
    workflow = yaml.safe_load(block)
    job = workflow["jobs"]["student"]
    assert job["defaults"]["run"]["shell"] == "bash"
    assert set(workflow["env"]) == {"HF_TOKEN"}
    steps = [step["run"] for step in job["steps"] if "run" in step]
    assert steps[0] == "pip install kdshrink"

    def run(step: str) -> subprocess.CompletedProcess[str]:
        program = shlex.join([sys.executable, "-m", "kdshrink"])
        return subprocess.run(
            ["bash", "-eo", "pipefail", "-c", f'kdshrink() {{ {program} "$@"; }}; {step}'],
            env=hub.environment(desk.home),
            cwd=desk.folder,
            capture_output=True,
            text=True,
        )

    for step in steps[1:]:
        quick = step.replace("--max-steps 5000", "--max-steps 2").replace(
            "my-org/student", "org/student"
        )
        done = run(quick.replace("> 0.75", ">= 0"))
        assert done.returncode == 0, done.stderr
    assert "model.safetensors" in hub.files("org/student", "candidate")
    assert run("jq -e '.score > 0.75' result.json").returncode == 1
    # A failure ends a pipe, and so the job, though its last command is content.
    assert (
        run("kdshrink eval nowhere/at/all --data massive --json | tee result.json").returncode == 1
    )
