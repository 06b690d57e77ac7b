"""Where results go: nothing is lost, two runs do not meet, and --resume goes on with the same run."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from kdshrink import (
    CurvesConfig,
    DistillConfig,
    EvalConfig,
    FinetuneConfig,
    ReproduceConfig,
    ShrinkConfig,
    ZeroShotConfig,
    curves,
    distill,
    evaluate,
    finetune,
    reproduce,
    shrink,
    zero_shot,
)
from kdshrink.errors import OutputError, TrainingError
from kdshrink.files import atomic_directory, atomic_file, recover_directory, to_json, write_json
from kdshrink.output import final_files, open_output
from kdshrink.publishing.push import model_files
from kdshrink.publishing.record import write_record
from kdshrink.record import Record
from kdshrink.training.checkpoints import last_checkpoint

from .helpers.logs import logged
from .helpers.models import make_model
from .helpers.processes import die_in_step

ROOT = Path(__file__).parent.parent


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may write everywhere; so be somebody else."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def teacher(tmp_path: Path, xlmr_tokenizer: PreTrainedTokenizerFast) -> Path:
    folder = tmp_path / "teacher"
    make_model("xlm-roberta", "sequence", num_hidden_layers=2).save_pretrained(folder)
    xlmr_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def eval_config(teacher: Path, text_data: Path) -> EvalConfig:
    return EvalConfig(model=str(teacher), data=str(text_data), device="cpu")


@pytest.fixture
def shrink_config(teacher: Path, tmp_path: Path) -> ShrinkConfig:
    return ShrinkConfig(model=str(teacher), layers=1, output_dir=tmp_path / "out")


# --- results replace results, models replace models


@pytest.mark.defect("D1")
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_evaluation_never_replaces_a_model(
    eval_config: EvalConfig, shrink_config: ShrinkConfig, teacher: Path, overwrite: bool
) -> None:
    shrink(shrink_config)
    student = shrink_config.output_dir
    assert student is not None
    for folder, said in ((teacher, "which the command reads"), (student, "shrink wrote")):
        before = files_of(folder)
        with pytest.raises(OutputError, match=said) as caught:
            evaluate(replace(eval_config, output_dir=folder, overwrite=overwrite))
        assert overwrite or "--overwrite" not in str(caught.value)
        assert files_of(folder) == before


@pytest.mark.defect("D1")
def test_an_evaluation_replaces_an_evaluation_and_nothing_else(
    eval_config: EvalConfig, tmp_path: Path
) -> None:
    out = tmp_path / "scores"
    evaluate(replace(eval_config, output_dir=out))
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"a result of kdshrink eval.*\n.*--overwrite"):
        evaluate(replace(eval_config, output_dir=out))
    with pytest.raises(OutputError, match="a result of kdshrink eval"):
        shrink(ShrinkConfig(model=eval_config.model, layers=1, output_dir=out, overwrite=True))
    options = {"model": eval_config.model, "data": eval_config.data, "device": "cpu"}
    zero_shot(
        ZeroShotConfig(**options, seen_languages=("de",), output_dir=out, overwrite=True)  # type: ignore[arg-type]
    )
    assert json.loads((out / "kdshrink.json").read_text())["command"] == "zero-shot"
    assert sorted(files_of(out)) == ["kdshrink.json", "notes.txt"]


@pytest.mark.defect("D1")
def test_what_kdshrink_did_not_write_is_not_replaced(
    shrink_config: ShrinkConfig, teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(teacher, out)  # another's model
    before = files_of(out)
    with pytest.raises(OutputError, match="a model that kdshrink did not write"):
        shrink(replace(shrink_config, overwrite=True))
    assert files_of(out) == before


@pytest.mark.defect("D1")
def test_files_of_the_result_before_go_and_those_of_others_stay(
    shrink_config: ShrinkConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    with open_output(out, "shrink", overwrite=False), final_files(out) as folder:
        for name in ("config.json", "model-00001-of-00002.safetensors", "onnx/model.onnx"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("{}")
        write_record(folder, Record(command="shrink"))
    (out / "README.md").write_text("a card of somebody's")
    (out / "notes").mkdir()
    (out / "notes" / "1.txt").write_text("mine")
    with caplog.at_level(logging.WARNING, "kdshrink"):
        shrink(replace(shrink_config, overwrite=True))
    assert not list(out.glob("model-*"))
    assert not (out / "onnx" / "model.onnx").exists()
    assert (out / "notes" / "1.txt").read_text() == "mine"
    assert (out / "README.md.orig").read_text() == "a card of somebody's"
    assert "README.md was not written by kdshrink" in caplog.text
    listed = json.loads((out / "kdshrink.json").read_text())["files"]
    assert {*listed} == {*files_of(out)} - {"notes/1.txt", "README.md.orig"}


@pytest.mark.defect("D1", "D3")
def test_an_input_is_no_output(
    shrink_config: ShrinkConfig, eval_config: EvalConfig, teacher: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(teacher)
    before = files_of(tmp_path)
    for place in (
        teacher,
        link,
        teacher / "student",
        tmp_path,
        tmp_path / "teacher" / ".." / "teacher",
    ):
        with pytest.raises(OutputError, match="which the command reads"):
            shrink(replace(shrink_config, output_dir=place, overwrite=True))
    assert eval_config.data is not None
    for place in (Path(eval_config.data), Path(eval_config.data) / "de"):
        with pytest.raises(OutputError, match="which the command reads"):
            evaluate(replace(eval_config, output_dir=place, overwrite=True))
    assert files_of(tmp_path) == before


# --- links, mount points, "."


@pytest.mark.defect("D6", "D7")
@pytest.mark.parametrize("place", [".", "link", "dangling", "../work"])
def test_the_directory_itself_stays(
    shrink_config: ShrinkConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    work = tmp_path / "work"
    (work / "real").mkdir(parents=True)
    (work / "link").symlink_to("real")
    (work / "dangling").symlink_to("made")
    if place in (".", "../work"):
        shutil.rmtree(work)
        work.mkdir()
    monkeypatch.chdir(work)
    inode = os.stat(work).st_ino
    for overwrite in (False, True):
        shrink(replace(shrink_config, output_dir=Path(place), overwrite=overwrite))
        assert Path(place, "config.json").exists()
    assert os.stat(work).st_ino == inode
    if place == "link":
        assert os.readlink("link") == "real"
        assert (work / "real" / "model.safetensors").exists()
    if place == "dangling":
        assert os.readlink("dangling") == "made"
    assert not list(work.rglob(".*"))
    card = Path(place, "README.md").read_text()
    assert "# work" in card or place in ("link", "dangling")


@pytest.mark.defect("D6")
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="only root may mount"
)
def test_a_mount_point_is_filled(tmp_path: Path) -> None:
    out, kept = tmp_path / "out", tmp_path / "kept"
    out.mkdir()
    script = (
        f"mount -t tmpfs -o size=8m tmpfs {out} || exit 99; mkdir {out}/lost+found\n"
        f'"$@" False && "$@" True; code=$?; cp -r {out}/. {kept}; exit $code'
    )
    write = (
        "import sys; from pathlib import Path; from kdshrink.output import final_files, open_output\n"
        "out = Path(sys.argv[1])\n"
        "with open_output(out, 'shrink', overwrite=sys.argv[2] == 'True'), final_files(out) as new:\n"
        "    (new / 'config.json').write_text('{}')\n"
        """    (new / 'kdshrink.json').write_text('{"command": "shrink"}')"""
    )
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", script, "-", sys.executable, "-c", write, str(out)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    if done.returncode == 99:
        pytest.skip("mounting is not allowed here")
    assert done.returncode == 0, done.stderr
    assert (kept / "config.json").exists()
    assert not [path for path in kept.iterdir() if path.name.startswith(".")]


def test_what_failed_leaves_nothing(shrink_config: ShrinkConfig, tmp_path: Path) -> None:
    out = tmp_path / "new" / "deep" / "out"
    with (
        pytest.raises(ZeroDivisionError),
        open_output(out, "shrink", overwrite=False),
        final_files(out) as folder,
    ):
        (folder / "config.json").write_text(str(1 / 0))
    assert not (tmp_path / "new").exists()


def test_a_result_that_was_being_moved_in_is_moved_in(tmp_path: Path) -> None:
    """As a SIGKILL between two of its files leaves it."""
    out = tmp_path / "out"
    (out / ".kdshrink.whole").mkdir(parents=True)
    (out / "model.safetensors").write_text("new")
    (out / ".kdshrink.whole" / "config.json").write_text("{}")
    write_record(out / ".kdshrink.whole", Record(command="shrink"))
    with (
        pytest.raises(OutputError, match="shrink wrote"),
        open_output(out, "shrink", overwrite=False),
    ):
        pytest.fail("it was there")
    assert sorted(files_of(out)) == ["config.json", "kdshrink.json", "model.safetensors"]


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place, said in (
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "out", "cannot be made"),
    ):
        with pytest.raises(OutputError, match=said), open_output(place, "shrink", overwrite=True):
            pytest.fail("it cannot be")
    tmp_path.chmod(0o500)
    try:
        with as_nobody(), pytest.raises(OutputError, match="no permission"):  # noqa: SIM117
            with open_output(tmp_path / "out", "shrink", overwrite=False):
                pytest.fail("it cannot be")
    finally:
        tmp_path.chmod(0o700)


# --- one run at a time


@pytest.mark.defect("D11")
def test_a_second_run_into_a_directory_ends_at_once(
    shrink_config: ShrinkConfig, eval_config: EvalConfig, text_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options: dict[str, Any] = {"data": str(text_data), "output_dir": out, "device": "cpu"}
    with open_output(out, "distill", overwrite=False):
        assert model_files(out) == []
        for work in (
            lambda: shrink(replace(shrink_config, overwrite=True)),
            lambda: evaluate(replace(eval_config, output_dir=out, overwrite=True)),
            lambda: distill(DistillConfig(teacher=eval_config.model, resume=True, **options)),
            lambda: finetune(FinetuneConfig(model=eval_config.model, overwrite=True, **options)),
        ):
            with pytest.raises(
                OutputError, match=rf"another run .*process {os.getpid()} on .*, since"
            ):
                work()
        assert [path.name for path in out.iterdir()] == [".kdshrink.lock"]
    assert not out.exists()


@pytest.mark.defect("D11")
def test_a_lock_that_a_killed_process_left_is_no_obstacle(
    shrink_config: ShrinkConfig, tmp_path: Path
) -> None:
    script = (
        "import os, sys; from pathlib import Path; from kdshrink.output import open_output\n"
        "with open_output(Path(sys.argv[1]), 'shrink', overwrite=False): os._exit(9)"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (tmp_path / "out" / ".kdshrink.lock").exists()
    shrink(shrink_config)
    assert not list((tmp_path / "out").glob(".*"))


# --- single files


@pytest.mark.defect("D3")
def test_predictions_replace_no_file_unasked_and_no_input_ever(
    eval_config: EvalConfig, teacher: Path, tmp_path: Path
) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text("of before\n")
    with pytest.raises(OutputError, match=r"exists already.*--overwrite"):
        evaluate(replace(eval_config, predictions=path))
    assert path.read_text() == "of before\n"
    evaluate(replace(eval_config, predictions=path, overwrite=True))
    assert len(path.read_text().splitlines()) == 24
    assert eval_config.data is not None
    data = Path(eval_config.data) / "de" / "test.jsonl"
    linked = tmp_path / "linked.jsonl"
    linked.symlink_to(data)
    for one in (data, linked, teacher / "model.safetensors"):
        before = one.read_bytes()
        with pytest.raises(OutputError, match="which the command reads"):
            evaluate(replace(eval_config, predictions=one, overwrite=True))
        assert one.read_bytes() == before


@pytest.mark.defect("D3")
def test_predictions_may_go_beside_the_result_and_stay_there(
    eval_config: EvalConfig, tmp_path: Path
) -> None:
    out = tmp_path / "scores"
    for overwrite in (False, True):
        options: dict[str, Any] = {"output_dir": out, "overwrite": overwrite}
        evaluate(replace(eval_config, predictions=out / "answers.jsonl", **options))
    assert sorted(files_of(out)) == ["answers.jsonl", "kdshrink.json"]


@pytest.mark.defect("D2")
def test_devices_pipes_and_links_stay_what_they_are(
    eval_config: EvalConfig, tmp_path: Path
) -> None:
    pipe, link, target = tmp_path / "pipe", tmp_path / "link.jsonl", tmp_path / "target.jsonl"
    os.mkfifo(pipe)
    link.symlink_to(target)
    to_null = tmp_path / "null"
    to_null.symlink_to("/dev/null")
    for one in (Path("/dev/null"), to_null, pipe):
        with pytest.raises(OutputError, match="not a regular file"):
            evaluate(replace(eval_config, predictions=one, overwrite=True))
    assert pipe.is_fifo()
    assert Path("/dev/null").is_char_device()
    evaluate(replace(eval_config, predictions=link))
    assert os.readlink(link) == str(target)
    assert len(target.read_text().splitlines()) == 24
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(OutputError, match="broken link"):
        evaluate(replace(eval_config, predictions=loop))


@pytest.mark.defect("D2")
def test_predictions_to_the_own_output_are_refused(tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; from kdshrink.output import check_file\n"
        "check_file(Path('/dev/stdout'), '--predictions', overwrite=True)"
    )
    with (tmp_path / "out").open("wb") as out:
        done = subprocess.run(
            [sys.executable, "-c", script],
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    assert "OutputError: --predictions /dev/stdout is this command's own output" in done.stderr


@pytest.mark.defect("D3")
def test_curves_replace_no_file_unasked(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run, image = tmp_path / "run", tmp_path / "c.svg"
    run.mkdir()
    (run / "train_log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    image.write_text("a drawing")
    config = CurvesConfig(directories=(run,), output_file=image)
    with pytest.raises(OutputError, match=r"exists already.*--overwrite"):
        curves(config)
    assert image.read_text() == "a drawing"
    curves(replace(config, overwrite=True))
    assert "<svg" in image.read_text()


@pytest.mark.defect("D3")
def test_a_report_replaces_a_report_alone(tmp_path: Path) -> None:
    config = ReproduceConfig(name="data", scale="sample", output_dir=tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "results.csv").write_text("mine")
    with pytest.raises(OutputError, match=r"results\.csv"):
        reproduce(config)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["results.csv"]
    (tmp_path / "data" / "results.csv").unlink()
    reproduce(config)
    reproduce(config)
    assert sorted(files_of(tmp_path / "data")) == ["report.md", "results.csv", "results.json"]


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as partial, partial.open("w") as file:
        file.write("ha" + str(1 / 0))
    assert files_of(tmp_path) == {"file": b"old"}
    former = os.umask(0o027)
    try:
        write_json(path, {"a": 1})
    finally:
        os.umask(former)
    assert path.stat().st_mode & 0o777 == 0o640
    assert sorted(files_of(tmp_path)) == ["file"]


def test_a_directory_of_checkpoints_is_whole_or_as_it_was(tmp_path: Path) -> None:
    best = tmp_path / "best"
    for content in ("old", "new"):
        with atomic_directory(best) as folder:
            (folder / "score").write_text(content)
    with pytest.raises(ValueError, match="stop"), atomic_directory(best):
        raise ValueError("stop")
    assert files_of(tmp_path) == {"best/score": b"new"}
    best.rename(tmp_path / ".best.former")  # as a kill between two renames leaves it
    recover_directory(best)
    assert files_of(tmp_path) == {"best/score": b"new"}


@pytest.mark.defect("W22")
def test_json_never_holds_nan(caplog: pytest.LogCaptureFixture) -> None:
    content = {"a": [1.5, math.nan], "b": {"c": math.inf}, "path": Path("x/y")}

    def refuse(name: str) -> None:
        raise AssertionError(name)

    read = json.loads(to_json(content), parse_constant=refuse)
    assert read == {"a": [1.5, None], "b": {"c": None}, "path": "x/y"}
    assert "a, b.c" in caplog.text
    with pytest.raises(TypeError, match="set"):
        to_json({"a": {1}})


# --- --resume


@pytest.fixture(scope="module")
def interrupted(
    tmp_path_factory: pytest.TempPathFactory, xlmr_tokenizer: PreTrainedTokenizerFast
) -> Path:
    """A distillation of 6 steps that died in its 5th, with checkpoints 2 and 4; and all it needs."""
    folder = tmp_path_factory.mktemp("interrupted")
    make_model("xlm-roberta", "sequence", num_hidden_layers=2).save_pretrained(folder / "teacher")
    xlmr_tokenizer.save_pretrained(folder / "teacher")
    words = {"cold": "wetter", "mild": "musik", "warm": "email"}
    for split, count in (("train", 24), ("validation", 9)):
        path = folder / "data" / "de" / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [
            {"text": f"{word} {i}", "label": label}
            for i in range(count // 3)
            for label, word in words.items()
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_in(folder, resume=False)
    assert die_in_step(4, lambda: distill(config)) == 9
    distill(replace(config_in(folder, resume=False), output_dir=folder / "whole"))
    return folder


def config_in(folder: Path, **options: Any) -> DistillConfig:
    return DistillConfig(
        **{
            **{"teacher": str(folder / "teacher"), "data": str(folder / "data"), "layers": 1},
            **{"output_dir": folder / "out", "resume": True, "device": "cpu", "max_steps": 6},
            **{"save_steps": 2, "eval_steps": 3, "logging_steps": 1, "batch_size": 8},
            **{"save_total_limit": 2, "learning_rate": 1e-3, "seed": 3},
            **options,
        }
    )


@pytest.fixture
def run(interrupted: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(interrupted, folder)
    for path in (folder / "out/checkpoints/run.json", folder / "whole/kdshrink.json"):
        path.write_text(path.read_text().replace(str(interrupted), str(folder)))
    (folder / "out" / ".kdshrink.lock").unlink()
    return folder


def same_weights(folder: Path) -> bool:
    whole, got = (load_file(folder / n / "model.safetensors") for n in ("whole", "out"))
    return all(torch.equal(got[name], whole[name]) for name in whole)


@pytest.mark.defect("W17", "T16")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"learning_rate": 1e-4}, "--learning-rate 0.001 → 0.0001"),
        ({"seed": 4}, "--seed 3 → 4"),
        ({"batch_size": 4}, "--batch-size 8 → 4"),
        ({"gradient_accumulation_steps": 2}, "--gradient-accumulation-steps 1 → 2"),
        ({"weights": {"task": 0.5}}, "--weight not given → task=0.5"),
        ({"languages": ("de",)}, "--languages not given → de"),
        ({"max_steps": 7}, "--max-steps 6 → 7"),
        ({"eval_steps": 2}, "--eval-steps 3 → 2"),
        ({"dropout": 0.0}, "--dropout not given → 0.0"),
        ({"layers": 2}, "--layers 1 → 2"),
        ({"hidden_size": 12}, "--hidden-size not given → 12"),
        ({"train_fraction": 0.5, "seed": 4}, "--train-fraction 1.0 → 0.5"),
    ],
)
def test_resume_refuses_what_would_decide_another_result(
    run: Path, options: dict[str, Any], said: str
) -> None:
    before = files_of(run)
    with pytest.raises(OutputError, match=r"--resume: .* a different run") as caught:
        distill(config_in(run, **options))
    assert said in str(caught.value)
    assert "--overwrite" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3
    assert files_of(run) == before


@pytest.mark.defect("W17")
def test_resume_refuses_other_files_under_the_same_names(run: Path) -> None:
    data = run / "data" / "de" / "train.jsonl"
    whole = data.read_text()
    data.write_text(whole.replace("wetter 0", "wetter 9"))
    with pytest.raises(OutputError, match=r"--data \S+data: its content has changed"):
        distill(config_in(run))
    data.write_text(whole)
    make_model("xlm-roberta", "sequence", seed=1, num_hidden_layers=2).save_pretrained(
        run / "teacher"
    )
    with pytest.raises(OutputError, match=r"--teacher \S+teacher: its content has changed"):
        distill(config_in(run))


@pytest.mark.defect("W17")
def test_where_nothing_was_done_yet_resume_starts_with_what_is_given(run: Path) -> None:
    for path in (run / "out" / "checkpoints").glob("checkpoint-*"):
        shutil.rmtree(path)
    distill(config_in(run, max_steps=3, seed=4))
    record = json.loads((run / "out" / "kdshrink.json").read_text())
    assert record["run"]["options"]["seed"] == record["seed"] == 4
    assert "resumed_from" not in record


@pytest.mark.defect("W17")
def test_resume_lists_ten_changes_at_most(run: Path) -> None:
    options = {
        **{"learning_rate": 1.0, "seed": 1, "batch_size": 1, "gradient_accumulation_steps": 7},
        **{"max_steps": 3, "eval_steps": 1, "dropout": 0.3, "layers": 2, "weight_decay": 0.5},
        **{"warmup_steps": 1, "max_length": 9, "temperature": 2.0},
    }
    with pytest.raises(OutputError, match="and 2 more") as caught:
        distill(config_in(run, **options))
    assert str(caught.value).count("→") == 10 + 1  # and one in the advice


@pytest.mark.defect("W17")
def test_what_decides_no_result_may_change_and_paths_may_move(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (run / "teacher").rename(run / "moved")
    (run / "data").rename(run / "texts")
    with caplog.at_level(logging.INFO, "kdshrink"):
        distill(
            config_in(
                run,
                teacher=str(run / "moved"),
                data=str(run / "texts"),
                save_steps=3,
                cache_teacher="none",
                save_total_limit=1,
                token="hf_secret",
            )
        )
    assert "resuming from" in caplog.text
    assert "checkpoint-4" in caplog.text
    assert same_weights(run)
    record = json.loads((run / "out" / "kdshrink.json").read_text())
    assert record["resumed_from"] == 4
    assert record["max_length"] == 64  # what the tokenizer allows, of the 512 asked for
    assert record["results"]["steps"] == 6
    assert "hf_secret" not in json.dumps(record)


@pytest.mark.defect("T17")
@pytest.mark.parametrize(
    ("name", "keep"),
    [
        *(("model.safetensors", k) for k in (0.5, 0)),
        *(("optimizer.pt", k) for k in (0.9, 0)),
        *(("scheduler.pt", 0.5), ("rng_state.pth", 0.5)),
        *(("trainer_state.json", k) for k in (0.5, 0)),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(
    run: Path, name: str, keep: float, caplog: pytest.LogCaptureFixture
) -> None:
    path = run / "out" / "checkpoints" / "checkpoint-4" / name
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    last = last_checkpoint(run / "out")
    assert last is not None
    assert last.name == "checkpoint-2"
    if (name, keep) != ("optimizer.pt", 0.9):
        return  # one of them to the end
    with caplog.at_level(logging.INFO, "kdshrink"):
        distill(config_in(run))
    assert "checkpoint-4 cannot be resumed from: optimizer.pt is damaged" in caplog.text
    assert f"resuming from {last}" in caplog.text
    assert same_weights(run)


@pytest.mark.defect("T17")
def test_no_whole_checkpoint_is_an_error_but_half_written_ones_are_none(run: Path) -> None:
    folder = run / "out" / "checkpoints"
    for number in (2, 4):
        (folder / f"checkpoint-{number}" / "optimizer.pt").write_bytes(b"")
    with pytest.raises(
        OutputError, match=r"no checkpoint can be read.*optimizer[\s\S]*--overwrite"
    ):
        distill(config_in(run))
    assert (folder / "checkpoint-4").exists()
    for number in (2, 4):  # trainer_state.json comes last
        (folder / f"checkpoint-{number}" / "trainer_state.json").unlink()
    distill(config_in(run))
    assert same_weights(run)


@pytest.mark.defect("T17")
@pytest.mark.parametrize("junk", [b'{"step": 4, "lo', b"\x00\xff\xfe{]\n[1]\nnull\n"])
def test_a_damaged_log_stops_no_run(
    run: Path, junk: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    log = run / "out" / "checkpoints" / "train_log.jsonl"
    log.write_bytes(log.read_bytes() + junk)
    distill(config_in(run))
    assert "damaged lines were removed" in caplog.text
    assert logged(run / "out") == logged(run / "whole")


@pytest.mark.defect("T17")
def test_the_best_model_so_far_must_be_whole(run: Path) -> None:
    best = run / "out" / "checkpoints" / "best"
    best.rename(best.with_name(".best.former"))
    distill(config_in(run))
    assert same_weights(run)


@pytest.mark.defect("T17")
def test_a_damaged_best_model_ends_the_run(run: Path) -> None:
    weights = run / "out" / "checkpoints" / "best" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(TrainingError, match=r"best model .* damaged"):
        distill(config_in(run))


@pytest.mark.defect("W17")
def test_a_run_of_a_version_that_kept_no_account_goes_on(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (run / "out" / "checkpoints" / "run.json").unlink()
    distill(config_in(run))
    assert "does not record the options of its run" in caplog.text
    assert same_weights(run)


@pytest.mark.defect("T17")
@pytest.mark.parametrize("name", ["embeddings.safetensors", "targets/done.bin", "targets/key.json"])
def test_what_can_be_made_again_is_made_again(run: Path, name: str) -> None:
    path = run / "out" / "checkpoints" / name
    if name.startswith("targets") and not path.exists():
        pytest.skip("no targets were kept")
    path.write_bytes(path.read_bytes()[:5])
    distill(config_in(run))
    assert same_weights(run)


@pytest.mark.defect("D7")
def test_checkpoints_may_be_a_link_to_another_disk(run: Path) -> None:
    folder, scratch = run / "out" / "checkpoints", run / "scratch"
    folder.rename(scratch)
    folder.symlink_to(scratch)
    distill(config_in(run))
    assert same_weights(run)
    assert not folder.is_symlink()
    assert list(scratch.iterdir()) == []


@pytest.mark.defect("W22")
def test_a_development_score_that_is_no_number_ends_the_run(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdshrink.evaluation.evaluator import Evaluator

    score = Evaluator.score
    monkeypatch.setattr(Evaluator, "score", lambda *given: replace(score(*given), score=math.nan))
    with pytest.raises(TrainingError, match="development score was not finite at step 6"):
        distill(config_in(run))


@pytest.mark.defect("M7")
def test_a_finished_directory_is_finished_for_the_same_run_alone(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = run / "whole"
    before = files_of(out)
    done = distill(config_in(run, output_dir=out))
    assert done.steps == 6
    make_model("xlm-roberta", "sequence", seed=1, num_hidden_layers=2).save_pretrained(
        run / "other"
    )
    for path in (run / "teacher").glob("tok*"):
        shutil.copy(path, run / "other")
    for options, said in (
        ({"teacher": str(run / "other")}, r"--teacher \S+teacher → \S+other"),
        ({"learning_rate": 1e-5}, "--learning-rate"),
    ):
        with pytest.raises(OutputError, match=said):
            distill(config_in(run, output_dir=out, **options))
    with pytest.raises(OutputError, match="distill → finetune"):
        finetune(
            FinetuneConfig(
                model=str(run / "teacher"), data=str(run / "data"), output_dir=out, resume=True
            )
        )
    assert files_of(out) == before
    # One that an older version wrote is told by its config.
    record = json.loads((out / "kdshrink.json").read_text())
    del record["run"], record["files"]
    (out / "kdshrink.json").write_text(json.dumps(record))
    assert distill(config_in(run, output_dir=out)).steps == 6
    with pytest.raises(OutputError, match="--learning-rate"):
        distill(config_in(run, output_dir=out, learning_rate=1e-5))


@pytest.mark.defect("M7")
def test_a_run_begun_over_a_finished_one_is_not_finished(run: Path) -> None:
    shutil.copytree(run / "whole", run / "both")
    shutil.copytree(run / "out" / "checkpoints", run / "both" / "checkpoints")
    config = config_in(run, output_dir=run / "both")
    distill(config)
    assert json.loads((run / "both" / "kdshrink.json").read_text())["resumed_from"] == 4
    shutil.copytree(run / "out" / "checkpoints", run / "both" / "checkpoints")
    kept = json.loads((run / "both" / "kdshrink.json").read_text())["run"]
    (run / "both" / "checkpoints" / "run.json").write_text(json.dumps(kept))
    distill(config)  # killed between moving the result in and removing the checkpoints
    assert not (run / "both" / "checkpoints").exists()


def test_a_damaged_record_is_told(run: Path) -> None:
    path = run / "whole" / "kdshrink.json"
    record = json.loads(path.read_text())
    del record["results"]["development"]
    path.write_text(json.dumps(record))
    with pytest.raises(OutputError, match="damaged"):
        distill(config_in(run, output_dir=run / "whole"))
    (run / "out" / "checkpoints" / "run.json").write_text("{}")
    with pytest.raises(OutputError, match="damaged"):
        distill(config_in(run))


@pytest.mark.slow
@pytest.mark.defect("D1")
def test_the_first_command_works_twice_in_a_row(tmp_path: Path) -> None:
    typed = ["distill", "--teacher", "sample", "--data", "sample", "-o", "sample-student"]
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-m", "kdshrink", *typed, "--overwrite", "--max-steps", "2"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "sample-student").glob(".*"))
