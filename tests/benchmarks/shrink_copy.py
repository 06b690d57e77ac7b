"""Time and memory of `kdshrink shrink` against `cp` of its output, at XLM-R base's shape.

    python tests/benchmarks/shrink_copy.py [--baseline DIR] [--runs 5] [--layers 6] [--hidden-size 384]

Makes a checkpoint of 12 layers, width 768 and 250,002 tokens with random weights (1.1 GB), shrinks it by
this checkout and, with --baseline, by another, and copies the result, in turn. Figures are of whole
processes, medians: seconds, `cpu_seconds`, which other work on the machine moves less, and the most
memory that was resident. Before each one the former output is removed, and what waits for the disk is
written. TMPDIR chooses the file system.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple


def make_checkpoint(folder: Path) -> None:
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaModel

    from kdshrink.models.tensors import TensorSpec, to_array, write_tensors

    folder.mkdir()
    config = XLMRobertaConfig(vocab_size=250002, max_position_embeddings=514, type_vocab_size=1)
    config.architectures = ["XLMRobertaModel"]
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = XLMRobertaModel(config).state_dict()
    specs = {
        name: TensorSpec.of(tensor) for name, tensor in shapes.items() if tensor.is_floating_point()
    }
    write_tensors(
        folder / "model.safetensors",
        specs,
        lambda name: to_array(torch.randn(specs[name].shape) * 0.02),
    )
    (folder / "tokenizer.json").write_text("{}")


class Cost(NamedTuple):
    """What a process took."""

    seconds: float
    cpu_seconds: float
    peak_mib: float


def measured(command: list[str], output: Path, checkout: Path | None = None) -> Cost:
    """What a command takes that writes a directory, which is removed before it."""
    shutil.rmtree(output, ignore_errors=True)
    os.sync()
    environment = os.environ if checkout is None else os.environ | {"PYTHONPATH": str(checkout)}
    began = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, env=environment, cwd=output.parent
    )
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, command
    seconds = time.perf_counter() - began
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--baseline", type=Path, help="another checkout of kdshrink")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden-size", type=int, default=768)
    options = parser.parse_args()
    checkouts = {"shrink": Path(__file__).parents[2]}
    if options.baseline is not None:
        checkouts["baseline"] = options.baseline.resolve()
    with tempfile.TemporaryDirectory() as work:
        source, out, twin = (Path(work, name) for name in ("source", "out", "twin"))
        # In a process of its own: a child's peak begins at what its parent held when it was forked.
        maker = multiprocessing.get_context("spawn").Process(target=make_checkpoint, args=(source,))
        maker.start()
        maker.join()
        assert maker.exitcode == 0
        shrink = [
            *(sys.executable, "-m", "kdshrink", "shrink", str(source), "-o", str(out), "--json"),
            *("--layers", str(options.layers), "--hidden-size", str(options.hidden_size)),
        ]
        rows: dict[str, list[Cost]] = {name: [] for name in (*checkouts, "cp")}
        for run in range(options.runs + 1):
            costs = {name: measured(shrink, out, checkout) for name, checkout in checkouts.items()}
            costs["cp"] = measured(["cp", "-r", str(out), str(twin)], twin)
            if run:  # the first warms the page cache
                for name, cost in costs.items():
                    rows[name].append(cost)
        size = (out / "model.safetensors").stat().st_size
    result = {"output_mb": round(size / 1e6)} | {
        name: {
            field: round(statistics.median(getattr(cost, field) for cost in costs), 2)
            for field in Cost._fields
        }
        for name, costs in rows.items()
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
