"""The edges: streams that are closed or narrow, options and machines that cannot be, faults of the system."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch

from kdshrink import DistillConfig, FinetuneConfig, distill, finetune
from kdshrink.cli import main as program
from kdshrink.errors import DataError, ModelError, UnlabelledError, UsageError
from kdshrink.hub.errors import cache_of
from kdshrink.models.devices import pick_device
from kdshrink.training.trackers import require_trackers, tracker_names

from ..helpers.hub import Desk
from ..helpers.runner import run
from .test_app import TOY, run_toy

KDSHRINK = (sys.executable, "-m", "kdshrink")

# --- streams


def through_shell(redirected: str, *typed: str, **environment: str) -> tuple[int, str, str]:
    """The exit code of `kdshrink typed… redirected`, with what came through its streams."""
    done = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$@" {redirected}', "-", *KDSHRINK, *typed],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, **environment},
        timeout=60,
    )
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.mark.defect("T19")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-", "2>/dev/full"])
def test_closed_streams_change_no_exit_code(closed: str) -> None:
    code, shown, _ = through_shell(closed, "--version")
    assert (code, shown.startswith("kdshrink ")) == (0, ">&-" not in closed.replace("2>&-", ""))
    code, _, said = through_shell(closed, "eval", "m")
    assert code == 2
    assert said == "" or said.startswith("error: --data is missing")


@pytest.mark.defect("T19")
def test_help_into_a_pipe_that_closes_early() -> None:
    code, shown, said = through_shell("| head -1", "distill", "--help")
    assert (code, said) == (1, "")
    assert len(shown.splitlines()) == 1


@pytest.mark.defect("T19")
def test_a_stdout_that_cannot_be_written_is_told() -> None:
    code, _, said = through_shell(">/dev/full", "--version")
    assert code == 1
    assert said.startswith("error: ")
    assert "No space left" in said


@pytest.mark.defect("T19")
def test_a_result_on_disk_counts_though_its_reader_has_gone_away() -> None:
    script = TOY.format(body="pass").replace('"name"', '"output_dir": "OUT", "name"')
    script = script.replace("lambda result: None", "lambda result: cli.console.print_line('name')")
    command = [sys.executable, "-c", script, "toy", "m"]
    for typed in (["--json"], []):
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run([*command, *typed], stdout=write, stderr=subprocess.PIPE, text=True)
        os.close(write)
        assert (done.returncode, done.stderr) == (0, "")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*command, "--json"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert done.returncode == 1
    assert done.stderr == (
        "error: stdout cannot be written: No space left on device.\nThe result itself is complete: OUT.\n"
    )


@pytest.mark.defect("T19")
def test_work_goes_on_when_the_reader_of_its_notes_has_gone_away() -> None:
    read, write = os.pipe()
    os.close(read)
    noise = "[progress('training', i, 9, {'loss': 0.5}) for i in range(9)]"
    done = run_toy(noise.replace("{", "{{").replace("}", "}}").format(), "--json", stderr=write)
    os.close(write)
    assert done.returncode == 0
    assert json.loads(done.stdout)["score"] == 0.5


@pytest.mark.defect("T19")
def test_a_file_opened_while_stdout_is_closed_does_not_become_stdout(tmp_path: Path) -> None:
    path = tmp_path / "file"
    script = TOY.format(body=f"open({str(path)!r}, 'w'); os.write(1, b'lost')")
    done = subprocess.run(["bash", "-c", '"$@" >&-', "-", sys.executable, "-c", script, "toy", "m"])
    assert done.returncode == 0
    assert path.read_text() == ""


@pytest.mark.defect("T18")
@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_narrow_streams_show_what_they_can(environment: dict[str, str]) -> None:
    def toy(body: str, *typed: str) -> tuple[int, str, str]:
        script = TOY.format(body=body).encode("ascii", "backslashreplace").decode()
        done = subprocess.run(
            [sys.executable, "-c", script, "toy", "m", *typed],
            capture_output=True,
            encoding="latin-1",
            env={**os.environ, **environment},
        )
        return done.returncode, done.stdout, done.stderr

    noted = "import logging; logging.getLogger('kdshrink.x').warning('größer 名'); "
    code, shown, said = toy(
        f"{noted}Result.to_dict = lambda self: dict(name='größer 名 \udcff')", "--json"
    )
    assert code == 0
    assert json.loads(shown) == {"name": "größer 名 \udcff"}
    assert said.endswith("er \\u540d\n")
    code, _, said = toy("raise errors.ShapeError('名: 3 – 4 …')")
    assert code == 1
    assert said == "error: \\u540d: 3 \\u2013 4 \\u2026\n"
    code, shown, _ = through_shell("", "info", "--help", **environment, **{"LANG": "C"})
    assert code == 0
    assert "--trust-remote-code" in shown


@pytest.mark.slow
@pytest.mark.defect("T18")
def test_a_command_of_models_shows_its_tables_on_an_ascii_stream() -> None:
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    typed = ("eval", "sample", "--data", "sample", "--max-eval-samples", "2")
    code, shown, said = through_shell("", *typed, **environment)
    assert code == 0, said
    assert shown.isascii()
    assert "all languages pooled" in shown


# --- values that are typed


@pytest.mark.defect("M6", "T15")
@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["eval", "m", "--data", ""], "--data is empty"),
        (["eval", "", "--data", "sample"], "MODEL is empty"),
        (["eval", "m", "--data", "sample", "-o", ""], "--output-dir is empty"),
        (["eval", "m", "--data", "sample", "--data-dir", ""], "--data-dir is empty"),
        (["eval", "m", "--data", "sample", "--languages", ""], "--languages is empty"),
        (["eval", "m", "--data", "sample", "--languages", ","], "--languages is empty"),
        (["distill", "--teacher", "", "--data", "sample"], "--teacher is empty"),
        (["push", ""], "DIRECTORY is empty"),
        (["curves", ""], "DIRECTORIES is empty"),
        (["info", "m", "--revision", ""], "--revision is empty"),
        (["info", "m", "--token", ""], "--token is empty"),
        (["finetune", "m", "--data", "sample", "--seed", "-1"], "--seed -1: it must be at least 0"),
        (["finetune", "m", "--data", "d", "--seed", "4294967296"], "--seed 4294967296: it"),
        (["finetune", "m", "--data", "d", "--num-train-epochs", "inf"], "--num-train-epochs inf"),
        (["finetune", "m", "--data", "d", "--max-steps", "2147483648"], "--max-steps 2147483648"),
        (["finetune", "m", "--data", "d", "--device", "mps"], "--device mps: kdshrink runs on"),
        (["eval", "m", "--data", "d", "--split", "../x"], "--split ../x: the name of a split"),
        (["reproduce", "data", "--seeds", "1,-1"], "--seeds -1: it must be at least 0"),
    ],
)
def test_a_value_that_cannot_be_ends_with_2_in_the_command(
    typed: list[str],
    told: str,
) -> None:
    ended = run(*typed)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: {told}")
    assert len(ended.stderr.splitlines()) <= 3


@pytest.mark.defect("M6")
def test_a_name_that_is_no_utf8_is_refused_before_the_work() -> None:
    data = os.fsencode("größe").decode("utf-8").encode("latin-1") + b".jsonl"
    command = [os.fsencode(sys.executable), b"-m", b"kdshrink", b"eval", b"m", b"--data", data]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONUTF8": "1"}
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: --data 'gr\\udcf6\\udcdfe.jsonl': this is not valid utf-8, the encoding of names "
        "on this system.\nRename it to a name in UTF-8.\n"
    )


# --- what the machine has not


@pytest.mark.defect("T15")
@pytest.mark.parametrize(
    ("report_to", "told"),
    [
        ("nonsense", "transformers has no tracker 'nonsense'"),
        ("none,wandb", "transformers has no tracker 'none'"),
        ("comet_ml", "comet-ml is not installed"),
        ("flyte", "pip install flytekit"),
    ],
)
def test_trackers_that_are_not_here_are_told_by_their_packages(report_to: str, told: str) -> None:
    with pytest.raises(UsageError, match=f"^--report-to .*(\n.*)?{told}") as caught:
        require_trackers(report_to)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.defect("T15")
def test_trackers_as_transformers_takes_them() -> None:
    for quiet in ("none", "all"):
        assert tracker_names(quiet) == quiet
        require_trackers(quiet)
    assert tracker_names("wandb, mlflow") == ["wandb", "mlflow"]


@pytest.mark.defect("T15")
def test_a_tracker_that_is_not_installed_stops_a_run_before_its_model_is_sought(
    tmp_path: Path,
) -> None:
    config = FinetuneConfig(
        model="no/such", data="none", report_to="clearml", output_dir=tmp_path / "o", device="cpu"
    )
    with pytest.raises(UsageError, match="clearml is not installed"):
        finetune(config)
    assert not (tmp_path / "o").exists()


@pytest.mark.defect("T15")
def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ModelError, match=r"^--device cuda:99\d: PyTorch sees \d+ CUDA devices"):
        pick_device("cuda:999")
    if not torch.cuda.is_available():
        assert pick_device("auto") == torch.device("cpu")
        with pytest.raises(ModelError, match="--device cpu"):
            pick_device("cuda")


# --- data without labels


@pytest.mark.defect("M8")
def test_distilling_on_lines_says_that_they_have_no_labels(
    tmp_path: Path, massive_teacher: Path
) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("guten tag\nbuenos días\n" * 8)
    options = {"teacher": str(massive_teacher), "data": str(lines), "device": "cpu"}
    with pytest.raises(UnlabelledError, match="no labels") as caught:
        distill(DistillConfig(**options, output_dir=tmp_path / "o"))
    assert "--weight task=0" in str(caught.value)
    assert "--label-column" not in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3
    assert isinstance(caught.value, DataError)


# --- faults of the system, told from one place


@pytest.mark.defect("M11")
def test_a_hub_cache_that_cannot_be_written_is_named(desk: Desk, model_dir: Path) -> None:
    desk.hub.add("org/m", model_dir)
    (desk.folder / "file").write_text("")
    for variable, cache in (("HF_HUB_CACHE", "file/x"), ("HF_HOME", "file/x")):
        done = desk("info", "org/m", **{variable: cache})
        assert done.returncode == 1
        assert f"Set {variable} to a writable directory" in done.stderr
        assert str(desk.folder / cache) in done.stderr
        assert len(done.stderr.splitlines()) <= 3
    assert desk("info", "org/m").returncode == 0


@pytest.mark.defect("M11")
def test_paths_of_caches_name_their_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for variable in ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    home = tmp_path / "huggingface"
    assert cache_of(home / "hub" / "x") == (home / "hub", "HF_HUB_CACHE")
    assert cache_of(home / "datasets") == (home / "datasets", "HF_DATASETS_CACHE")
    assert cache_of(home / "modules") == (home, "HF_HOME")
    assert cache_of(tmp_path / "other") is None
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "mine" / "deep"))
    assert cache_of(tmp_path / "mine") == (tmp_path / "mine" / "deep", "HF_DATASETS_CACHE")


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.EACCES, "change the permissions"),
        (errno.EROFS, "writable file system"),
        (errno.EISDIR, "not a directory's"),
        (errno.ENOTDIR, "is a file"),
        (errno.ENAMETOOLONG, "shorter"),
        (errno.ELOOP, "form a loop"),
        (errno.EIO, "system's log"),
        (errno.EDQUOT, "Make room"),
    ],
)
def test_what_the_system_refuses_is_told_in_words(
    number: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program._report_error(OSError(number, os.strerror(number), "/mnt/there")) == 1
    said = capsys.readouterr().err
    assert "/mnt/there" in said
    assert os.strerror(number) in said
    assert told in said
    assert len(said.splitlines()) == 2


def test_real_faults_of_paths_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    for path, told in (
        (tmp_path, "Is a directory"),
        (tmp_path / "file" / "x", "Not a directory"),
        (tmp_path / ("x" * 300), "File name too long"),
        (tmp_path / "loop", "Too many levels"),
    ):
        done = run_toy(f"open({str(path)!r}, 'w')")
        assert done.returncode == 1
        assert told in done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) == 2


@pytest.mark.parametrize(
    ("work", "told"),
    [
        (lambda: bytearray(2**62), "memory"),
        (lambda: torch.empty(2**50), "memory: "),
        (lambda: numpy.empty(2**50), "memory: Unable to allocate"),
        (lambda: _raise(torch.OutOfMemoryError("CUDA out of memory.")), "memory of the GPU: CUDA"),
    ],
)
def test_too_little_memory_says_what_to_lower(
    work: Callable[[], object], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        work()
    assert program._report_error(caught.value) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: There is not enough {told}")
    assert "Lower --batch-size" in said
    assert len(said.splitlines()) == 2


def _raise(error: Exception) -> None:
    raise error


def test_a_bug_is_told_with_the_version_and_few_frames() -> None:
    done = run_toy("1 / 0")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert "error: This is a bug in kdshrink " in done.stderr
    deep = "f = lambda n: g(n); g = lambda n: f(n)\n    f.__globals__.update(f=f, g=g)\n    f(1)"
    done = run_toy(deep)
    assert "RecursionError" in done.stderr
    assert len(done.stderr.splitlines()) < 60


def test_a_name_that_cannot_be_written_is_no_bug() -> None:
    done = run_toy("'name\\udcff'.encode()")
    assert done.returncode == 1
    assert done.stderr.startswith("error: A name cannot be written as utf-8: 'name\\udcff'")


def test_ctrl_c_while_the_command_line_is_imported_ends_with_130() -> None:
    script = (
        "import sys\n"
        "class Slow:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'kdshrink.cli': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Slow())\n"
        "from kdshrink.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "")
