"""How long reading custom data takes, and how much memory, against another checkout.

    python tests/benchmarks/read_speed.py [--baseline DIR] [--sizes 50000,500000] [--rounds 5]

A CSV and a JSON lines file of an id, a text of about 60 characters in one of six scripts, one of 60 labels and
a language, read whole into a TaskData by `load_data`. Each reading has a process and an empty cache of its
own; the checkouts take turns (the other one first in every second round), and told are medians of the rounds.
Seconds are those of the call, without Python's imports, `cpu_seconds` those in which it had a core, which other
work on the machine moves less. `peak_mib` is the most memory that was resident,
`grown_mib` what of it came on top of what was there before the call, and `own_mib` the most of it that was no
file's (Arrow's memory maps are a file's): memory is flat if the latter does not grow with the rows.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[2]
KINDS = ("csv", "jsonl")
LETTERS = {
    "en": "etaoinshrdlucmfwypvbgk",
    "de": "enisratdhulcgmobwfkzüöäß",
    "ru": "оеаинтсрвлкмдпуяыьгзбчйхжшюцщэф",
    "ar": "اليمنتربوعدسفهحقكجةىشصطخضذثزغ",
    "hi": "कखगघचजटडतदनपबमयरलवसहािीुूेो्",
    "zh": "的一是不了人我在有他这中大来上国个到说们为子和你地出道也时年得就那要下以生会",
}


def make_rows(count: int) -> Any:
    """Rows without end, the same each time; some of the texts have commas and quotes."""
    chance = random.Random(0)
    words = {
        code: ["".join(chance.choices(letters, k=chance.randint(2, 9))) for _ in range(2000)]
        for code, letters in LETTERS.items()
    }
    codes = list(LETTERS)
    for number in range(count):
        code = codes[number % len(codes)]
        text = " ".join(chance.choices(words[code], k=10))
        if number % 50 == 0:
            text = f'{text[:20]}, "{text[20:40]}" {text[40:]}'
        label = f"intent_{chance.randrange(60):02d}"
        yield {"id": str(number), "text": text, "label": label, "language": code}


def write_data(folder: Path, count: int) -> None:
    with (
        (folder / "rows.csv").open("w", encoding="utf-8", newline="") as table,
        (folder / "rows.jsonl").open("w", encoding="utf-8") as lines,
    ):
        writer = csv.DictWriter(table, ["id", "text", "label", "language"])
        writer.writeheader()
        for row in make_rows(count):
            writer.writerow(row)
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")


class Watch(threading.Thread):
    """Looks fifty times a second at how much memory of this process is no file's."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_kib = 0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.02):
            status = Path("/proc/self/status").read_text()
            own = next(line for line in status.splitlines() if line.startswith("RssAnon:"))
            self.peak_kib = max(self.peak_kib, int(own.split()[1]))


def read(path: Path) -> dict[str, float]:
    """Read a file in this process; what its rows are follows from a sum over them."""
    from kdshrink import EvalConfig

    try:
        from kdshrink.data.load import load_data
    except ImportError:  # a checkout from before kdshrink/data/ was a folder
        load_data = import_module("kdshrink.data").load_data

    request: Any = EvalConfig(model="unused", data=str(path))
    with suppress(ImportError):  # a checkout whose load_data takes the config itself
        from kdshrink.commands.inputs import data_request

        request = data_request(request)
    before = resource.getrusage(resource.RUSAGE_SELF)
    watch = Watch()
    watch.start()
    began = time.perf_counter()
    data = load_data(request, ("test",), purpose="evaluate")
    seconds = time.perf_counter() - began
    watch.over.set()
    after = resource.getrusage(resource.RUSAGE_SELF)
    table = data.splits["test"]
    return {
        "seconds": seconds,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_mib": after.ru_maxrss / 1024,
        "grown_mib": (after.ru_maxrss - before.ru_maxrss) / 1024,
        "own_mib": watch.peak_kib / 1024,
        "rows": len(table),
        "characters_at_the_ends": len(table[0]["text"]) + len(table[-1]["text"]),
        "labels": len(data.labels or ()),
    }


def in_child(checkout: Path, path: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as cache:
        environment = {
            **os.environ,
            "PYTHONPATH": str(checkout),
            "HF_HOME": cache,
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        }
        command = [sys.executable, __file__, "--child", str(path)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{checkout} could not read {path.name}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(checkouts: dict[str, Path], path: Path, rounds: int) -> dict[str, Any]:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    for number in range(rounds):
        for name in list(checkouts)[:: -1 if number % 2 else 1]:
            found[name].append(in_child(checkouts[name], path))
    if len({tuple(list(one.values())[-3:]) for ones in found.values() for one in ones}) > 1:
        raise SystemExit(f"{path.name}: not the same rows were read")
    return {
        name: {
            key: round(statistics.median(one[key] for one in ones), 2)
            for key in ("seconds", "cpu_seconds", "peak_mib", "grown_mib", "own_mib")
        }
        for name, ones in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--baseline", type=Path, help="another checkout of kdshrink")
    parser.add_argument("--sizes", default="50000,500000")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        print(json.dumps(read(options.child)))
        return
    checkouts = {"this": HERE}
    if options.baseline is not None:
        checkouts["baseline"] = options.baseline.resolve()
    result: dict[str, Any] = {}
    for size in map(int, options.sizes.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            write_data(Path(folder), size)
            for kind in KINDS:
                path = Path(folder) / f"rows.{kind}"
                case = measure(checkouts, path, options.rounds)
                case["file_mib"] = round(path.stat().st_size / 2**20, 1)
                result[f"{size} {kind}"] = case
                print(size, kind, case, file=sys.stderr, flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
