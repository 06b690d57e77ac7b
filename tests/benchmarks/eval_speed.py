"""Evaluation's speed against transformers' pipeline(batch_size=32), with the same predictions.

    python tests/benchmarks/eval_speed.py --model CLASSIFIER_DIR --tweets TSM_DIR [--texts 2000] [--rounds 3]

Two kinds of text: tweets, and lines of 5 to 300 tokens made of tweets joined and cut. Measured from texts
in memory to answers, tokenising included, in turn in one process; medians of the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoTokenizer, pipeline

from kdshrink.config import EvalConfig
from kdshrink.encoding import Collator, encode
from kdshrink.evaluation import predict
from kdshrink.loading import load_classifier


def tweets(folder: Path, count: int) -> list[str]:
    found = [
        json.loads(line)["text"]
        for path in sorted(folder.glob("*/test.jsonl"))
        for line in path.read_text().splitlines()
    ]
    order = np.random.default_rng(0).permutation(len(found))[:count]
    return [found[i] for i in order]


def lines_of_many_lengths(texts: list[str], tokenizer: object, count: int) -> list[str]:
    rng = np.random.default_rng(1)
    words = " ".join(texts).split()
    made = []
    for _ in range(count):
        begin = int(rng.integers(len(words) - 300))
        tokens = int(rng.integers(5, 301))
        ids = tokenizer(" ".join(words[begin : begin + tokens]))["input_ids"][1 : tokens - 1]  # type: ignore[operator]
        made.append(tokenizer.decode(ids))  # type: ignore[attr-defined]
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tweets", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    config = EvalConfig(model=options.model, data="none", device=options.device)
    loaded = load_classifier(options.model, config, "sequence")
    device = torch.device(options.device)
    model = loaded.model.to(device).eval()  # type: ignore[arg-type]
    names = loaded.source.labels
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    peer = pipeline(
        "text-classification", model=model, tokenizer=tokenizer, batch_size=32, device=device
    )
    collate = Collator(int(tokenizer.pad_token_id))

    def ours(texts: list[str]) -> list[str]:
        table = Dataset.from_dict({"text": texts, "language": ["und"] * len(texts)})
        encoded = encode(table, tokenizer, task="sequence", max_length=512, label_ids=None)
        answers = predict(
            model, encoded, task="sequence", collate=collate, batch_size=64, device=device
        )
        return [names[i] for i in answers.classes]

    def theirs(texts: list[str]) -> list[str]:
        return [row["label"] for row in peer(texts, truncation=True, max_length=512)]

    short = tweets(options.tweets, options.texts)
    kinds = {
        "tweets": short,
        "5-300 tokens": lines_of_many_lengths(short, tokenizer, options.texts),
    }
    result = {}
    for kind, texts in kinds.items():
        ratios, rates = [], []
        for _ in range(options.rounds):
            began = time.perf_counter()
            mine = ours(texts)
            middle = time.perf_counter()
            other = theirs(texts)
            end = time.perf_counter()
            ratios.append((end - middle) / (middle - began))
            rates.append(len(texts) / (middle - began))
        result[kind] = {
            "times_pipeline": round(statistics.median(ratios), 2),
            "examples_per_second": round(statistics.median(rates), 1),
            "equal_predictions": sum(a == b for a, b in zip(mine, other, strict=True)) / len(texts),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
