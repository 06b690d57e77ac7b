"""Size, scores and CPU latency of classifiers of texts, each against the first, as a Markdown table.

    python tests/benchmarks/whole_way.py TEACHER PAPERS_STUDENT OWN_STUDENT --data massive --data-dir DIR \
        --seen ar,de,en,es,ru,zh-CN --unseen nl,pt-PT,sw,th

Scores are those of `kdshrink zero-shot`. Latency is that of transformers' pipeline on test texts of all the
languages, tokenizing and all: one text a call, and 32 in one call. The models take turns, a text or a batch
each; told are the medians, and the medians of the ratios to the first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import Pipeline, pipeline

from kdshrink.commands.inputs import data_request
from kdshrink.config.commands import EvalConfig
from kdshrink.data.load import load_data

BATCH = 32


def zero_shot(model: str, options: argparse.Namespace) -> dict:
    words = ["--data", options.data, "--data-dir", options.data_dir]
    words += ["--languages", f"{options.seen},{options.unseen}", "--seen-languages", options.seen]
    words += ["--max-eval-samples", str(options.max_eval_samples), "--json"]
    command = [sys.executable, "-m", "kdshrink", "zero-shot", model, *words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))


def read_texts(options: argparse.Namespace, count: int) -> list[str]:
    """Test texts of all the languages, mixed."""
    config = EvalConfig(
        model=options.models[0],
        data=options.data,
        data_dir=Path(options.data_dir),
        languages=(*options.seen.split(","), *options.unseen.split(",")),
    )
    data = load_data(data_request(config), ("test",), purpose="evaluate")
    table = data.splits["test"]
    return list(table.shuffle(seed=0)["text"][:count])


def seconds(model: Pipeline, texts: list[str]) -> float:
    began = time.perf_counter()
    model(texts, batch_size=len(texts))
    return time.perf_counter() - began


def latencies(models: Sequence[Pipeline], calls: list[list[str]]) -> list[list[float]]:
    """Seconds of each call by each model, who take turns."""
    for model in models:
        seconds(model, calls[0])
    rounds = [[seconds(model, texts) for model in models] for texts in calls]
    return [list(times) for times in zip(*rounds, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--seen", required=True)
    parser.add_argument("--unseen", required=True)
    parser.add_argument("--max-eval-samples", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    texts = read_texts(options, BATCH * options.rounds)
    pipelines = [pipeline("text-classification", model=m, device="cpu") for m in options.models]
    batches = [texts[begin : begin + BATCH] for begin in range(0, len(texts), BATCH)]
    alone = latencies(pipelines, [[text] for text in texts[: 10 * options.rounds]])
    batched = latencies(pipelines, batches)
    answers = [zero_shot(model, options) for model in options.models]
    rows: dict[str, list[str]] = {name: [] for name in ("parameters", "bytes")}
    for model in pipelines:
        rows["parameters"].append(f"{sum(p.numel() for p in model.model.parameters()) / 1e6:.1f} M")
    for name in options.models:
        rows["bytes"].append(f"{(Path(name) / 'model.safetensors').stat().st_size / 1e6:.1f} MB")
    for group in ("seen", "unseen"):
        rows[f"F1, {group}"] = [f"{answer[group]['score']:.3f}" for answer in answers]
        for language in answers[0][group]["per_language"]:
            found = (answer[group]["per_language"][language]["score"] for answer in answers)
            rows[language] = [f"{score:.3f}" for score in found]
    for label, times in (("one text", alone), (f"{BATCH} texts", batched)):
        rows[label] = [f"{1000 * statistics.median(mine):.1f} ms" for mine in times]
        ratios = (
            statistics.median(first / own for first, own in zip(times[0], mine, strict=True))
            for mine in times
        )
        rows[f"{label}, times as fast"] = [f"{ratio:.2f}" for ratio in ratios]
    print("| |", " | ".join(Path(model).name for model in options.models), "|")
    print("|---|" + "---|" * len(options.models))
    for label, cells in rows.items():
        print(f"| {label} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
