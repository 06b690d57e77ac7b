"""A teacher spread over two processes: the same targets and losses, half of the weights in each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from kdshrink import DistillConfig, FinetuneConfig, distill, finetune
from kdshrink.errors import UsageError

from ..helpers.logs import logged_losses
from ..helpers.models import make_model

TARGETS = """
import torch
from datasets import Dataset
from kdshrink.data.batching import Batches
from kdshrink import EvalConfig
from kdshrink.data.encoding import Collator, EncodedArrays
from kdshrink.models.loading import load_classifier
from kdshrink.models.source import find_model
from kdshrink.models.activations import Recorder
from kdshrink.models.sharding import shard
from kdshrink.distillation.cache import TargetCache, TargetShape
from kdshrink.distillation.targets import GroupedTargets
from kdshrink.distillation.teacher import Teacher

torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
generator = torch.Generator().manual_seed(0)
lengths = torch.randint(3, 30, (37,), generator=generator).tolist()
ids = [torch.randint(3, 300, (n,), generator=generator).tolist() for n in lengths]
examples = EncodedArrays(
    Dataset.from_dict({"input_ids": ids, "length": lengths}), Collator(1)
)


def source(sharded, cache=None):
    model = load_classifier(find_model(TEACHER), "sequence").model.eval()
    whole = sum(p.numel() for p in model.parameters())
    if sharded:
        shard(model, torch.device("cpu"))
    recorder = Recorder(model, [2, 4], hidden=True, attention="scores", embedding=True)
    batches = Batches(lengths, size=4, by_length=False, rank=rank, world=2)
    made = GroupedTargets(Teacher(recorder, torch.arange(3)), batches, examples, cache)
    made.positions = 20  # so that the processes have other numbers of forwards
    return made, model, whole


cache = None
if CACHED:
    shape = TargetShape(3, 24, 2, 4, 3, False, torch.float32)
    cache = TargetCache(FOLDER / str(rank), {}, torch.tensor(lengths).numpy(), shape)
sharded, model, whole = source(True, cache)
usual, *_ = source(False)
for epoch in range(3):
    if CACHED and epoch == 2 and rank:
        cache.done[::5] = 0  # so that one process finds what the other has to make
    for index in range(3 if epoch == 1 else 0, len(sharded.batches)):
        inputs = examples.inputs(sharded.planned(epoch)[index])
        found, right = (made.of_batch(epoch, index, **inputs) for made in (sharded, usual))
        pairs = [(found.logits, right.logits), (found.activations.embedding, right.activations.embedding)]
        pairs += zip(found.activations.hidden, right.activations.hidden, strict=True)
        pairs += zip(found.activations.attention, right.activations.attention, strict=True)
        assert len(pairs) == 6
        for one, other in pairs:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        held = sum(p.to_local().numel() for p in model.parameters())
        assert held <= 0.55 * whole, held / whole
torch.distributed.destroy_process_group()
"""

LOSSES = """
import torch
torch.set_num_threads(1)
from pathlib import Path, PosixPath
from kdshrink import *
for config in CONFIGS:
    distill(config)
assert torch.distributed.get_world_size() == 2
"""


KEYS = {"loss", "embedding", "hidden", "attention", "prediction", "task", "score"}


def run_two(script: Path, text: str) -> None:
    script.write_text(text)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    subprocess.run(
        [*launcher, "--nproc_per_node", "2", str(script)],
        check=True,
        timeout=400,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture
def teacher_dir(tmp_path: Path, xlmr_tokenizer: PreTrainedTokenizerFast) -> Path:
    make_model("xlm-roberta", "sequence").save_pretrained(tmp_path / "teacher")
    xlmr_tokenizer.save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True])
def test_targets_where_processes_have_other_numbers_of_forwards(
    teacher_dir: Path, tmp_path: Path, cached: bool
) -> None:
    head = f"from pathlib import Path\nTEACHER, CACHED = {str(teacher_dir)!r}, {cached}\n"
    folder = tmp_path / "caches"
    folder.mkdir()
    run_two(tmp_path / "script.py", f"{head}FOLDER = Path({str(folder)!r})\n{TARGETS}")


@pytest.mark.slow
def test_losses_are_those_of_the_whole_teacher(
    teacher_dir: Path, text_data: Path, tmp_path: Path
) -> None:
    unlabelled_data = tmp_path / "texts"
    for path in text_data.glob("*/*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        copy = unlabelled_data / path.relative_to(text_data)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in lines))

    def config(name: str, data: Path = text_data, **options: Any) -> DistillConfig:
        return DistillConfig(
            teacher=str(teacher_dir),
            init="from-teacher",
            data=str(data),
            hidden_size=12,
            batch_size=4,
            device="cpu",
            learning_rate=1e-3,
            logging_steps=1,
            num_train_epochs=2,
            output_dir=tmp_path / name,
            **options,
        )

    configs = [
        config("whole"),
        config("sharded", shard_teacher=True),
        config("uncached", shard_teacher=True, cache_teacher="none"),
        config("unlabelled", unlabelled_data, shard_teacher=True, weights={"task": 0}),
    ]
    run_two(tmp_path / "script.py", LOSSES.replace("CONFIGS", repr(configs)))
    whole, sharded, uncached, unlabelled = (
        logged_losses(tmp_path / name) for name in ("whole", "sharded", "uncached", "unlabelled")
    )
    assert len(whole) == len(sharded) == len(uncached) == len(unlabelled) > 12
    for one, other in zip(whole, sharded, strict=True):
        assert one.keys() == other.keys()
        for key in KEYS & one.keys():
            assert other[key] == pytest.approx(one[key], rel=1e-6, abs=1e-6)
    for one, other in zip(whole[:6], uncached[:6], strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-6, abs=1e-6)


def test_a_comparison_needs_the_teacher_whole() -> None:
    assert DistillConfig(teacher="t", data="d", shard_teacher=True).shard_teacher
    with pytest.raises(UsageError, match="--compare"):
        DistillConfig(teacher="t", data="d", shard_teacher=True, compare=True)


def test_one_process_has_nothing_to_share(
    teacher_dir: Path, text_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="torchrun"):
        distill(
            DistillConfig(
                teacher=str(teacher_dir),
                data=str(text_data),
                device="cpu",
                shard_teacher=True,
                output_dir=tmp_path / "out",
            )
        )


def test_training_is_not_sharded(
    encoder_dir: Path, text_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UsageError, match="torchrun"):
        finetune(
            FinetuneConfig(
                model=str(encoder_dir), data=str(text_data), device="cpu", output_dir=tmp_path / "o"
            )
        )
