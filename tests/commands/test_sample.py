"""The embedded sample, by the command line as a new user runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ..helpers.runner import run

SAMPLE = Path(__file__).parents[2] / "kdshrink" / "sample"


def printed(*arguments: str, cwd: Path) -> dict[str, Any]:
    """Run a command with --json, and what it printed."""
    done = run(*arguments, "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_is_small_and_names_no_place() -> None:
    files = [
        path for path in SAMPLE.rglob("*") if path.is_file() and "__pycache__" not in str(path)
    ]
    assert sum(path.stat().st_size for path in files) <= 16 * 2**20
    for path in files:
        if path.suffix in (".json", ".md", ".sh", ".py") and path.name != "tokenizer.json":
            text = path.read_text()
            assert "/tmp/" not in text, path
            assert "/home/" not in text, path
            assert "/work" not in text, path


def test_the_teacher_knows_its_task(tmp_path: Path) -> None:
    result = printed("zero-shot", "sample", "--data", "sample", cwd=tmp_path)
    assert result["seen_from"] == "kdshrink.json"
    assert set(result["seen"]["per_language"]) == {"de-DE", "en-US", "es-ES", "ru-RU"}
    assert set(result["unseen"]["per_language"]) == {"nl-NL", "pt-PT", "sv-SE"}
    assert result["seen"]["score"] > 0.5
    assert result["unseen"]["score"] > 5 * result["random_score"]


@pytest.mark.slow
def test_the_default_beats_the_papers_recipe_and_training_without_a_teacher(tmp_path: Path) -> None:
    distill = ("distill", "--teacher", "sample", "--data", "sample")
    best = printed(*distill, "-o", "best", cwd=tmp_path)["comparison"]["models"]
    paper = printed(*distill, "--recipe", "paper", "-o", "paper", cwd=tmp_path)["comparison"][
        "models"
    ]
    printed("shrink", "sample", "--layers", "6", "-o", "copy", cwd=tmp_path)
    printed("finetune", "copy", "--data", "sample", "-o", "plain", cwd=tmp_path)
    plain = printed("zero-shot", "plain", "--data", "sample", cwd=tmp_path)
    for group in ("seen", "unseen"):
        score = best["distilled student"][group]["score"]
        assert score > 0.9 * best["teacher"][group]["score"]
        assert score > paper["distilled student"][group]["score"] + 0.02
        assert score > plain[group]["score"] + 0.02


@pytest.mark.slow
def test_a_student_learns_from_it(tmp_path: Path) -> None:
    common = (
        "--teacher",
        "sample",
        "--data",
        "sample",
        "--max-steps",
        "320",
        "--eval-steps",
        "160",
    )
    rate = ("--recipe", "paper", "--learning-rate", "3e-4")
    copied = printed("distill", *common, *rate, "-o", "copied", cwd=tmp_path)
    scratch = printed(
        "distill",
        *common,
        *rate,
        "--init",
        "from-scratch",
        "--layers",
        "6",
        "-o",
        "new",
        cwd=tmp_path,
    )
    models = copied["comparison"]["models"]
    for group in ("seen", "unseen"):
        scores = [models[name][group]["score"] for name in models]
        teacher, untrained, distilled = scores
        assert untrained < distilled
        assert distilled > 0.6 * teacher
        new = scratch["comparison"]["models"]["distilled student"][group]["score"]
        assert new < distilled


@pytest.mark.slow
def test_the_base_fine_tunes(tmp_path: Path) -> None:
    result = printed(
        *("finetune", "sample-base", "--data", "sample", "--max-steps", "300"),
        *("--learning-rate", "3e-4", "--eval-steps", "150", "-o", "tuned"),
        cwd=tmp_path,
    )
    assert result["score"] > 0.2
