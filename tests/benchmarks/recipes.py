"""Scores of students made and trained in several ways, after equally many steps, as a Markdown table.

    python tests/benchmarks/recipes.py TEACHER -o DIR --data massive --data-dir MASSIVE_DIR \
        --seen ar,de,en,es,ru,zh-CN --unseen nl,pt-PT,sw,th --shapes 6x384,6x192 --seeds 44,55,66 \
        --steps 50,150,300 "fine-tuned=finetune copy" "paper=distill copy --recipe paper" \
        "best=distill calibrated" -- --batch-size 32 --max-length 24

A way is NAME=COMMAND START OPTIONS: what `kdshrink shrink --init START` makes (copy, calibrated or scratch) of
a shape, LAYERSxWIDTH, is trained by `kdshrink distill`, or without a teacher by `kdshrink finetune`. What
stands behind `--` goes to all of them, and its --max-length to the calibration and to the scoring too. Each
is trained once a seed, for the last of the steps. Reported are the scores of `kdshrink zero-shot` on the test
split, pooled over the seen languages, over the unseen ones, and in the worst of these, untrained and trained,
and on the way the development set's. Scores stay in DIR, so that the command goes on where it was ended;
trained weights do not.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from pathlib import Path


@dataclass(frozen=True)
class Way:
    """How a student is made and trained, as it was typed."""

    name: str
    command: str
    start: str
    options: tuple[str, ...]

    @classmethod
    def parse(cls, typed: str) -> Way:
        name, _, rest = typed.partition("=")
        command, start, *options = shlex.split(rest)
        return cls(name, command, start, tuple(options))


def kdshrink(*words: object) -> str:
    command = [sys.executable, "-m", "kdshrink", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def started(options: argparse.Namespace, shape: str, init: str) -> Path:
    """The untrained student."""
    folder: Path = options.output / f"{shape}-{init}"
    if not folder.exists():
        layers, width = shape.split("x")
        words = ["--layers", layers, "--hidden-size", width, "--init", init]
        if init == "calibrated":
            words += [*options.source, "--languages", options.seen, *options.length]
        kdshrink("shrink", options.teacher, *words, "-o", folder)
    return folder


def tested(options: argparse.Namespace, model: str | Path, kept: Path) -> dict[str, float]:
    """What zero-shot says of a model; asked for if it is not kept yet."""
    if not kept.exists():
        languages = f"{options.seen},{options.unseen}"
        groups = ["--seen-languages", options.seen, "--unseen-languages", options.unseen]
        words = ["--languages", languages, *groups, "--max-eval-samples", options.max_eval_samples]
        kept.write_text(
            kdshrink("zero-shot", model, *options.source, *words, *options.length, "--json")
        )
    result = json.loads(kept.read_text())
    found = {group: result[group]["score"] for group in ("seen", "unseen")}
    found["worst"] = min(row["score"] for row in result["unseen"]["per_language"].values())
    return found


def trained(options: argparse.Namespace, shape: str, way: Way, seed: int) -> dict[str, float]:
    """Scores of a student on the way through its training, and at its end."""
    start = started(options, shape, way.start)
    model: Path = options.output / f"{shape}-{way.name}-{seed}"
    kept = model.with_suffix(".json")
    if not kept.exists():
        words: list[object] = [start]
        if way.command == "distill":
            words = ["--teacher", options.teacher, "--student", start, "--no-compare"]
        run = ["--max-steps", options.steps[-1], "--eval-steps", gcd(*options.steps)]
        words += [*options.source, "--languages", options.seen, *run, "--seed", seed]
        kdshrink(way.command, *words, *options.common, *way.options, "--overwrite", "-o", model)
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
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("teacher")
    parser.add_argument("ways", nargs="+", type=Way.parse)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-dir")
    parser.add_argument("--seen", required=True)
    parser.add_argument("--unseen", required=True)
    parser.add_argument("--shapes", required=True)
    parser.add_argument("--steps", default="50,150,300")
    parser.add_argument("--seeds", default="44,55,66")
    parser.add_argument("--max-eval-samples", type=int, default=300)
    options = parser.parse_args(sys.argv[1:at])
    directory = ["--data-dir", options.data_dir] if options.data_dir else []
    options.source = ["--data", options.data, *directory]
    options.common = sys.argv[at + 1 :]
    options.length = []
    if "--max-length" in options.common:
        at = options.common.index("--max-length")
        options.length = options.common[at : at + 2]
    options.steps = sorted(map(int, options.steps.split(",")))
    options.output.mkdir(parents=True, exist_ok=True)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    groups = ["seen", "unseen", "worst"]
    points = [*groups, *map(str, options.steps)]
    titles = ["test, seen", "unseen", "worst unseen", *(f"{step} steps" for step in options.steps)]
    print("| student | way |", " | ".join(titles), "|")
    print("|---|---|" + "---|" * len(titles))

    def row(shape: str, name: str, runs: Sequence[dict[str, float]]) -> None:
        cells = [cell([run[point] for run in runs]) if point in runs[0] else "" for point in points]
        print(f"| {shape} | {name} |", " | ".join(cells), "|", flush=True)

    row("", "teacher", [tested(options, options.teacher, options.output / "teacher.json")])
    for shape in options.shapes.split(","):
        for init in dict.fromkeys(way.start for way in options.ways):
            kept = options.output / f"{shape}-{init}.json"
            untrained = tested(options, started(options, shape, init), kept)
            row(shape, f"{init}, untrained", [untrained])
        for way in options.ways:
            row(shape, way.name, [trained(options, shape, way, seed) for seed in seeds])


if __name__ == "__main__":
    main()
