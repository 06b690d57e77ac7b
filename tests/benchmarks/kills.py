"""Kill commands at random moments, and look at what is left.

    python tests/benchmarks/kills.py [--moments 20] [--commands finetune,shrink,distill,export,push] [--seed 0]

Each command runs once undisturbed. Then, at random moments of that time, a fresh run gets SIGKILL and
SIGTERM in turn. What it leaves must be whole (the undisturbed run's files) or absent, checkpoints apart;
then the command is given again, with --resume where it trains, and must end with the same weights, bit
for bit. Models are small and random, the Hub is the tests' stand-in on loopback.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from tests.helpers.hub import Desk, Hub, content
from tests.helpers.models import LABELS, make_model, make_tokenizer

WORDS = ("wetter", "musik", "email")
_TRAINING = (
    *("--max-steps", "60", "--save-steps", "15", "--eval-steps", "20"),
    *("--batch-size", "8", "--learning-rate", "2e-3"),
)
COMMANDS = {
    "finetune": ("finetune", "encoder", "--data", "texts", *_TRAINING, "-o", "out"),
    "shrink": ("shrink", "teacher", "--layers", "2", "-o", "out"),
    "distill": (
        *("distill", "--teacher", "teacher", "--init", "from-scratch", "--layers", "2"),
        *("--data", "texts", *_TRAINING, "-o", "out"),
    ),
    "export": ("export", "teacher", "--data", "texts", "--max-drop", "100", "-o", "out"),
    "push": ("push", "teacher", "--hub-model-id", "org/out"),
}
_REPEATABLE = ("model.safetensors", "config.json", "tokenizer.json")


@dataclass
class Tally:
    """What was found after the kills of a command."""

    left: Counter[str] = field(default_factory=Counter)
    codes: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def prepare(desk: Desk) -> None:
    """Texts in two languages, an encoder, and a classifier made of it."""
    folder = desk.folder
    make_model("xlm-roberta", None).save_pretrained(folder / "encoder")
    make_tokenizer("xlm-roberta").save_pretrained(folder / "encoder")
    for language in ("de", "es"):
        for split, count in (("train", 120), ("validation", 12)):
            rows = [
                {"text": f"{WORDS[i % 3]} {i} {language}", "label": LABELS[i % 3]}
                for i in range(count)
            ]
            path = folder / "texts" / language / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = desk(*COMMANDS["finetune"][:-1], "teacher", "--max-steps", "150")
    assert made.returncode == 0, made.stderr


def result(desk: Desk, command: str) -> dict[str, bytes] | None:
    """The files that a command left as its result; None if there is none."""
    if command == "push":
        files = desk.hub.files("org/out") if ("models", "org/out") in desk.hub.repos else {}
        return files if "config.json" in files else None
    out = desk.folder / "out"
    return content(out) if (out / "config.json").exists() else None


def clear(desk: Desk) -> None:
    shutil.rmtree(desk.folder / "out", ignore_errors=True)
    for stale in desk.folder.glob(".out.*"):
        shutil.rmtree(stale)
    desk.hub.repos.clear()
    desk.hub.objects.clear()


def whole(found: dict[str, bytes], undisturbed: dict[str, bytes]) -> bool:
    """Whether all files are there, those that hold no time of day with the same bytes."""
    names = {name for name in found if not name.startswith("checkpoints/")}
    same = all(found[name] == undisturbed[name] for name in _REPEATABLE)
    return names == set(undisturbed) and same


def kill_one(desk: Desk, command: str, number: int, after: float) -> int:
    process = subprocess.Popen(
        [sys.executable, "-m", "kdshrink", *COMMANDS[command]],
        env=desk.hub.environment(desk.home),
        cwd=desk.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
    return process.wait(120)


def kill_often(desk: Desk, command: str, moments: int, chance: random.Random) -> Tally:
    """Kill a command at random moments of its time; see the module's docstring."""
    clear(desk)
    began = time.monotonic()
    done = desk(*COMMANDS[command])
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    undisturbed = result(desk, command)
    assert undisturbed is not None
    again = (*COMMANDS[command], *(["--resume"] if command in ("finetune", "distill") else []))
    tally = Tally()
    for i in range(moments):
        clear(desk)
        number, after = (signal.SIGKILL, signal.SIGTERM)[i % 2], chance.uniform(0.05, seconds)
        what = f"{command}, {number.name} after {after:.2f} s of {seconds:.2f}"
        code = kill_one(desk, command, number, after)
        tally.codes[code] += 1
        expected = (0, -9) if number == signal.SIGKILL else (0, 143, -15)
        if code not in expected:
            tally.faults.append(f"{what}: exit code {code}")
        found = result(desk, command)
        checkpoints = list((desk.folder / "out" / "checkpoints").glob("checkpoint-*"))
        kept = "checkpoints" if checkpoints else "nothing"
        tally.left["whole" if found is not None else kept] += 1
        if found is not None and not whole(found, undisturbed):
            tally.faults.append(f"{what}: a result that is not whole")
        if found is None or command == "push":
            retried = desk(*again)
            found = result(desk, command)
            if retried.returncode != 0:
                tally.faults.append(f"{what}: the next run ended with {retried.stderr[-300:]}")
            elif found is None or not whole(found, undisturbed):
                tally.faults.append(f"{what}: the next run's weights differ")
    return tally


def run(moments: int, commands: list[str], seed: int) -> dict[str, Tally]:
    chance = random.Random(seed)
    tallies = {}
    with tempfile.TemporaryDirectory() as folder, Hub() as hub:
        desk = Desk(hub, Path(folder))
        prepare(desk)
        for command in commands:
            tallies[command] = kill_often(desk, command, moments, chance)
    return tallies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--commands", default=",".join(COMMANDS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tallies = run(options.moments, options.commands.split(","), options.seed)
    for command, tally in tallies.items():
        print(f"{command}: left {dict(tally.left)}, exit codes {dict(tally.codes)}")
        for fault in tally.faults:
            print(f"  FAULT {fault}")
    sys.exit(any(tally.faults for tally in tallies.values()))


if __name__ == "__main__":
    main()
