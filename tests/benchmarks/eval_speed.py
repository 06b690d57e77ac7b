"""Evaluation's speed against transformers' pipeline(batch_size=32), with the same predictions.

    python tests/benchmarks/eval_speed.py --model CLASSIFIER_DIR --tweets TSM_DIR [--texts 2000] [--rounds 5]

Two kinds of text: tweets, and lines of 5 to 300 tokens, any length as likely, of tweets joined and cut.
Measured from texts in memory to answers, tokenising included. Each side has a process of its own, and
they run by turns, the other one first in every second round; medians of the rounds. The share of the
pipeline's positions that are no padding says what there is to gain by lengths alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from kdshrink.data.encoding import Collator, encode
from kdshrink.evaluation.evaluator import predict
from kdshrink.models.loading import load_classifier
from kdshrink.models.source import find_model

Answer = Callable[[list[str]], list[str]]
_answer: Answer


def tweets(folder: Path, count: int) -> list[str]:
    found = [
        json.loads(line)["text"]
        for path in sorted(folder.glob("*/test.jsonl"))
        for line in path.read_text().splitlines()
    ]
    order = np.random.default_rng(0).permutation(len(found))[:count]
    return [found[i] for i in order]


def lines_of_many_lengths(texts: list[str], tokenizer: Any, count: int) -> list[str]:
    rng = np.random.default_rng(1)
    words = " ".join(texts).split()
    made = []
    for _ in range(count):
        begin = int(rng.integers(len(words) - 300))
        tokens = int(rng.integers(5, 301))
        ids = tokenizer(" ".join(words[begin : begin + tokens]))["input_ids"][1 : tokens - 1]
        made.append(tokenizer.decode(ids))
    return made


def ours(name: str, device: torch.device) -> Answer:
    source = find_model(name)
    loaded = load_classifier(source, "sequence")
    model = loaded.model.to(device)  # type: ignore[arg-type]
    collate = Collator(int(loaded.tokenizer.pad_token_id))

    def answer(texts: list[str]) -> list[str]:
        table = Dataset.from_dict({"text": texts, "language": ["und"] * len(texts)})
        encoded = encode(table, loaded.tokenizer, task="sequence", max_length=512, label_ids=None)
        found = predict(
            model, encoded, task="sequence", collate=collate, batch_size=None, device=device
        )
        return [source.labels[i] for i in found.classes]

    return answer


def theirs(name: str, device: torch.device) -> Answer:
    model = AutoModelForSequenceClassification.from_pretrained(name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(name)
    peer = pipeline(
        "text-classification", model=model, tokenizer=tokenizer, batch_size=32, device=device
    )
    return lambda texts: [row["label"] for row in peer(texts, truncation=True, max_length=512)]


def start(side: str, name: str, device: str, threads: int) -> None:
    """Set a process up for one side, and run it once."""
    global _answer
    torch.set_num_threads(threads)
    disable_progress_bars()
    _answer = (ours if side == "ours" else theirs)(name, torch.device(device))
    _answer(["a first text, so that nothing is new in the first round"] * 64)


def timed(texts: list[str]) -> tuple[float, list[str]]:
    began = time.perf_counter()
    answers = _answer(texts)
    return time.perf_counter() - began, answers


def compare(sides: dict[str, Any], texts: list[str], rounds: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    answers: dict[str, list[str]] = {}
    for number in range(rounds):
        for side in list(sides)[:: 1 if number % 2 else -1]:
            took, answers[side] = sides[side].apply(timed, (texts,))
            seconds[side].append(took)
    equal = sum(a == b for a, b in zip(answers["ours"], answers["pipeline"], strict=True))
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["pipeline"], strict=True)]
    return {
        "times_pipeline": round(statistics.median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "examples_per_second": round(len(texts) / statistics.median(seconds["ours"]), 1),
        "pipeline_examples_per_second": round(
            len(texts) / statistics.median(seconds["pipeline"]), 1
        ),
        "equal_predictions": equal / len(texts),
    }


def real_share(texts: list[str], tokenizer: Any) -> float:
    """What of the pipeline's positions is no padding."""
    ids = tokenizer(texts, truncation=True, max_length=512)["input_ids"]
    lengths = [len(one) for one in ids]
    batches = [lengths[begin : begin + 32] for begin in range(0, len(lengths), 32)]
    return sum(lengths) / sum(len(batch) * max(batch) for batch in batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tweets", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    short = tweets(options.tweets, options.texts)
    kinds = {
        "tweets": short,
        "5-300 tokens": lines_of_many_lengths(short, tokenizer, options.texts),
    }
    context = multiprocessing.get_context("spawn")
    sides = {
        side: context.Pool(1, start, (side, options.model, options.device, options.threads))
        for side in ("ours", "pipeline")
    }
    result = {
        kind: {
            **compare(sides, texts, options.rounds),
            "real_share": round(real_share(texts, tokenizer), 3),
        }
        for kind, texts in kinds.items()
    }
    for pool in sides.values():
        pool.terminate()
    print(json.dumps(result))
    if any(row["equal_predictions"] < 1 for row in result.values()):
        raise SystemExit("the predictions differ")


if __name__ == "__main__":
    main()
