"""Options from a YAML file, as they would have been typed; and from a record of a former run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from kdshrink.commands import distill as distilling
from kdshrink.config.commands import DistillConfig, ReproduceConfig

from ..helpers.runner import run


def taken(
    monkeypatch: pytest.MonkeyPatch, folder: Path, written: str, *typed: str
) -> dict[str, Any]:
    """The config that a command line makes of a file."""
    (folder / "run.yaml").write_text(written)
    found: list[DistillConfig] = []

    def keep(config: DistillConfig, _: object) -> Any:
        found.append(config)
        raise KeyboardInterrupt  # nothing is to be run

    monkeypatch.setattr(distilling, "distill", keep)
    done = run("distill", "--config", "run.yaml", *typed, cwd=folder)
    assert done.returncode == 130, done.stderr
    return dataclasses.asdict(found[0])


WRITTEN = """
teacher: sample
data: sample
learning-rate: 5e-5  # which YAML 1.1 reads as text
max_steps: 7
languages: [de, "no"]
weight: {hidden: 0, task: 2.5}
bf16: false
compare: true
text-column: 1
label-map: names.json
dropout: null
"""


def test_every_kind_of_value(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    expected = DistillConfig(
        teacher="sample",
        data="sample",
        learning_rate=5e-5,
        max_steps=7,
        languages=("de", "no"),
        weights={"hidden": 0.0, "task": 2.5},
        bf16=False,
        compare=True,
        text_column="1",
        label_map=Path("names.json"),
    )
    assert taken(monkeypatch, tmp_path, WRITTEN) == dataclasses.asdict(expected)


def test_what_is_typed_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    typed = ("--max-steps", "9", "--no-compare", "--languages", "es", "--weight", "hidden=1")
    config = taken(monkeypatch, tmp_path, WRITTEN, *typed)
    assert config["max_steps"] == 9
    assert config["compare"] is False
    assert config["languages"] == ("es",)
    assert config["weights"] == {"hidden": 1.0}
    assert config["learning_rate"] == 5e-5


def test_a_record_gives_the_same_run_again(tmp_path: Path) -> None:
    words = (
        "shrink",
        "sample",
        "--layers",
        "4",
        "--layer-map",
        "first",
        "-o",
        "first",
        "--seed",
        "7",
    )
    assert run(*words, cwd=tmp_path).returncode == 0
    done = run("shrink", "--config", "first/kdshrink.json", "-o", "again", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "again")]
    assert weights[0] == weights[1]
    record = json.loads((tmp_path / "again" / "kdshrink.json").read_text())
    assert record["config"]["layer_map"] == "first"
    assert record["seed"] == 7
    other = run("finetune", "--config", "first/kdshrink.json", cwd=tmp_path)
    assert other.returncode == 2
    assert "it was written by kdshrink shrink" in other.stderr


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("lerning-rate: 3", "no option lerning-rate. Is learning-rate meant?"),
        ("token: hf_secret", "no option token."),
        ("max-steps: 3\nmax_steps: 4", "max-steps is given twice"),
        ("languages: [no, de]", 'Put it in quotes, as in "no"'),
        ("text-column: yes", 'Put it in quotes, as in "no"'),
        ("weights: {hidden: [1]}", "a value within a value"),
        ("max-steps: many", "--max-steps"),
        ("max-steps: 0", "--max-steps 0"),
        ("- teacher\n- data", "does not map options to values"),
        ("", "does not map options to values"),
        ("teacher: 'sample", "this is not YAML"),
        ("teacher: !!python/object/apply:os.getcwd []", "this is not YAML"),
    ],
)
def test_a_file_that_will_not_do(tmp_path: Path, written: str, said: str) -> None:
    (tmp_path / "run.yaml").write_text(written)
    typed = ("--teacher", "sample", "--data", "sample")
    done = run("distill", *typed, "--config", "run.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
    assert "hf_secret" not in done.stderr


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    done = run("eval", "sample", "--data", "sample", "--config", "no.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "No such file" in done.stderr


def test_mappings_of_paths(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(
        "name: data\nscale: sample\nseeds: [44, 55]\ndata-dir: {tsm: corpora/tsm}\nplan: true\n"
    )
    assert ReproduceConfig(name="data", seeds=(44, 55)).seeds == (44, 55)
    done = run("reproduce", "--config", "grid.yaml", "--data", "sample", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "sample" in done.stdout
