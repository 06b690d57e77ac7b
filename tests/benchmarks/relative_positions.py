"""What a DeBERTa takes with the relative positions of its texts, and with all 512.

    python tests/benchmarks/relative_positions.py [--layers 6] [--width 384] [--heads 6] [--rounds 5]

A classifier of random weights with mDeBERTa's settings and 20,000 tokens, on one core, on random tokens. In torch a forward
pass and a step (forward and backward), as transformers has the model and as kdshrink loads it, in turns; in onnxruntime its
graph as exported, in fp32 and int8. Figures are medians in milliseconds, and how many times as fast the second is.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification, PreTrainedModel

from kdshrink.exporting.graph import write_graph
from kdshrink.exporting.quantization import Int8
from kdshrink.models.positions import cut_relative_positions

SHAPES = ((1, 12), (32, 24), (32, 64), (16, 128), (8, 256))


def make_model(layers: int, width: int, heads: int) -> PreTrainedModel:
    settings: dict[str, Any] = {
        "vocab_size": 20_000,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "relative_attention": True,
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "type_vocab_size": 0,
        "num_labels": 60,
    }
    torch.manual_seed(0)
    return DebertaV2ForSequenceClassification(DebertaV2Config(**settings))


def medians(sides: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Milliseconds of each side, which take turns; the first round is not counted."""
    taken: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds + 1):
        for side, seconds in zip(sides, taken, strict=True):
            began = time.perf_counter()
            side()
            seconds.append(time.perf_counter() - began)
    return [1000 * statistics.median(seconds[1:]) for seconds in taken]


def measure_torch(models: Sequence[PreTrainedModel], rounds: int) -> None:
    def forward(model: PreTrainedModel) -> None:
        with torch.no_grad():
            model.eval()(input_ids=ids, attention_mask=mask)

    def step(model: PreTrainedModel) -> None:
        model.zero_grad()
        model.train()(input_ids=ids, attention_mask=mask).logits.square().sum().backward()

    for batch, tokens in SHAPES:
        ids = torch.randint(5, 20_000, (batch, tokens))
        mask = torch.ones_like(ids)
        for what in (forward, step):
            all_512, present = medians([partial(what, model) for model in models], rounds)
            ratio = all_512 / present
            print(f"{batch} x {tokens} {what.__name__}: {all_512:.1f} {present:.1f} {ratio:.2f}")


def measure_onnx(model: PreTrainedModel, rounds: int) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        graphs = [Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"]
        write_graph(model.eval(), graphs[0])
        Int8(title="dynamic").write(graphs[0], graphs[1], [])
        sessions = [onnxruntime.InferenceSession(str(graph), options) for graph in graphs]
    for batch, tokens in SHAPES:
        ids = np.random.default_rng(0).integers(5, 20_000, (batch, tokens))
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        found = medians([partial(session.run, None, inputs) for session in sessions], rounds)
        print(f"{batch} x {tokens} onnxruntime: fp32 {found[0]:.1f} int8 {found[1]:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, usual in (("layers", 6), ("width", 384), ("heads", 6), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    given = parser.parse_args()
    torch.set_num_threads(1)
    whole = make_model(given.layers, given.width, given.heads)
    cut = copy.deepcopy(whole)
    cut_relative_positions(cut)
    measure_torch([whole, cut], given.rounds)
    measure_onnx(whole, given.rounds)


if __name__ == "__main__":
    main()
