"""Scores of untrained students, copied or sliced against calibrated, as a Markdown table.

    python tests/benchmarks/calibrated_start.py TEACHER --data massive --data-dir DIR \
        --seen ar,de,en,es,ru,zh-CN --unseen nl,pt-PT,sw,th --max-eval-samples 300 \
        6x384:copy 6x384 6x192:copy 6x192 6x192:ridge=0.01 6x384:samples=200,copies=0

A student is LAYERSxWIDTH, then what is not by default: `copy`, `samples=N` and `copies=SHARE` (as
--calibration-samples and --calibration-copies), `layers=2.4.8.12` (of the teacher's, instead of an even
choice), or a field of `kdshrink.calibration.sweep.Settings`. Text is that of the seen languages alone, unless
--text names others. Scores are the metric on the test split, all languages pooled; what is kept is the share
of the teacher's, agreement the share of answers that are the teacher's.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from kdshrink.calibration.calibrate import calibrate_student
from kdshrink.calibration.sweep import Settings
from kdshrink.calibration.texts import CalibrationData
from kdshrink.commands.inputs import data_request
from kdshrink.config.commands import ShrinkConfig
from kdshrink.data.load import load_data
from kdshrink.evaluation.evaluator import Evaluator, Predictions, make_evaluator
from kdshrink.models.devices import pick_device, to_device
from kdshrink.models.loading import load_tokenizer, load_weights
from kdshrink.models.source import find_model
from kdshrink.shrinking.layer_map import spread
from kdshrink.shrinking.plan import Shape
from kdshrink.shrinking.weights import shrink_source


@dataclass(frozen=True)
class Start:
    """A student as it was typed: `6x192:samples=500,ridge=0.01`."""

    typed: str
    layers: int
    width: int
    layer_map: str | None
    copied: bool
    samples: int | None
    copies: float | None
    multilingual: float | None
    settings: Settings

    @classmethod
    def parse(cls, typed: str) -> Start:
        shape, _, rest = typed.partition(":")
        layers, width = map(int, shape.split("x"))
        options = dict(part.partition("=")[::2] for part in rest.split(",") if part)
        copied = options.pop("copy", None) is not None
        samples = options.pop("samples", None)
        copies = options.pop("copies", None)
        multilingual = options.pop("multilingual", None)
        chosen = options.pop("layers", "").replace(".", ",") or None
        settings = Settings(**{name: float(value) for name, value in options.items()})
        return cls(
            typed,
            layers,
            width,
            chosen,
            copied,
            int(samples) if samples else None,
            float(copies) if copies else None,
            float(multilingual) if multilingual else None,
            settings,
        )


def make(start: Start, config: ShrinkConfig) -> tuple[PreTrainedModel, float]:
    """The student, and the seconds that it took to make."""
    source = find_model(config.model)
    depth = source.config["num_hidden_layers"]
    layer_map = start.layer_map or ",".join(map(str, spread(depth, start.layers)))
    shape = Shape(layer_map=layer_map, hidden_size=start.width)
    copies = config.calibration_copies if start.copies is None else start.copies
    sentences = (
        config.calibration_multilingual if start.multilingual is None else start.multilingual
    )
    data = load_data(data_request(config), ("train",), purpose="train")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        init = "copy" if start.copied else "calibrated"
        plan, _ = shrink_source(source, shape, folder, init=init)
        if not start.copied:
            texts = CalibrationData.sample(
                data,
                start.samples or config.calibration_samples,
                max_length=config.max_length,
                copies=copies,
                multilingual=sentences,
            )
            device = pick_device(config.device)
            calibrate_student(source, folder, plan, texts, device, settings=start.settings)
        seconds = time.perf_counter() - began
        return load_weights(find_model(name), source.task), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("teacher")
    parser.add_argument("starts", nargs="+", type=Start.parse)
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--seen", required=True)
    parser.add_argument("--unseen", required=True)
    parser.add_argument(
        "--text", help="languages of the text to calibrate on; the seen ones if not said"
    )
    parser.add_argument("--max-eval-samples", type=int, default=300)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    config = ShrinkConfig(
        model=options.teacher,
        init="calibrated",
        data=options.data,
        data_dir=options.data_dir,
        languages=tuple((options.text or options.seen).split(",")),
        max_length=options.max_length,
        device=options.device,
    )
    device = pick_device(options.device)
    source = find_model(options.teacher)
    assert source.task is not None
    teacher = to_device(load_weights(source, source.task), device)
    tokenizer = load_tokenizer(source)
    evaluators: dict[str, Evaluator] = {}
    for group, names in (("seen", options.seen), ("unseen", options.unseen)):
        wanted = replace(
            config, languages=tuple(names.split(",")), max_eval_samples=options.max_eval_samples
        )
        data = load_data(data_request(wanted), ("test",), purpose="evaluate")
        evaluators[group] = make_evaluator(
            data, "test", tokenizer, source, max_length=512, batch_size=64, device=device
        )
    answers: dict[str, Predictions] = {g: e.predict(teacher) for g, e in evaluators.items()}
    best = {g: e.score_predictions(answers[g], 1.0).score for g, e in evaluators.items()}
    print("| student | seen | unseen | kept, seen | kept, unseen | agreement | seconds |")
    print("|---|---|---|---|---|---|---|")
    print(f"| teacher | {best['seen']:.3f} | {best['unseen']:.3f} | | | | |", flush=True)
    for start in options.starts:
        student, seconds = make(start, config)
        to_device(student, device)
        found = {g: e.predict(student) for g, e in evaluators.items()}
        scores = {g: e.score_predictions(found[g], 1.0).score for g, e in evaluators.items()}
        agreement = [np.mean(found[g].classes == answers[g].classes) for g in evaluators]
        print(
            f"| {start.typed} | {scores['seen']:.3f} | {scores['unseen']:.3f} "
            f"| {scores['seen'] / best['seen']:.1%} | {scores['unseen'] / best['unseen']:.1%} "
            f"| {agreement[0]:.1%}, {agreement[1]:.1%} | {seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
