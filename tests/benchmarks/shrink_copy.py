"""Time and memory of `kdshrink shrink` against `cp` of its output, at XLM-R base's shape.

    python tests/benchmarks/shrink_copy.py [--runs 5] [--layers 6]

Makes a checkpoint of 12 layers, width 768 and 250,002 pieces with random weights (1.1 GB), shrinks it
and copies the result, in turn. Times are whole processes', memory their peak resident sets; medians.
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


def make_checkpoint(folder: Path) -> None:
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaModel

    from kdshrink.models.tensors import TensorSpec, write_tensors

    folder.mkdir()
    config = XLMRobertaConfig(vocab_size=250002, max_position_embeddings=514, type_vocab_size=1)
    config.architectures = ["XLMRobertaModel"]
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = XLMRobertaModel(config).state_dict()
    specs = {
        name: TensorSpec(tuple(t.shape), torch.float32)
        for name, t in shapes.items()
        if t.is_floating_point()
    }
    write_tensors(
        folder / "model.safetensors", specs, lambda name: torch.randn(specs[name].shape) * 0.02
    )
    (folder / "tokenizer.json").write_text("{}")


def measured(command: list[str]) -> tuple[float, float]:
    """Seconds and peak MiB of a process."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, command
    return time.perf_counter() - began, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--layers", type=int, default=6)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        source, out, twin = (Path(work, name) for name in ("source", "out", "twin"))
        # In a process of its own: a child's peak begins at what its parent held when it was forked.
        maker = multiprocessing.get_context("spawn").Process(target=make_checkpoint, args=(source,))
        maker.start()
        maker.join()
        assert maker.exitcode == 0
        shrink = [
            *(sys.executable, "-m", "kdshrink", "shrink", str(source)),
            *("--layers", str(options.layers), "-o", str(out), "--overwrite", "--json"),
        ]
        rows: dict[str, list[tuple[float, float]]] = {"shrink": [], "cp": [], "import": []}
        for run in range(options.runs + 1):
            times = {"shrink": measured(shrink)}
            shutil.rmtree(twin, ignore_errors=True)
            times["cp"] = measured(["cp", "-r", str(out), str(twin)])
            times["import"] = measured([sys.executable, "-c", "import torch, safetensors"])
            if run:  # the first warms the page cache
                for name, row in times.items():
                    rows[name].append(row)
        size = (out / "model.safetensors").stat().st_size
        largest = 250002 * 768 * 4
        result = {
            "output_mb": round(size / 1e6),
            "largest_tensor_mib": round(largest / 2**20),
            **{
                f"{name}_seconds": round(statistics.median(s for s, _ in row), 2)
                for name, row in rows.items()
            },
            "shrink_peak_mib": round(statistics.median(m for _, m in rows["shrink"])),
            "import_peak_mib": round(statistics.median(m for _, m in rows["import"])),
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
