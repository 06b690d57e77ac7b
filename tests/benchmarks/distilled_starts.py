"""Scores of copied (or sliced) and calibrated students after equal distillation, as a Markdown table.

    python tests/benchmarks/distilled_starts.py TEACHER -o DIR --data massive --data-dir MASSIVE_DIR \
        --seen ar,de,en,es,ru,zh-CN --unseen nl,pt-PT,sw,th --steps 50,150,300 --seeds 44,55,66 \
        6x384 6x192 -- --learning-rate 2e-4 --warmup-steps 20 --batch-size 32 --max-length 24

A student is LAYERSxWIDTH; both its starts are made by `kdshrink shrink` and distilled once a seed, for the
last of the steps. Told are the scores of `kdshrink zero-shot` before and after it, on the test split's seen
and unseen languages, and on the way the development set's. What stands behind `--` goes to `kdshrink
distill`, and its --max-length to the calibration too. Scores stay in DIR, so that the command goes on where
it was ended; distilled weights do not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from math import gcd
from pathlib import Path

STARTS = ("copy", "calibrated")


def kdshrink(*words: object) -> str:
    command = [sys.executable, "-m", "kdshrink", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def start(options: argparse.Namespace, shape: str, init: str) -> Path:
    """The untrained student."""
    folder: Path = options.output / f"{shape}-{init}"
    if not folder.exists():
        layers, width = shape.split("x")
        words = ["--layers", layers, "--hidden-size", width, "--init", init]
        if init == "calibrated":
            words += [*options.source, "--languages", options.seen, *options.length]
        kdshrink("shrink", options.teacher, *words, "-o", folder)
    return folder


def tested(options: argparse.Namespace, model: Path, kept: Path) -> dict[str, float]:
    """What zero-shot says of a model, seen and unseen; asked for if it is not kept yet."""
    if not kept.exists():
        languages = f"{options.seen},{options.unseen}"
        groups = ["--seen-languages", options.seen, "--unseen-languages", options.unseen]
        words = ["--languages", languages, *groups, "--max-eval-samples", options.max_eval_samples]
        kept.write_text(kdshrink("zero-shot", model, *options.source, *words, "--json"))
    answer = json.loads(kept.read_text())
    return {group: answer[group]["score"] for group in ("seen", "unseen")}


def distilled(options: argparse.Namespace, shape: str, init: str, seed: int) -> dict[str, float]:
    """Scores of a student on the way through its distillation, and at its end."""
    untrained = start(options, shape, init)
    model: Path = options.output / f"{shape}-{init}-{seed}"
    kept = model.with_suffix(".json")
    if not kept.exists():
        words = ["--teacher", options.teacher, "--student", untrained, "--languages", options.seen]
        run = ["--max-steps", options.steps[-1], "--eval-steps", gcd(*options.steps)]
        words += [*options.source, *run, "--seed", seed, "--no-compare", "--overwrite"]
        kdshrink("distill", *words, *options.distill, "-o", model)
    found = tested(options, model, kept)
    (model / "model.safetensors").unlink(missing_ok=True)
    log = [json.loads(line) for line in (model / "train_log.jsonl").read_text().splitlines()]
    found |= {str(line["step"]): line["score"] for line in log if "score" in line}
    print(kept.stem, found, file=sys.stderr, flush=True)
    return found


def cell(values: Sequence[float]) -> str:
    """Mean and, of several seeds, standard deviation."""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def main() -> None:
    own, _, distill = " ".join(sys.argv[1:]).partition(" -- ")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("teacher")
    parser.add_argument("shapes", nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--seen", required=True)
    parser.add_argument("--unseen", required=True)
    parser.add_argument("--steps", default="50,150,300")
    parser.add_argument("--seeds", default="44,55,66")
    parser.add_argument("--max-eval-samples", type=int, default=300)
    options = parser.parse_args(own.split())
    options.source = ["--data", options.data, "--data-dir", options.data_dir]
    options.distill = distill.split()
    options.length = []
    if "--max-length" in options.distill:
        at = options.distill.index("--max-length")
        options.length = options.distill[at : at + 2]
    options.steps = sorted(map(int, options.steps.split(",")))
    options.output.mkdir(parents=True, exist_ok=True)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    points = [*map(str, options.steps), "seen", "unseen"]
    titles = ["untrained: seen", "unseen", *(f"{step} steps" for step in options.steps)]
    print("| student | start |", " | ".join(titles), "| test, seen | unseen |")
    print("|---|---|" + "---|" * (len(titles) + 2))
    for shape in options.shapes:
        for init in STARTS:
            kept = options.output / f"{shape}-{init}.json"
            untrained = tested(options, start(options, shape, init), kept)
            runs = [distilled(options, shape, init, seed) for seed in seeds]
            cells = [cell([score]) for score in untrained.values()]
            cells += [cell([run[point] for run in runs]) for point in points]
            print(f"| {shape} | {init} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
