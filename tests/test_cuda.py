"""The main job on a GPU. These need a CUDA device, and say so where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
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

from .helpers.models import make_model

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
FAST: dict[str, Any] = {"device": "cuda", "batch_size": 8, "learning_rate": 3e-3}


@pytest.mark.parametrize("bf16", [True, False])
def test_fine_tuning_and_distilling(
    encoder_dir: Path, text_data: Path, tmp_path: Path, bf16: bool
) -> None:
    options: dict[str, Any] = {"data": str(text_data), "bf16": bf16, **FAST}
    teacher = finetune(
        FinetuneConfig(
            model=str(encoder_dir), output_dir=tmp_path / "t", num_train_epochs=8, **options
        )
    )
    assert teacher.peak_memory_bytes > 0
    student = distill(
        DistillConfig(
            teacher=str(tmp_path / "t"),
            hidden_size=12,
            layers=2,
            output_dir=tmp_path / "s",
            num_train_epochs=2,
            **options,
        )
    )
    assert torch.isfinite(torch.tensor(student.development.score))


@pytest.mark.parametrize("cache", ["none", "all"])
def test_targets_made_ahead_and_kept(
    encoder_dir: Path, text_data: Path, tmp_path: Path, cache: str
) -> None:
    options: dict[str, Any] = {"data": str(text_data), **FAST}
    finetune(
        FinetuneConfig(
            model=str(encoder_dir), output_dir=tmp_path / "t", num_train_epochs=8, **options
        )
    )
    student = distill(
        DistillConfig(
            teacher=str(tmp_path / "t"),
            layers=2,
            output_dir=tmp_path / "s",
            num_train_epochs=8,
            tokens_per_batch=128,
            cache_teacher=cache,  # type: ignore[arg-type]
            **options,
        )
    )
    assert student.development.score > 0.5  # the majority class scores 0.17


def test_evaluation_agrees_with_the_cpu(
    tmp_path: Path, text_data: Path, xlmr_tokenizer: PreTrainedTokenizerFast
) -> None:
    make_model("xlm-roberta", "sequence").save_pretrained(tmp_path / "t")
    xlmr_tokenizer.save_pretrained(tmp_path / "t")
    scores = [
        evaluate(EvalConfig(model=str(tmp_path / "t"), data=str(text_data), device=device)).score
        for device in ("cpu", "cuda")
    ]
    assert scores[0] == scores[1]


def test_calibrating_agrees_with_the_cpu(
    tmp_path: Path, text_data: Path, xlmr_tokenizer: PreTrainedTokenizerFast
) -> None:
    make_model("xlm-roberta", "sequence").save_pretrained(tmp_path / "t")
    xlmr_tokenizer.save_pretrained(tmp_path / "t")
    errors = []
    for device in ("cpu", "cuda"):
        result = shrink(
            ShrinkConfig(
                model=str(tmp_path / "t"),
                init="calibrated",
                data=str(text_data),
                layers=2,
                hidden_size=12,
                device=device,
                output_dir=tmp_path / device,
            )
        )
        assert result.calibration is not None
        errors.append(result.calibration["relative_error"])
    assert errors[0] == pytest.approx(errors[1], rel=1e-2)
