"""Texts without labels beside the labelled ones: they teach all but the task's term."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, Features, List, Value

from kdshrink import DistillConfig, FinetuneConfig, distill, finetune
from kdshrink.data.encoding import IGNORED, as_words, with_unlabelled
from kdshrink.distillation.model import scored_tokens
from kdshrink.errors import DataError, OutputError, UsageError

from ..helpers.logs import logged

IDS = {"input_ids": List(Value("int32")), "length": Value("int32")}


def encoded(labels: Any = None, feature: Any = None) -> Dataset:
    columns = {"input_ids": [[0, 5, 2], [0, 2]], "length": [3, 2]}
    if labels is None:
        return Dataset.from_dict(columns, Features(IDS))
    return Dataset.from_dict({**columns, "labels": labels}, Features({**IDS, "labels": feature}))


@pytest.mark.parametrize(
    ("labels", "feature", "expected"),
    [
        ([4, 7], Value("int32"), [4, 7, IGNORED, IGNORED]),
        (
            [[IGNORED, 1, IGNORED], [IGNORED, 2]],
            List(Value("int32")),
            [[IGNORED, 1, IGNORED], [IGNORED, 2], [IGNORED] * 3, [IGNORED] * 2],
        ),
    ],
)
def test_what_has_no_label_gets_the_one_of_nothing(
    labels: Any, feature: Any, expected: Any
) -> None:
    joined = with_unlabelled(encoded(labels, feature), encoded())
    assert joined["labels"] == expected
    assert joined["input_ids"] == [*encoded()["input_ids"]] * 2


def test_beside_texts_without_labels_they_are_just_more() -> None:
    assert with_unlabelled(encoded(), encoded()).column_names == ["input_ids", "length"]


def test_texts_become_words() -> None:
    table = Dataset.from_dict({"text": ["ein  Wort", "", "二"], "language": ["de", "de", "zh"]})
    assert as_words(table)["text"] == [["ein", "Wort"], [], ["二"]]


def test_logits_count_at_labels_and_without_any_everywhere() -> None:
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
    labels = torch.tensor([[IGNORED, 3, IGNORED], [IGNORED] * 3])
    assert scored_tokens(mask, labels).tolist() == [[False, True, False], [True, True, False]]
    assert torch.equal(scored_tokens(mask, None), mask)


def run(output_dir: Path, **options: Any) -> dict[str, Any]:
    fixed: dict[str, Any] = {
        "teacher": "sample",
        "data": "sample",
        "compare": False,
        "init": "from-teacher",
        "multilingual": 0,
        "max_steps": 4,
        "logging_steps": 1,
        "output_dir": output_dir,
    }
    distill(DistillConfig(**{**fixed, **options}))
    return json.loads((output_dir / "kdshrink.json").read_text())


@pytest.fixture(scope="module")
def dutch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "dutch.txt"
    path.write_text("zet de wekker om zeven uur\nwat is het weer morgen\n" * 100)
    return path


def test_unlabelled_text_is_learned_from_and_recorded(tmp_path: Path, dutch: Path) -> None:
    alone = run(tmp_path / "alone")
    record = run(tmp_path / "both", unlabelled=str(dutch))
    assert alone.get("unlabelled") is None
    assert record["unlabelled"]["name"] == str(dutch)
    assert record["unlabelled"]["examples"] == {"train": 200}
    # Languages without labels stay unseen for the task.
    assert record["training_languages"] == alone["training_languages"]
    epochs = [logged(tmp_path / name)[-1]["epoch"] for name in ("alone", "both")]
    assert epochs[1] == pytest.approx(epochs[0] * 5 / 12)  # 160 examples; 360 in batches of 32
    with pytest.raises(OutputError, match="--unlabelled"):
        run(tmp_path / "both", resume=True)


def test_the_student_is_calibrated_on_them_too(tmp_path: Path, dutch: Path) -> None:
    shared = {"init": "calibrated", "calibration_samples": 30, "max_steps": 1}
    alone = run(tmp_path / "alone", **shared)["calibration"]
    both = run(tmp_path / "both", unlabelled=str(dutch), **shared)["calibration"]
    assert both["texts"] == {**alone["texts"], "und": 30}
    assert set(both["agreement"]) == {*alone["agreement"], "und"}


@pytest.mark.parametrize(
    ("options", "share"),
    [({"recipe": "paper"}, 0), ({}, 0.2), ({"recipe": "paper", "multilingual": 1.5}, 1.5)],
)
def test_shipped_sentences_are_mixed_in(
    tmp_path: Path, options: dict[str, Any], share: float
) -> None:
    record = run(tmp_path / "out", batch_size=4, **{"multilingual": None, **options})
    assert share * 160 <= record["multilingual_sentences"] <= (share + 0.1) * 160
    last = logged(tmp_path / "out")[-1]
    assert last["epoch"] == pytest.approx(4 / ((1 + share) * 160 / 4), rel=0.1)


def test_of_a_batch_without_labels_the_task_has_no_loss(tmp_path: Path, dutch: Path) -> None:
    run(tmp_path / "out", unlabelled=str(dutch), batch_size=2, seed=1, batches="random")
    terms = [line for line in logged(tmp_path / "out") if "task" in line]
    assert any(line["task"] == 0 and line["prediction"] > 0 for line in terms)


@pytest.mark.parametrize("init", ["from-teacher", "calibrated"])
def test_token_tasks_take_texts_as_words(
    tmp_path: Path, encoder_dir: Path, word_data: Path, init: str
) -> None:
    shared = {"data": str(word_data), "max_steps": 2, "device": "cpu"}
    finetune(FinetuneConfig(model=str(encoder_dir), output_dir=tmp_path / "teacher", **shared))
    more = tmp_path / "more.txt"
    more.write_text("anna lives in paris\n" * 20)
    result = distill(
        DistillConfig(
            teacher=str(tmp_path / "teacher"),
            init=init,  # type: ignore[arg-type]
            unlabelled=str(more),
            output_dir=tmp_path / "student",
            **shared,
        )
    )
    assert result.steps == 2


def test_words_do_not_go_with_a_task_of_texts(tmp_path: Path, word_data: Path) -> None:
    with pytest.raises(DataError, match="lists of words"):
        run(tmp_path / "out", unlabelled=str(word_data))


def test_languages_of_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="needs --unlabelled"):
        DistillConfig(teacher="sample", data="sample", unlabelled_languages=("de",))
