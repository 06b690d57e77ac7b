"""A disk that fills up, wherever in a run: a clear error, and what was complete before is still there.

Each command writes to a file system in memory, of sizes from too small for anything to large enough. Its
mount is seen by that process alone.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .helpers.hub import Desk

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("unshare") is None, reason="only root may mount"
    ),
]


def run_on_disk(desk: Desk, kilobytes: int, kept: Path, *typed: str) -> tuple[int, str]:
    """Run a command that writes to `disk`, which holds so much; what it left is copied to `kept`."""
    disk = desk.folder / "disk"
    disk.mkdir(exist_ok=True)
    script = (
        f"mount -t tmpfs -o size={kilobytes}k,nr_inodes=1k tmpfs {disk} || exit 99\n"
        f'"$@"; code=$?; cp -r {disk}/. {kept}; exit $code'
    )
    kept.mkdir()
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", script, "-", sys.executable, "-m", "kdshrink", *typed],
        env=desk.hub.environment(desk.home),
        cwd=desk.folder,
        capture_output=True,
        text=True,
    )
    if done.returncode == 99:
        pytest.skip("mounting is not allowed here")
    return done.returncode, done.stderr


def test_shrink_on_a_disk_that_fills(desk: Desk, model_dir: Path) -> None:
    codes = set()
    for kilobytes in (8, 40, 80, 150, 400):
        kept = desk.folder / f"kept{kilobytes}"
        code, said = run_on_disk(
            desk, kilobytes, kept, "shrink", "model", "--layers", "2", "-o", "disk/out"
        )
        codes.add(code)
        whole = (kept / "out/config.json").exists()
        assert whole is (code == 0), said
        if code:
            assert "the disk is full" in said
            assert "Traceback" not in said
            assert list(kept.iterdir()) == []
    assert codes == {0, 1}


def test_export_on_a_disk_that_fills(desk: Desk, model_dir: Path, text_data: Path) -> None:
    pytest.importorskip("onnxruntime")
    data = ("--data", str(text_data))
    taught = desk("finetune", "model", *data, "--max-steps", "1", "-o", "teacher")
    assert taught.returncode == 0, taught.stderr
    codes = []
    for kilobytes in (60, 340, 520, 4000):  # in the weights, in fp32, in int8, enough
        kept = desk.folder / f"kept{kilobytes}"
        typed = ("export", "teacher", *data, "--max-drop", "100", "-o", "disk/out")
        code, said = run_on_disk(desk, kilobytes, kept, *typed)
        codes.append(code)
        assert (kept / "out/config.json").exists() is (code == 0), said
        if code:
            assert "the disk is full" in said
            assert "Traceback" not in said
            assert list(kept.iterdir()) == []
    assert codes == [1, 1, 1, 0]


@pytest.mark.parametrize(
    ("command", "sizes"),
    [
        ("finetune model", (60, 520, 900, 2500)),
        ("distill --teacher teacher --layers 2", (60, 520, 740, 2500)),
    ],
)
def test_training_on_a_disk_that_fills(
    desk: Desk, model_dir: Path, text_data: Path, command: str, sizes: tuple[int, ...]
) -> None:
    data = ("--data", str(text_data))
    taught = desk("finetune", "model", *data, "--max-steps", "1", "-o", "teacher")
    assert taught.returncode == 0, taught.stderr
    typed = (*command.split(), *data, "--max-steps", "6", "--save-steps", "2")
    typed = (*typed, "--eval-steps", "3", "--batch-size", "8", "-o", "disk/out")
    found = set()
    for kilobytes in sizes:
        kept = desk.folder / f"kept{kilobytes}"
        code, said = run_on_disk(desk, kilobytes, kept, *typed)
        whole = (kept / "out/config.json").exists()
        assert whole is (code == 0), said
        checkpoints = [
            path
            for path in (kept / "out/checkpoints").glob("checkpoint-*")
            if (path / "trainer_state.json").exists()
        ]
        found.add((code, bool(checkpoints)))
        if code:
            assert "the disk is full" in said, said
            assert "Traceback" not in said
        for path in checkpoints:
            json.loads((path / "trainer_state.json").read_text())
        if code and checkpoints:
            shutil.move(kept / "out", desk.folder / f"out{kilobytes}")
            # In a process like the others': this one computes on one thread, which gives other bits.
            line = (*typed[:-1], f"out{kilobytes}", "--resume")
            resumed = desk.python("-m", "kdshrink", *line)
            assert resumed.returncode == 0, resumed.stderr
            weights = (desk.folder / f"out{kilobytes}" / "model.safetensors").read_bytes()
            found.add(("resumed", weights))
    assert {(1, False), (1, True), (0, False)} <= found
    undisturbed = (desk.folder / f"kept{sizes[-1]}/out/model.safetensors").read_bytes()
    resumed_weights = {item[1] for item in found if item[0] == "resumed"}
    assert resumed_weights == {undisturbed}
