"""The teacher's targets: made in groups, kept on disk, and shared out over batches and processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from kdshrink import DistillConfig, FinetuneConfig, distill, finetune
from kdshrink.data.batching import Batches
from kdshrink.data.encoding import Collator, EncodedArrays
from kdshrink.distillation.cache import ExampleTargets, TargetCache, TargetShape
from kdshrink.distillation.targets import (
    BatchTargets,
    GroupedTargets,
    TargetLoader,
    check_cache_mode,
    open_cache,
)
from kdshrink.distillation.teacher import Teacher, join_targets, split_targets
from kdshrink.errors import OutputError, UsageError
from kdshrink.models.activations import Recorder
from kdshrink.models.devices import ON_GPU

from ..helpers.logs import logged_losses
from ..helpers.models import make_model

LENGTHS = np.random.default_rng(1).integers(3, 20, 50)
SHAPE = TargetShape(
    states=2, width=3, attention=1, heads=2, classes=4, token_logits=True, dtype=torch.float32
)


@pytest.fixture(scope="module")
def encoded() -> Dataset:
    rng = np.random.default_rng(2)
    ids = [[0, *rng.integers(5, 500, n - 2).tolist(), 2] for n in LENGTHS]
    return Dataset.from_dict({"input_ids": ids, "length": LENGTHS.astype(np.int32)})


def make_teacher(family: str, task: str, **reads: Any) -> Teacher:
    wanted: dict[str, Any] = {"hidden": True, "embedding": True, "attention": "scores"}
    model = make_model(family, task)
    count = model.config.num_labels
    return Teacher(Recorder(model, (2, 4), **{**wanted, **reads}), torch.arange(count).flip(0))


def batch_of(encoded: Dataset, rows: list[int]) -> dict[str, torch.Tensor]:
    batch = Collator(1)(encoded.select_columns(["input_ids"]).__getitems__(rows))
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("task", ["sequence", "token"])
@pytest.mark.parametrize("family", ["xlm-roberta", "deberta-v2"])
@pytest.mark.parametrize("reads", [{}, {"hidden": False}, {"embedding": False, "attention": None}])
@pytest.mark.parametrize("grouped", [True, False])
def test_targets_are_those_of_the_batch(
    encoded: Dataset, tmp_path: Path, family: str, task: str, reads: dict[str, Any], grouped: bool
) -> None:
    pad = 1 if family == "xlm-roberta" else 0
    teacher = make_teacher(family, task, **reads)
    batches = Batches(LENGTHS, size=8, by_length=False)
    cache = open_cache(
        "all",
        teacher,
        tmp_path,
        encoded,
        tmp_path,
        token_logits=task == "token",
        epochs=2,
    )
    source: TargetLoader = BatchTargets(teacher, batches, cache)
    if grouped:
        examples = EncodedArrays(encoded, Collator(pad))
        source = GroupedTargets(teacher, batches, examples, cache, group=3)
    for epoch in range(2):  # made in the first, read in the second
        for index, rows in enumerate(batches.of_epoch(epoch)):
            batch = Collator(pad)([encoded[int(row)] for row in rows])
            mask = batch["attention_mask"].bool()
            expected = teacher.targets(batch["input_ids"], batch["attention_mask"])
            got = source.of_batch(epoch, index, batch["input_ids"], batch["attention_mask"])
            assert got.centred == expected.centred
            assert (got.activations.embedding is None) == (expected.activations.embedding is None)
            pairs = [(got.logits, expected.logits)]
            pairs += [(got.activations.embedding, expected.activations.embedding)]
            pairs += zip(got.activations.hidden, expected.activations.hidden, strict=True)
            for found, target in pairs:
                if target is not None:
                    real = mask if target.dim() == 3 else slice(None)
                    torch.testing.assert_close(found[real], target[real], rtol=1e-4, atol=1e-5)
            square = (mask[:, :, None] & mask[:, None, :])[:, None]
            for found, target in zip(
                got.activations.attention, expected.activations.attention, strict=True
            ):
                wanted = square.expand_as(target)
                torch.testing.assert_close(found[wanted], target[wanted], rtol=1e-4, atol=1e-5)
    assert cache is not None
    assert cache.has(range(50))
    assert source.first_bad is None


def test_groups_are_made_whole_from_wherever_they_are_entered(encoded: Dataset) -> None:
    teacher = make_teacher("xlm-roberta", "sequence")
    batches = Batches(LENGTHS, size=4)

    def logits(indices: list[int]) -> list[torch.Tensor]:
        examples = EncodedArrays(encoded, Collator(1))
        source = GroupedTargets(teacher, batches, examples, group=4)
        inputs = [examples.inputs(batches.of_epoch(0)[index]) for index in indices]
        found = [
            source.of_batch(0, i, **one).logits for i, one in zip(indices, inputs, strict=True)
        ]
        return [one for one in found if one is not None]

    assert all(map(torch.equal, logits([0, 1, 2, 3, 4, 5, 6])[5:], logits([5, 6])))


def test_groups_take_no_more_than_so_many_bytes(encoded: Dataset) -> None:
    teacher = make_teacher("xlm-roberta", "sequence")
    batches = Batches(LENGTHS, size=4)
    examples = EncodedArrays(encoded, Collator(1))
    seen: list[int] = []
    teacher.recorder.model.register_forward_pre_hook(
        lambda _, args, inputs: seen.append(len(inputs["input_ids"])), with_kwargs=True
    )
    plan = batches.of_epoch(0)
    for limit, group in ((10**9, plan[4:8]), (1, plan[5:6])):
        seen.clear()
        source = GroupedTargets(teacher, batches, examples, group=4, group_bytes=limit)
        source.of_batch(0, 5, **examples.inputs(plan[5]))
        assert sum(seen) == sum(map(len, group))


@pytest.mark.parametrize("grouped", [True, False])
def test_an_example_with_no_finite_answer_is_named(encoded: Dataset, grouped: bool) -> None:
    teacher = make_teacher("xlm-roberta", "sequence")
    bad, rare = 17, 499
    table = encoded.map(
        lambda one, row: {"input_ids": [*one["input_ids"][:-1], rare if row == bad else 3]},
        with_indices=True,
    )
    with torch.no_grad():
        teacher.recorder.model.get_input_embeddings().weight[rare] = torch.nan
    batches = Batches(LENGTHS, size=8)
    examples = EncodedArrays(table, Collator(1))
    source: TargetLoader = BatchTargets(teacher, batches)
    if grouped:
        source = GroupedTargets(teacher, batches, examples)
    for epoch in range(2):
        for index, rows in enumerate(batches.of_epoch(epoch)):
            source.of_batch(epoch, index, **examples.inputs(rows))
    assert source.first_bad == bad


def test_a_gpu_keeps_no_activations(encoded: Dataset, tmp_path: Path) -> None:
    def opened(mode: Any, **reads: Any) -> TargetCache | None:
        teacher = make_teacher("xlm-roberta", "sequence", execution=ON_GPU, **reads)
        folder = tmp_path / f"{mode}-{len(reads)}"
        folder.mkdir()
        return open_cache(mode, teacher, tmp_path, encoded, folder, token_logits=False, epochs=3)

    assert opened("auto") is None
    assert opened("auto", hidden=False, embedding=False, attention=None) is not None
    assert opened("all") is not None


def test_machines_share_no_cache(
    encoded: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_cache_mode("all")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="several machines"):
        check_cache_mode("all")
    check_cache_mode("auto")
    teacher = make_teacher("xlm-roberta", "sequence")
    options: Any = {"token_logits": False, "epochs": 3}
    assert open_cache("auto", teacher, tmp_path, encoded, tmp_path, **options) is None


def test_splitting_and_joining_are_inverse(encoded: Dataset) -> None:
    rows = [3, 17, 29]
    targets = make_teacher("xlm-roberta", "token").targets(**batch_of(encoded, rows))
    lengths = LENGTHS[rows].tolist()
    parts = split_targets(targets, lengths, torch.float32)
    assert [part.states.shape[1] for part in parts if part.states is not None] == lengths
    joined = join_targets(parts, embedding=True, centred=False, device=torch.device("cpu"))
    again = split_targets(joined, lengths, torch.float32)
    for one, other in zip(parts, again, strict=True):
        for name in ("states", "attention", "logits"):
            assert torch.equal(getattr(one, name), getattr(other, name))


def example(length: int, seed: int) -> ExampleTargets:
    torch.manual_seed(seed)
    shapes = SHAPE.shapes(length)
    return ExampleTargets(**{name: torch.randn(shape) for name, shape in shapes.items()})


def test_a_cache_keeps_what_was_written_and_nothing_else(tmp_path: Path) -> None:
    lengths = np.array([4, 7, 2])
    cache = TargetCache(tmp_path / "c", {"teacher": "a"}, lengths, SHAPE)
    assert sum(f.stat().st_size for f in (tmp_path / "c").glob("*.bin")) == (
        SHAPE.bytes(lengths) + 3
    )
    cache.write([2, 0], [example(2, 1), example(4, 2)])
    again = TargetCache(tmp_path / "c", {"teacher": "a"}, lengths, SHAPE)
    assert again.has([0, 2])
    assert not again.has([0, 1])
    for row, seed in ((0, 2), (2, 1)):
        (got,), wanted = again.read([row]), example(int(lengths[row]), seed)
        assert all(
            torch.equal(getattr(got, n), getattr(wanted, n))
            for n in ("states", "attention", "logits")
        )
    other = TargetCache(tmp_path / "c", {"teacher": "b"}, lengths, SHAPE)
    assert not other.has([0])


def test_a_cache_that_the_disk_has_no_room_for(tmp_path: Path) -> None:
    huge = np.full(10**6, 512)
    shape = TargetShape(12, 10**5, 12, 16, 60, False, torch.float32)
    with pytest.raises(OutputError, match="--cache-teacher none"):
        TargetCache(tmp_path / "c", {}, huge, shape)


def distilled(teacher: Path, data: Path, out: Path, **options: Any) -> list[dict[str, Any]]:
    distill(
        DistillConfig(
            teacher=str(teacher),
            data=str(data),
            output_dir=out,
            device="cpu",
            learning_rate=1e-3,
            logging_steps=1,
            num_train_epochs=3,
            **options,
        )
    )
    lines = map(json.loads, (out / "train_log.jsonl").read_text().splitlines())
    return [line for line in lines if "loss" in line]


@pytest.fixture
def calm_teacher(tmp_path: Path, xlmr_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A teacher without dropout."""
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    make_model("xlm-roberta", "sequence", **off).save_pretrained(tmp_path / "t")
    xlmr_tokenizer.save_pretrained(tmp_path / "t")
    return tmp_path / "t"


def test_caching_changes_no_bit(calm_teacher: Path, text_data: Path, tmp_path: Path) -> None:
    for cache in ("none", "all"):
        distilled(calm_teacher, text_data, tmp_path / cache, batch_size=8, cache_teacher=cache)
    # In the second epoch other examples share a forward, so that sums round differently.
    none, cached = (load_file(tmp_path / c / "model.safetensors") for c in ("none", "all"))
    for name, value in none.items():
        torch.testing.assert_close(cached[name], value, rtol=1e-4, atol=1e-4)


TERMS = ("loss", "embedding", "hidden", "attention", "prediction", "task")


@pytest.mark.parametrize("task", ["sequence", "token"])
def test_accumulated_batches_equal_a_larger_one(
    calm_teacher: Path,
    text_data: Path,
    word_data: Path,
    tmp_path: Path,
    task: str,
    xlmr_tokenizer: PreTrainedTokenizerFast,
) -> None:
    teacher, data = calm_teacher, text_data
    if task == "token":
        off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        teacher, data = tmp_path / "words", word_data
        make_model("xlm-roberta", "token", **off).save_pretrained(teacher)
        xlmr_tokenizer.save_pretrained(teacher)
    options: dict[str, Any] = {"batches": "random", "hidden_size": 12}
    large = distilled(teacher, data, tmp_path / "large", batch_size=8, **options)
    small = distilled(
        teacher, data, tmp_path / "small", batch_size=4, gradient_accumulation_steps=2, **options
    )
    assert len(large) == len(small) > 10
    for one, other in zip(large, small, strict=True):
        assert [one[t] for t in TERMS] == pytest.approx([other[t] for t in TERMS], rel=2e-5)


def test_logits_alone_cannot_be_kept_where_more_is_matched() -> None:
    with pytest.raises(UsageError, match="--weight hidden=0"):
        DistillConfig(teacher="t", data="d", cache_teacher="logits")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "fitting"), [("distill", 4), ("distill", 3), ("finetune", 4), ("finetune", 3)]
)
def test_two_processes_have_the_losses_of_one(
    calm_teacher: Path, text_data: Path, tmp_path: Path, job: str, fitting: int
) -> None:
    """Global batches of 8: in one process, and in two of 4 each, by torchrun; whole, and in two parts each."""
    options: dict[str, Any] = {
        "data": str(text_data),
        "device": "cpu",
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "num_train_epochs": 3,
    }

    def make_config(out: Path, size: int) -> Any:
        if job == "finetune":
            return FinetuneConfig(
                model=str(calm_teacher), batch_size=size, output_dir=out, **options
            )
        return DistillConfig(
            teacher=str(calm_teacher),
            hidden_size=12,
            multilingual=0,  # with them two processes leave out a last batch of one example
            batch_size=size,
            output_dir=out,
            **options,
        )

    (finetune if job == "finetune" else distill)(make_config(tmp_path / "one", 8))
    script = tmp_path / "script.py"
    script.write_text(
        "import torch; torch.set_num_threads(1)\n"
        "from pathlib import Path, PosixPath\n"
        "from importlib import import_module\n"
        "from kdshrink import *\n"
        "from kdshrink.training.memory import BatchMemory\n"
        f"command = import_module('kdshrink.commands.{job}')\n"
        f"command.batch_memory = lambda *_: BatchMemory((1.0,), {fitting})\n"
        f"{job}({make_config(tmp_path / 'two', 4)!r})\n"
        "assert torch.distributed.get_world_size() == 2\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    subprocess.run(
        [*launcher, "--standalone", str(script)],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    one, two = (logged_losses(tmp_path / name) for name in ("one", "two"))
    assert len(one) == len(two) == 18
    for first, second in zip(one, two, strict=True):
        for term in TERMS:
            if term in first:
                assert second[term] == pytest.approx(first[term], rel=1e-5, abs=1e-5)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()


@pytest.mark.slow
def test_processes_end_after_the_same_step_when_one_is_told_to(
    calm_teacher: Path, text_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    typed = ["distill", "--teacher", str(calm_teacher), "--data", str(text_data), "--device", "cpu"]
    typed += ["--max-steps", "60", "--logging-steps", "1", "-o", str(out)]

    def start(*more: str) -> list[subprocess.Popen[str]]:
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29519"}
        return [
            subprocess.Popen(
                [sys.executable, "-m", "kdshrink", *typed, *more],
                env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in "01"
        ]

    processes = start()
    log = out / "checkpoints" / "train_log.jsonl"
    while not log.exists() or log.read_text().count("\n") < 5:
        assert processes[0].poll() is None
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [143, 143], said
    (checkpoint,) = (out / "checkpoints").glob("checkpoint-*")
    assert f"{checkpoint.name}." in said[0]
    step = json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]
    assert 2 <= step < 60

    resumed = start("--resume")
    said = [process.communicate(timeout=120)[1] for process in resumed]
    assert [process.returncode for process in resumed] == [0, 0], said
