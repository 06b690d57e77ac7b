"""Latency of what export wrote: torch, onnxruntime in fp32 and in int8, on the same texts.

    OMP_NUM_THREADS=1 python tests/benchmarks/export_speed.py DIR --data D [--data-dir DIR] [--rounds 30]

DIR is what export wrote; its texts are the validation split's. One text, and 32 in one padded batch, tokenised
before; the three take turns in each round. Medians and 95th percentiles in milliseconds, and how many times as
fast as torch the others are. As many threads as OMP_NUM_THREADS says, in torch and in onnxruntime.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdshrink.data.load import load_data
from kdshrink.data.request import DataRequest, LanguageChoice, Sampling
from kdshrink.exporting.runtime import FILES, OnnxClassifier
from kdshrink.models.loading import load_classifier
from kdshrink.models.source import find_model

Batch = Mapping[str, torch.Tensor]


@torch.inference_mode()
def measure(
    models: Mapping[str, Callable[..., Any]], batches: list[Batch], rounds: int
) -> dict[str, Any]:
    """Milliseconds of a batch by model: median, 95th percentile, and the first model's median over it."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds + 2):
        batch = batches[number % len(batches)]
        for name, model in models.items():
            began = time.perf_counter()
            model(**batch)
            if number >= 2:  # the first calls warm up
                seconds[name].append(time.perf_counter() - began)
    first = float(np.median(next(iter(seconds.values()))))
    return {
        name: {
            "median_ms": round(1000 * float(np.median(values)), 2),
            "p95_ms": round(1000 * float(np.percentile(values, 95)), 2),
            "times_as_fast": round(first / float(np.median(values)), 2),
        }
        for name, values in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--languages", default="all")
    parser.add_argument("--rounds", type=int, default=30)
    chosen = parser.parse_args()
    source = find_model(str(chosen.directory))
    assert source.task is not None
    loaded = load_classifier(source, source.task)
    models: dict[str, Callable[..., Any]] = {"torch": loaded.model.eval()}
    for precision, file in FILES.items():
        path = chosen.directory / "onnx" / file
        if path.is_file():
            models[f"onnx {precision}"] = OnnxClassifier(path)
    request = DataRequest(
        data=chosen.data,
        data_dir=chosen.data_dir,
        languages=LanguageChoice(wanted=tuple(chosen.languages.split(","))),
        sampling=Sampling(max_samples=200),
    )
    table = load_data(request, ("validation",), purpose="evaluate").splits["validation"]
    texts = [table[i]["text"] for i in np.random.default_rng(0).permutation(len(table))[:320]]
    result: dict[str, Any] = {"threads": torch.get_num_threads()}
    for size in (1, 32):
        batches = [
            loaded.tokenizer(
                texts[begin : begin + size],
                padding=True,
                truncation=True,
                is_split_into_words=source.task == "token",
                return_tensors="pt",
                return_token_type_ids=False,
            )
            for begin in range(0, len(texts), size)
        ]
        result[f"{size} texts"] = measure(models, batches, chosen.rounds)
    result["bytes"] = {
        path.name: path.stat().st_size
        for path in (chosen.directory / "model.safetensors", *(chosen.directory / "onnx").iterdir())
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
