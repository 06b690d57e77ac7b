"""`distill --export`: the distilled student's graphs in the same directory, and what is left if that fails."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from kdshrink import DistillConfig, EvalConfig, ExportConfig, distill, dry_run, evaluate, export
from kdshrink.commands import export as export_command
from kdshrink.errors import UsageError
from kdshrink.record import Record, read_record

from ..helpers.processes import run_without_onnx
from ..helpers.runner import run
from .students import add_dead_attention, add_dead_weights, make_student, write_student

pytest.importorskip("onnxruntime")


def options(folder: Path, teacher: Path, data: Path, **more: Any) -> dict[str, Any]:
    """A distillation of one step that leaves the copied weights nearly as they are."""
    return {
        "teacher": str(teacher),
        "data": str(data),
        "init": "from-teacher",
        "layers": 2,
        "max_steps": 1,
        "learning_rate": 1e-9,
        "device": "cpu",
        "output_dir": folder / "out",
        **more,
    }


def record_of(folder: Path) -> Record:
    record = read_record(folder)
    assert record is not None
    return record


def times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def teacher_and_data(tmp_path: Path) -> tuple[Path, Path]:
    return write_student(make_student(), tmp_path, texts=20)


def test_the_student_is_exported_into_its_directory(
    tmp_path: Path, teacher_and_data: tuple[Path, Path]
) -> None:
    given = options(tmp_path, *teacher_and_data, export=("fp32", "fp16", "int8"), max_drop=100.0)
    planned = dry_run(DistillConfig(**given)).to_dict()
    assert any("exported to ONNX in fp32 and fp16 and int8" in note for note in planned["notes"])
    result = distill(DistillConfig(**given)).to_dict()
    out = tmp_path / "out"
    record = record_of(out)
    assert record.command == "distill"
    assert record.export is not None
    assert record.export.to_dict() == result["export"]
    assert record.results is not None
    assert record.results.steps == 1
    assert record.versions["onnxruntime"]
    assert record.chain[-1].command.startswith("kdshrink distill")
    assert "--export fp32,fp16,int8" in record.chain[-1].command
    assert "## ONNX" in (out / "README.md").read_text()
    assert (out / "train_log.jsonl").read_text().count("\n") >= 1
    assert not (out / "checkpoints").exists()
    assert record.files is not None
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == {
        *record.files
    }

    # It is what the command of its own makes of the same student.
    student = tmp_path / "student-alone"
    alone = distill(
        DistillConfig(**{**given, "export": None, "max_drop": 0.5, "output_dir": student})
    )
    apart = export(
        ExportConfig(
            model=str(student),
            data=given["data"],
            precision=("fp32", "fp16", "int8"),
            max_drop=100,
            output_dir=tmp_path / "apart",
        )
    ).described()
    assert alone.export is None
    assert {**result["export"], "files": None} == {**apart, "files": None}
    scored = evaluate(
        EvalConfig(model=str(out), data=given["data"], split="validation", backend="onnx:int8")
    )
    assert scored.score == result["export"]["tried"][-1]["score"]

    # What is there is not made again; what is not there is added to a student that is finished.
    before = times(out)
    again = distill(DistillConfig(resume=True, **given)).to_dict()
    assert again["export"] == result["export"]
    assert times(out) == before
    added = distill(
        DistillConfig(**{**given, "export": ("fp32",), "resume": True, "output_dir": student})
    ).to_dict()
    assert list(added["export"]["files"]) == ["onnx/model.onnx"]
    assert "--export fp32" in record_of(student).chain[-1].command
    assert record_of(student).config["export"] == ["fp32"]


@pytest.mark.slow
def test_where_int8_is_refused_the_student_and_fp32_are_kept(tmp_path: Path) -> None:
    model: Any = make_student(layers=4)
    for layer in model.roberta.encoder.layer:
        add_dead_weights(layer)
        add_dead_attention(layer)
    directory, data = write_student(model, tmp_path)
    out = tmp_path / "out"
    done = run(
        *("distill", "--teacher", str(directory), "--data", str(data), "--init", "from-teacher"),
        *("--layers", "4", "--max-steps", "1", "--learning-rate", "1e-9", "--device", "cpu"),
        *("--export", "int8", "--max-drop", "5", "-o", str(out), "--json"),
    )
    assert done.returncode == 1
    assert f"No int8 of {out} stays within --max-drop 5" in done.stderr
    found = json.loads(done.stdout)
    assert found["steps"] == 1
    assert (found["export"]["passed"], found["export"]["schemes"]) == (False, {})
    assert [path.name for path in (out / "onnx").iterdir()] == ["model.onnx"]
    assert (out / "model.safetensors").exists()
    exported = record_of(out).export
    assert exported is not None
    assert exported.to_dict() == found["export"]


def test_a_run_that_was_killed_during_the_export_goes_on_with_it(
    tmp_path: Path, teacher_and_data: tuple[Path, Path]
) -> None:
    given = options(tmp_path, *teacher_and_data, export=("fp32",))
    child = os.fork()
    if not child:
        export_command.dry_run = lambda *_: os._exit(9)  # type: ignore[assignment]
        try:
            distill(DistillConfig(**given))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    out = tmp_path / "out"
    assert record_of(out).export is None
    weights = (out / "model.safetensors").read_bytes()
    log = (out / "train_log.jsonl").read_text()

    resumed = distill(DistillConfig(resume=True, **given)).to_dict()
    assert list(resumed["export"]["files"]) == ["onnx/model.onnx"]
    assert (out / "model.safetensors").read_bytes() == weights
    assert (out / "train_log.jsonl").read_text() == log
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_during_the_export_says_how_to_go_on(
    number: int,
    code: int,
    tmp_path: Path,
    teacher_and_data: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(export_command, "dry_run", lambda *_: os.kill(os.getpid(), number))
    teacher, data = teacher_and_data
    done = run(
        *("distill", "--teacher", str(teacher), "--data", str(data), "--init", "from-teacher"),
        *("--layers", "2", "--max-steps", "1", "--device", "cpu", "--export", "fp32"),
        *("-o", "out"),
        cwd=tmp_path,
    )
    assert done.returncode == code
    assert "during the export. out holds the distilled student" in done.stderr
    assert "--resume" in done.stderr
    assert record_of(tmp_path / "out").export is None


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("--teacher sample --data lines.txt --weight task=0 --export int8", "has no labels"),
        ("--teacher sample-base --data sample --export fp32", "has no head"),
    ],
)
def test_what_cannot_be_exported_is_told_before_any_work(
    typed: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "lines.txt").write_text("one\ntwo\n")
    for more in ((), ("--dry-run",)):
        done = run("distill", *typed.split(), "-o", "out", *more, cwd=tmp_path)
        assert done.returncode == 1
        assert said in done.stderr
        assert not (tmp_path / "out").exists()


def test_options_that_do_not_fit() -> None:
    with pytest.raises(UsageError, match="--export fp8: it is one of fp32, fp16, int8"):
        DistillConfig(teacher="t", data="sample", export=("fp8",))
    with pytest.raises(UsageError, match="--max-drop 1 needs --export"):
        DistillConfig(teacher="t", data="sample", max_drop=1.0)


def test_without_the_extra_nothing_begins(tmp_path: Path) -> None:
    done = run_without_onnx(
        "distill",
        "--teacher",
        "sample",
        "--data",
        "sample",
        "--export",
        "int8",
        "-o",
        "out",
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "pip install 'kdshrink[onnx]'" in done.stderr
    assert not (tmp_path / "out").exists()
