"""The main jobs on a GPU. These need a CUDA device, some of them two, and say so where there is none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedTokenizerFast

from kdshrink import (
    DistillConfig,
    EvalConfig,
    FinetuneConfig,
    ShrinkConfig,
    distill,
    evaluate,
    finetune,
    shrink,
)
from kdshrink.config.fields import LOSS_TERMS
from kdshrink.distillation.model import DistillationModel
from kdshrink.distillation.objective import Objective
from kdshrink.distillation.teacher import Teacher
from kdshrink.distillation.trainer import DistillationTrainer
from kdshrink.models.activations import Recorder
from kdshrink.models.devices import ON_GPU, to_device

from .helpers.logs import logged_losses
from .helpers.models import make_model, make_tokenizer

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
FAST: dict[str, Any] = {"device": "cuda", "batch_size": 8, "learning_rate": 3e-3}
OFF = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
CUDA = torch.device("cuda")
MIB = 1024**2


def saved(folder: Path, family: str, task: str | None, **changes: Any) -> str:
    make_model(family, task, **changes).save_pretrained(folder)
    make_tokenizer(family).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def good_teacher(encoder_dir: Path, text_data: Path, tmp_path: Path) -> str:
    """A teacher that knows its task."""
    result = finetune(
        FinetuneConfig(
            model=str(encoder_dir),
            data=str(text_data),
            output_dir=tmp_path / "t",
            num_train_epochs=40,
            dropout=0.0,
            **FAST,
        )
    )
    assert result.development.score > 0.9  # the majority class scores 0.17
    assert result.peak_memory_bytes > 0
    return str(tmp_path / "t")


@pytest.mark.parametrize("cache", ["none", "all"])
def test_a_student_learns_what_its_teacher_knows(
    good_teacher: str, text_data: Path, tmp_path: Path, cache: Any
) -> None:
    student = distill(
        DistillConfig(
            teacher=good_teacher,
            data=str(text_data),
            layers=2,
            output_dir=tmp_path / "s",
            num_train_epochs=40,
            tokens_per_batch=128,
            cache_teacher=cache,
            dropout=0.0,
            **FAST,
        )
    )
    assert student.development.score > 0.5


@pytest.mark.parametrize("task", ["sequence", "token"])
@pytest.mark.parametrize("family", ["xlm-roberta", "bert", "deberta-v2"])
@pytest.mark.parametrize(("bf16", "tolerance"), [(False, 1e-4), (True, 2e-2)])
def test_losses_are_those_of_the_cpu(
    text_data: Path,
    word_data: Path,
    tmp_path: Path,
    family: str,
    task: str,
    bf16: bool,
    tolerance: float,
) -> None:
    shared: dict[str, Any] = {
        "teacher": saved(tmp_path / "t", family, task, **OFF),
        "data": str(text_data if task == "sequence" else word_data),
        "layers": 2,
        "hidden_size": 12,
        "max_steps": 4,
        "batch_size": 8,
        "logging_steps": 1,
    }
    distill(DistillConfig(output_dir=tmp_path / "cpu", device="cpu", **shared))
    distill(DistillConfig(output_dir=tmp_path / "cuda", device="cuda", bf16=bf16, **shared))
    for one, other in zip(
        logged_losses(tmp_path / "cpu"), logged_losses(tmp_path / "cuda"), strict=True
    ):
        for term in ("loss", *LOSS_TERMS):
            assert other[term] == pytest.approx(one[term], rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("family", ["xlm-roberta", "deberta-v2"])
def test_a_step_waits_for_nothing(
    tmp_path: Path, text_data: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA itself raises where a step behind the first ones would make the host wait."""
    step = DistillationTrainer.training_step

    def step_without_waiting(self: DistillationTrainer, *args: Any, **options: Any) -> Any:
        if self.state.global_step < 4:
            return step(self, *args, **options)
        with waiting_raises():
            return step(self, *args, **options)

    monkeypatch.setattr(DistillationTrainer, "training_step", step_without_waiting)
    never = 10**6
    distill(
        DistillConfig(
            teacher=saved(tmp_path / "t", family, "sequence"),
            data=str(text_data),
            layers=2,
            max_steps=12,
            logging_steps=never,
            eval_steps=never,
            output_dir=tmp_path / "s",
            **FAST,
        )
    )


@contextmanager
def waiting_raises() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("length", [29, 32, 128])
def test_attention_runs_fused_and_gives_what_eager_does(length: int, padded: bool) -> None:
    """Heads of 64 channels, beside which the scores are computed."""
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "max_position_embeddings": 140}
    model = to_device(make_model("xlm-roberta", "sequence", **sizes), CUDA)
    ids = torch.randint(5, 500, (4, length), device="cuda")
    mask = torch.ones_like(ids)
    if padded:
        mask[1:, length // 2 :] = 0
        ids = ids.masked_fill(mask == 0, 1)
    reads: dict[str, Any] = {"hidden": True, "embedding": True, "attention": "scores"}
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as profiled:
        fused = Recorder(model, (1, 3), execution=ON_GPU, **reads)(ids, mask)
    eager = Recorder(model, (1, 3), **reads)(ids, mask)
    operations = {event.key for event in profiled.key_averages()}
    assert "aten::_scaled_dot_product_attention_math" not in operations
    torch.testing.assert_close(fused[0].logits, eager[0].logits, rtol=1e-3, atol=1e-3)
    there = (mask[:, None, :, None] * mask[:, None, None, :]).bool()
    for one, other in zip(fused[1].attention, eager[1].attention, strict=True):
        pairs = there.expand_as(one)
        torch.testing.assert_close(one[pairs], other[pairs], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("batch", "length", "limit"), [(64, 512, 30_000 * MIB), (256, 128, 20_000 * MIB)]
)
def test_memory_of_a_step(batch: int, length: int, limit: int) -> None:
    """Twelve layers of width 768 teach six: with what is kept for backward, it fits on a GPU of 40 GB."""
    sizes = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
    sizes |= {"max_position_embeddings": length + 2}
    teacher = make_model("xlm-roberta", "sequence", num_hidden_layers=12, **sizes)
    student = make_model("xlm-roberta", "sequence", num_hidden_layers=6, **sizes)
    reads: dict[str, Any] = {"hidden": True, "embedding": True, "attention": "scores"}
    teacher_recorder = Recorder(
        to_device(teacher, CUDA).bfloat16(),
        (2, 4, 6, 8, 10, 12),
        execution=ON_GPU,
        **reads,
    )
    learner = DistillationModel(
        student,
        Recorder(student, range(1, 7), execution=ON_GPU, **reads),
        Objective(dict.fromkeys(LOSS_TERMS, 1.0)),
        768,
        "sequence",
    ).cuda()
    ids = torch.randint(5, 500, (batch, length), device="cuda")
    mask, labels = torch.ones_like(ids), torch.zeros(batch, dtype=torch.int64, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    targets = Teacher(teacher_recorder, torch.arange(3, device="cuda")).targets(ids, mask)
    with torch.autocast("cuda", torch.bfloat16):
        terms = learner(ids, mask, targets, labels)
    torch.stack(list(terms.values())).sum().backward()
    assert torch.cuda.max_memory_allocated() < limit


def test_a_run_scores_as_evaluate_does(encoder_dir: Path, text_data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"data": str(text_data), "output_dir": tmp_path / "t", **FAST}
    trained = finetune(FinetuneConfig(model=str(encoder_dir), max_steps=5, bf16=True, **options))
    scored = evaluate(
        EvalConfig(
            model=str(tmp_path / "t"), data=str(text_data), split="validation", device="cuda"
        )
    )
    assert trained.development.score == scored.score


def test_evaluation_agrees_with_the_cpu(
    tmp_path: Path, text_data: Path, xlmr_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = saved(tmp_path / "t", "xlm-roberta", "sequence")
    scores = [
        evaluate(EvalConfig(model=model, data=str(text_data), device=device)).score
        for device in ("cpu", "cuda")
    ]
    assert scores[0] == pytest.approx(scores[1], abs=0.02)  # TF32 may decide a near tie otherwise


@pytest.mark.parametrize("width", [24, 768])
def test_calibrating_agrees_with_the_cpu(tmp_path: Path, text_data: Path, width: int) -> None:
    model = saved(tmp_path / "t", "xlm-roberta", "sequence", hidden_size=width)
    errors = []
    for device in ("cpu", "cuda"):
        result = shrink(
            ShrinkConfig(
                model=model,
                init="calibrated",
                data=str(text_data),
                layers=2,
                hidden_size=width // 2,
                device=device,
                output_dir=tmp_path / device,
            )
        )
        assert result.calibration is not None
        errors.append(result.calibration["relative_error"])
    assert errors[0] == pytest.approx(errors[1], rel=1e-2)


def start(processes: int, *typed: str) -> subprocess.Popen[str]:
    """`kdshrink distill typed…`, by torchrun where there are several processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "kdshrink", "distill"]
    return subprocess.Popen([*command, *typed], stderr=subprocess.PIPE, text=True)


def stopped_and_resumed(processes: int, teacher: str, data: Path, out: Path) -> None:
    """Send SIGTERM to one process of a run, and let it go on to its end."""
    typed = ["--teacher", teacher, "--data", str(data), "--layers", "2", "--device", "cuda"]
    typed += ["--max-steps", "300", "--logging-steps", "1", "-o", str(out)]
    running = start(processes, *typed)
    log = out / "checkpoints" / "train_log.jsonl"
    while not log.exists() or log.read_text().count("\n") < 5:
        assert running.poll() is None
        time.sleep(0.1)
    os.kill(running.pid, signal.SIGTERM)
    said = running.communicate(timeout=300)[1]
    assert running.returncode != 0
    assert list((out / "checkpoints").glob("checkpoint-*")), said
    resumed = start(processes, *typed, "--resume")
    said = resumed.communicate(timeout=600)[1]
    assert resumed.returncode == 0, said
    assert [line["step"] for line in logged_losses(out)] == list(range(1, 301))


def test_resuming_after_a_signal(tmp_path: Path, text_data: Path) -> None:
    teacher = saved(tmp_path / "t", "xlm-roberta", "sequence")
    stopped_and_resumed(1, teacher, text_data, tmp_path / "s")


@needs_two
def test_two_gpus_end_after_the_same_step(tmp_path: Path, text_data: Path) -> None:
    teacher = saved(tmp_path / "t", "xlm-roberta", "sequence")
    stopped_and_resumed(2, teacher, text_data, tmp_path / "s")


@needs_two
@pytest.mark.parametrize("more", [[], ["--shard-teacher"], ["--weight", "prediction=0"]])
def test_two_gpus_have_the_losses_of_one(tmp_path: Path, text_data: Path, more: list[str]) -> None:
    teacher = saved(tmp_path / "t", "xlm-roberta", "sequence", **OFF)
    typed = ["--teacher", teacher, "--data", str(text_data), "--layers", "2", "--no-bf16"]
    typed += ["--init", "from-teacher"]  # a teacher that is spread cannot be calibrated
    typed += ["--logging-steps", "1", "--num-train-epochs", "2", "--hidden-size", "12"]
    alone = [part for part in more if part != "--shard-teacher"]
    for name, processes, size, options in (("one", 1, "8", alone), ("two", 2, "4", more)):
        out = ["--batch-size", size, "-o", str(tmp_path / name)]
        ended = start(processes, *typed, *out, *options)
        said = ended.communicate(timeout=600)[1]
        assert ended.returncode == 0, said
    for one, two in zip(
        logged_losses(tmp_path / "one"), logged_losses(tmp_path / "two"), strict=True
    ):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)


@needs_two
def test_another_gpu_than_the_first(tmp_path: Path, text_data: Path) -> None:
    before = torch.cuda.memory_allocated(0)
    distill(
        DistillConfig(
            teacher=saved(tmp_path / "t", "xlm-roberta", "sequence"),
            data=str(text_data),
            layers=2,
            max_steps=4,
            output_dir=tmp_path / "s",
            **{**FAST, "device": "cuda:1"},
        )
    )
    assert torch.cuda.max_memory_allocated(1) > 0
    assert torch.cuda.memory_allocated(0) == before
