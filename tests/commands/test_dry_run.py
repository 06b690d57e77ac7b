"""--dry-run: what it tells is what the command then does, its errors are the command's, and nothing is written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from kdshrink import (
    CompareConfig,
    DistillConfig,
    EvalConfig,
    ExportConfig,
    FinetuneConfig,
    PushConfig,
    ReproduceConfig,
    ShrinkConfig,
    ZeroShotConfig,
    compare,
    distill,
    dry_run,
    evaluate,
    export,
    finetune,
    reproduce,
    shrink,
    zero_shot,
)
from kdshrink.errors import OutputError, TrainingError, UsageError
from kdshrink.output import open_output
from kdshrink.training.checkpoints import last_checkpoint

from ..helpers.hub import READER, Desk, Hub
from ..helpers.logs import logged
from ..helpers.models import make_model
from ..helpers.processes import die_in_step
from ..helpers.runner import run

FAST: dict[str, Any] = {"device": "cpu", "batch_size": 8, "learning_rate": 3e-3, "logging_steps": 1}
Tree = dict[str, tuple[int, int]]


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of data and a folder for temporary files of the test's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


def tree(folder: Path) -> Tree:
    """Size and time of change of all that is in a folder, but for what datasets removes at exit."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if "hf_datasets-" not in path.as_posix() and path.name != "temporary"
    }


@pytest.fixture
def planned(tmp_path: Path) -> Callable[[Any], dict[str, Any]]:
    """The plan of a config, for which nothing was written."""

    def plan_of(config: Any) -> dict[str, Any]:
        before = tree(tmp_path)
        plan = dry_run(config).to_dict()
        assert tree(tmp_path) == before
        return json.loads(json.dumps(plan, allow_nan=False))

    return plan_of


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "kdshrink.json").read_text())


def sizes_of(model: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in model.items() if name not in ("role", "name")}


@pytest.fixture
def teacher(tmp_path: Path, xlmr_tokenizer: PreTrainedTokenizerFast) -> Path:
    folder = tmp_path / "teacher"
    make_model("xlm-roberta", "sequence").save_pretrained(folder)
    xlmr_tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {"num_train_epochs": 1.5},
        {"max_steps": 3, "tokens_per_batch": 40, "warmup_steps": 2},
        {"num_train_epochs": 1, "gradient_accumulation_steps": 4, "languages": ("de",)},
    ],
)
def test_finetune_does_what_was_planned(
    options: dict[str, Any],
    planned: Callable[[Any], dict[str, Any]],
    encoder_dir: Path,
    text_data: Path,
    tmp_path: Path,
) -> None:
    config = FinetuneConfig(
        model=str(encoder_dir), data=str(text_data), output_dir=tmp_path / "o", **options, **FAST
    )
    plan = planned(config)
    finetune(config)
    record = record_of(tmp_path / "o")
    check_training(plan, record, tmp_path / "o")
    assert plan["training"]["batch_size"] == (None if "tokens_per_batch" in options else 8)
    assert plan["training"]["gradient_accumulation_steps"] == config.gradient_accumulation_steps
    assert plan["data"][0]["languages"] == record["training_languages"]


def check_training(plan: dict[str, Any], record: dict[str, Any], output: Path) -> None:
    """Check that a plan is of the run that left this record."""
    training, model = plan["training"], plan["models"][-1]
    assert training["steps"] == record["results"]["steps"]
    assert plan["data"][0]["examples"] == record["data"]["examples"]
    assert sizes_of(model) == record["sizes"]["this model"]
    log = logged(output)
    epochs = [line["epoch"] for line in log if line["step"] == training["steps"]]
    assert epochs[0] == pytest.approx(training["epochs"], abs=0.02)
    rates = {line["step"]: line["learning_rate"] for line in log if "learning_rate" in line}
    assert rates[training["warmup_steps"] + 1] == pytest.approx(training["learning_rate"])
    tensors = load_file(output / "model.safetensors").values()
    assert plan["disk_bytes"]["parts"]["the result"] == sum(tensor.nbytes for tensor in tensors)
    assert plan["seconds"]["total"] > 0


@pytest.mark.parametrize(
    "options",
    [
        {"init": "from-teacher", "layers": 2, "hidden_size": 12},
        {"layers": 2, "num_train_epochs": 2, "cache_teacher": "all"},
        {"init": "from-scratch", "recipe": "paper", "max_steps": 5},
    ],
)
def test_distill_does_what_was_planned(
    options: dict[str, Any],
    planned: Callable[[Any], dict[str, Any]],
    teacher: Path,
    text_data: Path,
    tmp_path: Path,
) -> None:
    more = tmp_path / "more.txt"
    more.write_text("wetter und musik\nel tiempo\n" * 12)
    options = {"num_train_epochs": 1, **FAST, **options}
    del options["learning_rate"]  # the recipe decides it
    config = DistillConfig(
        teacher=str(teacher),
        data=str(text_data),
        unlabelled=str(more),
        calibration_multilingual=0,
        output_dir=tmp_path / "o",
        **options,
    )
    plan = planned(config)
    distill(config)
    record = record_of(tmp_path / "o")
    check_training(plan, record, tmp_path / "o")
    assert sizes_of(plan["models"][0]) == record["sizes"]["the teacher"]
    assert plan["models"][1]["name"] == record["start"]
    assert plan["data"][1]["option"] == "--unlabelled"
    assert plan["data"][1]["examples"] == record["unlabelled"]["examples"]
    # On 48 labelled texts and 24 others.
    calibrated = any(
        note.startswith("It is calibrated first, on 72 texts") for note in plan["notes"]
    )
    assert calibrated == ("calibration" in record) == ("init" not in options)
    cached = "teacher's targets" in plan["disk_bytes"]["parts"]
    assert cached == ("cache_teacher" in options)


@pytest.mark.parametrize(
    "options",
    [
        {"layers": 2, "hidden_size": 12},
        {"init": "scratch", "vocab_from": "DATA"},
        {"init": "calibrated", "layers": 3, "data": "DATA", "calibration_multilingual": 0},
    ],
)
def test_shrink_does_what_was_planned(
    options: dict[str, Any],
    planned: Callable[[Any], dict[str, Any]],
    teacher: Path,
    text_data: Path,
    tmp_path: Path,
) -> None:
    given = {name: str(text_data) if v == "DATA" else v for name, v in options.items()}
    config = ShrinkConfig(model=str(teacher), output_dir=tmp_path / "o", **given)
    plan = planned(config)
    result = shrink(config).to_dict()
    for when, model in zip(("before", "after"), plan["models"], strict=True):
        assert model["parameters"] == result[f"parameters_{when}"]
        assert model["bytes"] == result[f"bytes_{when}"]
    assert plan["models"][1]["layers"] == len(result["layers"])
    assert plan["models"][1]["hidden_size"] == result["hidden_size"]
    if "vocab_from" in options:
        assert plan["models"][1]["vocabulary"] == result["vocabulary"]["after"]
    if "data" in options:
        assert plan["data"][0]["examples"] == {"train": 48}


def test_evaluations_do_what_was_planned(
    planned: Callable[[Any], dict[str, Any]], teacher: Path, text_data: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"model": str(teacher), "data": str(text_data), "device": "cpu"}
    plan = planned(EvalConfig(output_dir=tmp_path / "e", **given))
    result = evaluate(EvalConfig(output_dir=tmp_path / "e", **given))
    assert plan["data"][0]["examples"] == {"test": result.examples}
    assert plan["models"][0]["layers"] == 4
    assert plan["seconds"]["total"] > 0
    config = ZeroShotConfig(seen_languages=("de",), **given)
    plan, zero = planned(config), zero_shot(config).to_dict()
    assert plan["output_dir"] is None
    counts = [
        row["examples"]
        for part in ("seen", "unseen")
        for row in zero[part]["per_language"].values()
    ]
    assert plan["data"][0]["examples"] == {"test": sum(counts)}


def test_export_does_what_was_planned(
    planned: Callable[[Any], dict[str, Any]], teacher: Path, text_data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    config = ExportConfig(
        model=str(teacher),
        data=str(text_data),
        precision=("fp32", "fp16"),
        output_dir=tmp_path / "o",
    )
    plan = planned(config)
    result = export(config).to_dict()
    record = record_of(tmp_path / "o")
    assert plan["data"][0]["examples"]["validation"] == sum(
        row["examples"] for row in record["export"]["per_language"].values()
    )
    graph = plan["disk_bytes"]["parts"]["onnx/model.onnx"]
    # Of a model as small as this the graph's own nodes take more than its weights.
    assert graph <= result["files"]["onnx/model.onnx"] <= graph + 500_000
    assert plan["models"][0]["bytes"] == graph
    half = plan["disk_bytes"]["parts"]["onnx/model_fp16.onnx"]
    assert half == graph / 2 <= result["files"]["onnx/model_fp16.onnx"] <= half + 500_000


def test_compare_does_what_was_planned(
    planned: Callable[[Any], dict[str, Any]], teacher: Path, text_data: Path, tmp_path: Path
) -> None:
    shutil.copytree(teacher, tmp_path / "other")
    config = CompareConfig(
        models=(str(tmp_path / "other"),),
        baseline=str(teacher),
        data=str(text_data),
        output_file=tmp_path / "report.html",
    )
    plan, result = planned(config), compare(config).to_dict()
    assert [one["name"] for one in plan["models"]] == [*result["models"]]
    assert [one["role"] for one in plan["models"]] == ["baseline", "model"]
    for name in ("parameters", "bytes"):
        found = [one[name] for one in result["models"].values()]
        assert [one[name] for one in plan["models"]] == found
    assert plan["data"][0]["examples"] == {"test": result["examples"]}
    assert set(plan["seconds"]["parts"]) == {f"scoring {name}" for name in result["models"]}
    assert plan["memory_bytes"]["total"] > 0
    with pytest.raises(OutputError, match="exists already"):
        planned(config)


def test_reproduce_does_what_was_planned(
    planned: Callable[[Any], dict[str, Any]], tmp_path: Path
) -> None:
    given: dict[str, Any] = {"name": "no-finetune", "scale": "sample", "output_dir": tmp_path / "o"}
    plan = planned(ReproduceConfig(**given))
    listed = reproduce(ReproduceConfig(plan=True, **given)).plan
    assert [{k: v for k, v in run.items() if k != "finished"} for run in plan["runs"]] == listed
    assert not any(run["finished"] for run in plan["runs"])
    first = Path(listed[0]["output"])
    first.mkdir(parents=True)
    (first / "config.json").write_text("{}")
    assert [run["finished"] for run in planned(ReproduceConfig(**given))["runs"]][:2] == [
        True,
        False,
    ]
    shutil.rmtree(first)
    (tmp_path / "o/no-finetune").mkdir(parents=True)
    (tmp_path / "o/no-finetune/report.md").write_text("mine")
    with pytest.raises(OutputError, match="not a report"):
        planned(ReproduceConfig(**given))


@pytest.mark.parametrize(
    "typed",
    [
        "finetune nowhere --data sample",
        "finetune sample-base --data nowhere.csv",
        "finetune sample-base --data sample --languages xx",
        "finetune sample-base --data sample --report-to nothing",
        "finetune sample-base --data sample -o full",
        "finetune sample-base --data sample -o file.txt",
        "finetune sample-base --data sample -o /proc/out",
        "finetune sample-base --data sample -o file.txt/within",
        "finetune sample-base --data sample -o " + "n" * 300,
        "finetune sample-base --data lines.txt",
        "finetune sample-base --data sample --device cuda:99",
        "finetune sample-base --data sample --max-length 2",
        "shrink sample --layers 40",
        "shrink sample --hidden-size 13",
        "shrink sample --init calibrated --data nowhere.txt",
        "shrink sample --init calibrated --data sample --device cuda:99",
        "shrink sample --vocab-from nowhere.txt",
        "distill --teacher sample --data sample --weight task=0 --hidden-size 13",
        "distill --teacher sample --data lines.txt",
        "distill --teacher sample --data sample --layers 40",
        "distill --teacher sample --data sample --init from-base --base nowhere",
        "distill --teacher sample --data sample --student nowhere",
        "distill --teacher sample --data sample --unlabelled nowhere.txt",
        "distill --teacher sample --data other.jsonl",
        "distill --teacher sample --data single.jsonl --compare",
        "distill --teacher sample --data sample --shard-teacher",
        "export sample-base --data sample",
        "export sample --data lines.txt",
        "export sample --data other.jsonl",
        "eval sample --data lines.txt",
        "eval sample --data sample --predictions full/x/y",
        "eval sample --data sample -o full",
        "eval sample --data sample --backend onnx",
        "zero-shot sample --data sample --languages seen",
        "reproduce no-finetune --scale sample --models nowhere",
        "reproduce no-finetune --scale sample -o file.txt",
    ],
)
def test_errors_are_those_of_the_command(typed: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "full").mkdir(parents=True)
    (home / "full/mine").write_text("mine")
    (home / "file.txt").write_text("mine")
    (home / "lines.txt").write_text("one\ntwo\n")
    (home / "other.jsonl").write_text(
        '{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n' * 9
    )
    rows = [
        {"text": f"wecke mich um {i}", "label": label}
        for i in range(4)
        for label in ("alarm_set", "weather_query")
    ]
    (home / "single.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = tree(home)
    dry = run(*typed.split(), "--dry-run", cwd=home)
    assert tree(home) == before
    real = run(*typed.split(), cwd=home)
    assert real.returncode in (1, 2)
    assert dry.returncode == real.returncode
    assert errors_of(dry.stderr) == errors_of(real.stderr) != []
    assert dry.stdout == ""


def errors_of(stderr: str) -> list[str]:
    """The lines of an error, from its first one on."""
    lines = stderr.splitlines()
    first = [number for number, line in enumerate(lines) if line.startswith("error")]
    return lines[first[0] :] if first else []


@pytest.mark.parametrize(
    "typed",
    [
        "finetune sample-base --data sample --max-steps 7",
        "distill --teacher sample --data sample --init from-teacher --no-compare --max-steps 7",
        "shrink sample --layers 6",
        "eval sample --data sample --max-samples 4",
        "zero-shot sample --data sample --max-samples 4",
        "reproduce no-finetune --scale sample",
    ],
)
def test_one_json_object_or_a_table(typed: str, tmp_path: Path) -> None:
    done = run(*typed.split(), "--dry-run", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    plan = json.loads(done.stdout)
    assert plan["dry_run"] is True
    assert plan["command"] == typed.split()[0]
    shown = run(*typed.split(), "--dry-run", cwd=tmp_path)
    assert shown.returncode == 0
    assert "dry run: nothing was written" in shown.stdout
    for model in plan["models"]:
        assert f"{model['parameters']:,}" in shown.stdout
    if plan["training"]:
        assert "7 steps" in shown.stdout
        assert "memory: about" in shown.stdout
    assert tree(tmp_path) == {}


def test_a_run_that_was_killed_and_one_that_is_finished(
    planned: Callable[[Any], dict[str, Any]], encoder_dir: Path, text_data: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {
        "model": str(encoder_dir),
        "data": str(text_data),
        "output_dir": tmp_path / "o",
        "num_train_epochs": 2,
        "save_steps": 2,
        **FAST,
    }
    die_in_step(5, lambda: finetune(FinetuneConfig(**given)))
    with pytest.raises(OutputError, match="--resume to go on"):
        planned(FinetuneConfig(**given))
    plan = planned(FinetuneConfig(resume=True, **given))
    assert (plan["training"]["resumed_from"], plan["training"]["steps"]) == (4, 12)
    with pytest.raises(OutputError, match="a different run"):
        planned(FinetuneConfig(resume=True, **{**given, "batch_size": 4}))

    kept = tmp_path / "kept"
    shutil.copytree(tmp_path / "o", kept)
    last = last_checkpoint(tmp_path / "o")
    assert last is not None
    for path in (tmp_path / "o/checkpoints").glob("checkpoint-*/optimizer.pt"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(OutputError, match="no checkpoint can be read"):
        planned(FinetuneConfig(resume=True, **given))
    shutil.rmtree(tmp_path / "o")
    kept.rename(tmp_path / "o")

    finetune(FinetuneConfig(resume=True, **given))
    assert "trained already" in planned(FinetuneConfig(resume=True, **given))["notes"][0]


def test_the_best_model_of_a_run_to_resume_is_checked(
    planned: Callable[[Any], dict[str, Any]], encoder_dir: Path, text_data: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {
        "model": str(encoder_dir),
        "data": str(text_data),
        "output_dir": tmp_path / "o",
        "eval_steps": 2,
        "save_steps": 4,
        "max_steps": 8,
        **FAST,
    }
    die_in_step(6, lambda: finetune(FinetuneConfig(**given)))
    best = tmp_path / "o/checkpoints/best/model.safetensors"
    best.write_bytes(best.read_bytes()[:100])
    with pytest.raises(TrainingError, match="best model of the run so far is damaged"):
        planned(FinetuneConfig(resume=True, **given))


def test_a_directory_in_use_is_refused(teacher: Path, tmp_path: Path) -> None:
    config = ShrinkConfig(model=str(teacher), layers=2, output_dir=tmp_path / "o")
    with open_output(tmp_path / "o", "shrink", overwrite=False):
        before = tree(tmp_path)
        with pytest.raises(
            OutputError, match=rf"another run writes to it \(process {os.getpid()} on"
        ):
            dry_run(config)
        assert tree(tmp_path) == before


def test_a_commands_cache_of_data_is_used_and_stays(
    planned: Callable[[Any], dict[str, Any]], teacher: Path, text_data: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"model": str(teacher), "data": str(text_data), "device": "cpu"}
    evaluate(EvalConfig(**given))
    assert any(name.startswith("cache/kdshrink") for name in tree(tmp_path))
    planned(EvalConfig(**given))
    planned(EvalConfig(split="validation", **given))
    assert datasets.is_caching_enabled()


def test_no_repository_is_made(desk: Desk, hub: Hub) -> None:
    typed = ("shrink", "sample", "--layers", "6", "--push-to-hub", "--dry-run", "--hub-model-id")
    done = desk(*typed, "org/new")
    assert done.returncode == 0, done.stderr
    assert hub.repos == {}
    assert hub.sent("whoami")
    assert hub.sent("^POST|^PUT") == []
    refused = desk(*typed, "org/new", token="hf_of_nobody")
    assert refused.returncode == 1
    assert "--push-to-hub: org/new" in refused.stderr
    made = desk(*(word for word in typed if word != "--dry-run"), "org/new")
    assert made.returncode == 0, made.stderr
    assert desk(*typed, "org/new", "-o", "other").returncode == 0
    read_only = desk(*typed, "org/new", "-o", "other", token=READER)
    assert read_only.returncode == 1


def test_commands_that_are_short_have_none() -> None:
    with pytest.raises(UsageError, match="no dry run"):
        dry_run(PushConfig(directory=Path("x")))
    assert run("info", "sample", "--dry-run").returncode == 2


@pytest.mark.slow
def test_the_memory_is_about_what_the_run_takes(tmp_path: Path) -> None:
    typed = (
        *("distill", "--teacher", "sample", "--data", "sample", "--init", "from-teacher"),
        *("--no-compare", "--batch-size", "128", "--max-steps", "6", "--device", "cpu"),
    )

    def alone(*more: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "kdshrink", *typed, *more, "--json"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    planned, measured = alone("--dry-run")["memory_bytes"], alone("-o", "o")["peak_memory_bytes"]
    assert planned["parts"]["activations"] > 80e6
    assert 0.7 < planned["total"] / measured < 1.4
