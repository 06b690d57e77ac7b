"""How time and memory grow with the number of examples, in evaluation and in training.

    python tests/benchmarks/data_scale.py [--sizes 10000,70000,500000]

A model of two narrow layers with random weights, so that what is measured is what kdshrink does around it.
The texts are the embedded sample's, each with a number behind it. Training runs 20 steps, after the whole
training set was read, tokenised and put into batches. Each figure is of a process of its own. Memory is
the peak of what is resident, and of that part of it that is not a file's pages (Arrow's memory maps are).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

SAMPLE = Path(__file__).parents[2] / "kdshrink" / "sample"
JOBS = ("evaluate", "finetune")


def make_data(folder: Path, size: int) -> None:
    texts = [
        json.loads(line)
        for path in sorted((SAMPLE / "data").glob("*/test.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    folder.mkdir()
    for split, count in (("train", size), ("validation", 50), ("test", size)):
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for i in range(count):
                row = texts[i % len(texts)]
                line = {"text": f"{row['utt']} {i}", "label": row["intent"]}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def make_model(folder: Path, data: Path) -> None:
    from transformers import AutoTokenizer, XLMRobertaConfig, XLMRobertaForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(SAMPLE / "teacher")
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=66,
        type_vocab_size=1,
    )
    lines = (data / "test.jsonl").read_text(encoding="utf-8").splitlines()
    names = sorted({json.loads(line)["label"] for line in lines})
    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}
    XLMRobertaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class Watch(threading.Thread):
    """Looks ten times a second at how much memory of this process is no file's."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_kib = 0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.1):
            status = Path("/proc/self/status").read_text()
            own = next(line for line in status.splitlines() if line.startswith("RssAnon:"))
            self.peak_kib = max(self.peak_kib, int(own.split()[1]))


def run(job: str, work: Path) -> dict[str, float]:
    from kdshrink import EvalConfig, FinetuneConfig, evaluate, finetune

    options: dict[str, Any] = {"model": str(work / "model"), "data": str(work / "data")}
    watch = Watch()
    watch.start()
    began = time.perf_counter()
    if job == "evaluate":
        evaluate(EvalConfig(device="cpu", **options))
    else:
        finetune(FinetuneConfig(device="cpu", max_steps=20, output_dir=work / "out", **options))
    seconds = time.perf_counter() - began
    watch.over.set()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "seconds": round(seconds, 1),
        "peak_mib": round(peak),
        "own_peak_mib": round(watch.peak_kib / 1024),
    }


def in_child(task: str, work: Path, size: int) -> Any:
    command = [sys.executable, __file__, "--child", task, "--work", str(work), "--sizes", str(size)]
    environment = {**os.environ, "HF_HOME": str(work / "cache")}
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="10000,70000,500000")
    parser.add_argument("--child")
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    if options.child == "prepare":
        make_data(options.work / "data", int(options.sizes))
        make_model(options.work / "model", options.work / "data")
        print("{}")
        return
    if options.child is not None:
        print(json.dumps(run(options.child, options.work)))
        return
    result: dict[str, Any] = {job: {} for job in JOBS}
    for size in map(int, options.sizes.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            in_child("prepare", Path(folder), size)
            for job in JOBS:
                result[job][size] = in_child(job, Path(folder), size)
                print(size, job, result[job][size], file=sys.stderr, flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
