"""Training a compiled model: the losses of one that is not."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.utils import counters
from transformers import PreTrainedTokenizerFast

from kdshrink import DistillConfig, FinetuneConfig, distill, finetune
from kdshrink.data.batching import Batches
from kdshrink.data.encoding import Collator
from kdshrink.errors import UsageError
from kdshrink.models import devices
from kdshrink.models.compilation import bucket_widths, compile_in_place, length_buckets

from ..helpers.logs import logged
from ..helpers.models import make_model

TERMS = ("loss", "embedding", "hidden", "attention", "prediction", "task", "score")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def trained(job: str, teacher: Path, data: Path, out: Path, **options: Any) -> list[dict[str, Any]]:
    shared: dict[str, Any] = {
        "data": str(data),
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "batch_size": 16,
        "num_train_epochs": 2,
        "output_dir": out,
        "bf16": False,
        **options,
    }
    if job == "finetune":
        finetune(FinetuneConfig(model=str(teacher), **shared))
    else:
        shape = {"hidden_size": 12, "layers": 2}
        distill(DistillConfig(teacher=str(teacher), multilingual=0, **shape, **shared))
    return logged(out)


@pytest.fixture
def calm_teacher(
    request: pytest.FixtureRequest, tmp_path: Path, xlmr_tokenizer: PreTrainedTokenizerFast
) -> Path:
    """A teacher of two layers without dropout."""
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    family, task = request.param
    model = make_model(family, task, num_hidden_layers=2, **off)
    model.save_pretrained(tmp_path / "t")
    xlmr_tokenizer.save_pretrained(tmp_path / "t")
    return tmp_path / "t"


def compare(job: str, teacher: Path, data: Path, folder: Path, device: str) -> None:
    usual = trained(job, teacher, data, folder / "usual", device=device)
    assert not counters["stats"]
    compiled = trained(job, teacher, data, folder / "c", device=device, torch_compile=True)
    graphs = counters["stats"]["unique_graphs"]
    assert 0 < graphs <= 8
    assert not counters["graph_break"]
    assert len(usual) == len(compiled)
    for one, other in zip(usual, compiled, strict=True):
        for term in set(TERMS) & one.keys():
            assert other[term] == pytest.approx(one[term], rel=1e-5, abs=1e-5)
    weights = [load_file(folder / name / "model.safetensors") for name in ("usual", "c")]
    assert weights[0].keys() == weights[1].keys()


XLMR, WORDS = ("xlm-roberta", "sequence"), ("xlm-roberta", "token")


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    ("calm_teacher", "job"),
    [(XLMR, "finetune"), (XLMR, "distill"), (WORDS, "distill")],
    indirect=["calm_teacher"],
)
def test_losses_are_those_of_the_model_as_it_is(
    calm_teacher: Path, text_data: Path, word_data: Path, tmp_path: Path, job: str
) -> None:
    words = "Token" in (calm_teacher / "config.json").read_text()
    compare(job, calm_teacher, word_data if words else text_data, tmp_path, "cpu")


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("calm_teacher", [XLMR], indirect=True)
def test_the_teacher_is_compiled_where_it_runs_on_the_students_batches(
    calm_teacher: Path, text_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_a_gpu = replace(devices.ON_GPU, splits_batches=False, multiple=1)
    monkeypatch.setattr(devices, "ON_CPU", as_on_a_gpu)
    compiled: list[torch.nn.Module] = []
    compile_module = torch.nn.Module.compile

    def compile_noted(self: torch.nn.Module, *args: Any, **options: Any) -> None:
        compiled.append(self)
        compile_module(self, *args, **options)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_noted)
    compare("distill", calm_teacher, text_data, tmp_path, "cpu")
    assert len(compiled) == 3


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize(
    ("calm_teacher", "job"), [(XLMR, "finetune"), (XLMR, "distill")], indirect=["calm_teacher"]
)
def test_losses_on_a_gpu(calm_teacher: Path, text_data: Path, tmp_path: Path, job: str) -> None:
    compare(job, calm_teacher, text_data, tmp_path, "cuda")


def test_buckets_hold_every_length() -> None:
    lengths = np.array([3, 4, 5, 9, 10, 17, 18, 43])
    assert length_buckets(lengths) == (8, 16, 24, 43)
    assert length_buckets(np.array([5, 5, 5])) == (5,)
    collate = Collator(1, buckets=(8, 16))
    for length, width in ((3, 8), (8, 8), (9, 16), (20, 20)):
        batch = collate([{"input_ids": [4] * length}, {"input_ids": [4]}])
        assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, width)
        assert batch["attention_mask"].sum() == length + 1


@pytest.mark.parametrize("calm_teacher", [XLMR], indirect=True)
def test_without_a_compiler(
    calm_teacher: Path, text_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match="no-such-compiler"):
        trained(
            "finetune", calm_teacher, text_data, tmp_path / "o", device="cpu", torch_compile=True
        )


def test_batches_filled_by_tokens_have_few_shapes() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 2000)
    buckets = np.array(length_buckets(lengths))

    def shapes(batches: Batches) -> set[tuple[int, int]]:
        rows = [rows for epoch in range(2) for rows in batches.of_epoch(epoch)]
        padded = [buckets[np.searchsorted(buckets, lengths[r].max())] for r in rows]
        return {(len(r), int(width)) for r, width in zip(rows, padded, strict=True)}

    few = Batches(lengths, size=1, tokens=512, widths=bucket_widths(lengths))
    assert all(size * width <= 512 for size, width in shapes(few))
    assert len(shapes(few)) <= 2 * len(buckets) < len(shapes(Batches(lengths, size=1, tokens=512)))


def test_what_a_gpu_needs_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device = torch.device("cuda")
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(UsageError, match="Triton"):
        compile_in_place(torch.nn.Linear(2, 2), device)
    monkeypatch.setitem(sys.modules, "triton", shutil)  # any module that is installed
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="no gcc or clang"):
        compile_in_place(torch.nn.Linear(2, 2), device)
