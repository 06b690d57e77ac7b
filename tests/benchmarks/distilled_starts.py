"""Scores of copied (or sliced) and calibrated students after equal distillation, as a Markdown table.

    python tests/benchmarks/distilled_starts.py TEACHER -o DIR --data massive --data-dir MASSIVE_DIR \
        --seen ar,de,en,es,ru,zh-CN --unseen nl,pt-PT,sw,th --steps 0,50,150,300 --seeds 1,2,3 \
        6x384 6x192 -- --learning-rate 2e-4 --warmup-steps 20 --max-length 24

A student is LAYERSxWIDTH; both its starts are made by `kdshrink shrink`, distilled for each number of steps
(every one a run with a schedule of its own) and seed, and scored by `kdshrink zero-shot`. What stands
behind `--` goes to `kdshrink distill`. Scores stay in DIR, so that the command goes on where it was ended;
models do not.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
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
        text = [*options.source, "--languages", options.seen] if init == "calibrated" else []
        size = ["--layers", layers, "--hidden-size", width]
        kdshrink("shrink", options.teacher, *size, "--init", init, *text, "-o", folder)
    return folder


def score(options: argparse.Namespace, shape: str, init: str, steps: int, seed: int) -> dict:
    """What zero-shot says of a student, made and distilled if its answer is not there yet."""
    kept: Path = options.output / f"{shape}-{init}-{steps}-{seed}.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    model = untrained = start(options, shape, init)
    if steps:
        model = kept.with_suffix("")
        shutil.rmtree(model, ignore_errors=True)
        words = ["--teacher", options.teacher, "--student", untrained, "--languages", options.seen]
        run = ["--max-steps", steps, "--seed", seed, "--no-compare"]
        once = ["--eval-steps", 10**6, "--max-eval-samples", 20]
        words += [*options.source, *run, *once, *options.distill]
        kdshrink("distill", *words, "-o", model)
    languages = f"{options.seen},{options.unseen}"
    words = ["--languages", languages, "--seen-languages", options.seen]
    limit = ["--max-eval-samples", options.max_eval_samples]
    answer = kdshrink("zero-shot", model, *options.source, *words, *limit, "--json")
    kept.write_text(answer)
    if steps:
        shutil.rmtree(model)
    print(kept.stem, *scores(json.loads(answer)), file=sys.stderr, flush=True)
    return dict(json.loads(answer))


def scores(answer: dict) -> list[str]:
    return [f"{answer[group]['score']:.3f}" for group in ("seen", "unseen")]


def cell(found: list[dict]) -> str:
    """Mean and, of several seeds, standard deviation: seen, unseen."""
    parts = []
    for group in ("seen", "unseen"):
        values = [answer[group]["score"] for answer in found]
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        parts.append(f"{statistics.mean(values):.3f}{spread}")
    return ", ".join(parts)


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
    parser.add_argument("--steps", default="0,50,150,300")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--starts", default=",".join(STARTS))
    parser.add_argument("--max-eval-samples", type=int, default=300)
    options = parser.parse_args(own.split())
    options.source = ["--data", options.data, "--data-dir", options.data_dir]
    options.distill = distill.split()
    options.output.mkdir(parents=True, exist_ok=True)
    counts = [int(steps) for steps in options.steps.split(",")]
    seeds = [int(seed) for seed in options.seeds.split(",")]
    starts = options.starts.split(",")
    found: dict[tuple[str, str, int], list[dict]] = {}
    for seed in seeds:
        for shape in options.shapes:
            for init in starts:
                for steps in counts:
                    if steps or seed == seeds[0]:
                        row = found.setdefault((shape, init, steps), [])
                        row.append(score(options, shape, init, steps, seed))
    print("| student | start |", " | ".join(f"{steps} steps" for steps in counts), "|")
    print("|---|---|" + "---|" * len(counts))
    for shape in options.shapes:
        for init in starts:
            cells = (cell(found[shape, init, steps]) for steps in counts)
            print(f"| {shape} | {init} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
