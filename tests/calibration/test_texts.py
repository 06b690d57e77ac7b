"""The texts to calibrate on, the shipped sentences among them, and how a student is compared on others."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import kdshrink.calibration
from kdshrink import ShrinkConfig, shrink
from kdshrink.calibration.agreement import agreement
from kdshrink.calibration.texts import CalibrationData, repeated_sentences, shipped_sentences
from kdshrink.commands.inputs import data_request
from kdshrink.data.encoding import Collator, encode
from kdshrink.data.load import TaskData, load_data
from kdshrink.data.registry import Task

from ..helpers.models import make_model, make_tokenizer, sample_texts

SENTENCES = Path(kdshrink.calibration.__file__).parent / "sentences"


def sample_data() -> TaskData:
    config = ShrinkConfig(model="sample", data="sample")
    return load_data(data_request(config), ("train",), purpose="train", labels="unused")


def lines(split: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (SENTENCES / f"{split}.jsonl").open(encoding="utf-8")]


def test_the_shipped_sentences_are_few_and_each_once() -> None:
    assert sum(path.stat().st_size for path in SENTENCES.iterdir()) <= 400_000
    for split, each in (("train", 50), ("validation", 20)):
        counts = Counter(line["language"] for line in lines(split))
        assert len(counts) == 40
        assert set(counts.values()) == {each}
    both = [(line["language"], line["text"]) for s in ("train", "validation") for line in lines(s)]
    assert len(set(both)) == len(both)


def test_no_shipped_sentence_is_one_that_the_sample_is_scored_on() -> None:
    assert not {line["text"] for line in lines("train")} & {*sample_texts()}


def test_languages_of_the_data_are_left_out_of_the_sentences() -> None:
    found = shipped_sentences("train", "sequence", ["de", "English", "zh-CN"])
    languages = {*found["language"]}
    assert len(languages) == 36  # Chinese is there in two scripts
    assert not languages & {"de-DE", "en-US", "zh-CN", "zh-TW"}


def test_for_token_tasks_sentences_are_words() -> None:
    texts = shipped_sentences("validation", "sequence", [])
    words = shipped_sentences("validation", "token", [])
    assert words["text"] == [text.split() for text in texts["text"]]


@pytest.mark.parametrize("count", [0, 100, 1999, 5000])
def test_sentences_are_repeated_evenly(count: int, xlmr_tokenizer: PreTrainedTokenizerFast) -> None:
    everything = shipped_sentences("train", "sequence", ["de"])
    trained = xlmr_tokenizer.train_new_from_iterator(everything["text"], 4000)
    table = repeated_sentences(count, trained, 64, "sequence", ["de"])
    languages = Counter(table["language"])
    assert count <= len(table) <= count + 39
    assert "de-DE" not in languages
    if count:
        assert len(languages) == 39
        assert max(languages.values()) - min(languages.values()) <= max(1, count // 1950 * 50)


def test_no_sentence_has_an_unknown_token(xlmr_tokenizer: PreTrainedTokenizerFast) -> None:
    ascii_only = xlmr_tokenizer.train_new_from_iterator(["abcdefghijklmnopqrstuvwxyz' "], 100)
    table = repeated_sentences(4000, ascii_only, 512, "sequence", [])
    assert len(table) == 4000
    assert not {"ru-RU", "zh-CN", "th-TH"} & {*table["language"]}
    assert ascii_only.unk_token_id not in chain(*ascii_only(list(table["text"]))["input_ids"])
    digits = xlmr_tokenizer.train_new_from_iterator(["0123456789"], 100)
    assert len(repeated_sentences(10, digits, 64, "sequence", [])) == 0


def test_of_data_in_all_their_languages_no_sentence_is_left(
    xlmr_tokenizer: PreTrainedTokenizerFast,
) -> None:
    languages = shipped_sentences("train", "sequence", [])["language"]
    assert len(repeated_sentences(10, xlmr_tokenizer, 64, "sequence", languages)) == 0


@pytest.mark.parametrize("multilingual", [0.0, 0.5, 1.0, 10.0])
def test_sentences_are_a_share_of_the_texts(multilingual: float) -> None:
    data = CalibrationData.sample(
        sample_data(), 30, max_length=64, copies=0, multilingual=multilingual
    )
    assert len(data.table) == 4 * 30
    counts = Counter(data.sentences["language"])
    assert set(counts.values()) <= {min(50, -(-round(multilingual * 120) // 36))}
    assert len(counts) == (36 if multilingual else 0)
    # The ten texts of each language that are left, and the held-out sentences of the other languages.
    held = Counter(data.held_out["language"])
    assert held == {
        **dict.fromkeys(("de-DE", "en-US", "es-ES", "ru-RU"), 10),
        **dict.fromkeys(counts, 20),
    }
    assert not {*data.held_out["text"]} & {*data.table["text"], *data.sentences["text"]}


def test_texts_without_labels_are_sampled_by_language_too() -> None:
    data = sample_data()
    table = Dataset.from_dict(
        {"text": ["hoe laat is het", "doe het licht uit"] * 20, "language": ["nl-NL"] * 40}
    )
    unlabelled = replace(data, labels=None, languages=("nl-NL",), splits={"train": table})
    found = CalibrationData.sample(
        data, 30, max_length=64, copies=0, multilingual=1.0, unlabelled=unlabelled
    )
    assert found.counts() == dict.fromkeys(("de-DE", "en-US", "es-ES", "nl-NL", "ru-RU"), 30)
    assert "nl-NL" not in found.sentences["language"]
    assert Counter(found.held_out["language"])["nl-NL"] == 10


def agreed(
    models: Sequence[PreTrainedModel], table: Dataset, encoded: Dataset, task: Task
) -> dict[str, float]:
    teacher, student = models
    return agreement(
        teacher,
        student,
        table,
        encoded,
        task=task,
        collate=Collator(1),
        teacher_ids=None,
        device=torch.device("cpu"),
    )


def test_a_student_agrees_with_itself_and_by_chance_with_another() -> None:
    tokenizer = make_tokenizer("xlm-roberta")
    texts = sample_texts()[:60]
    table = Dataset.from_dict({"text": texts, "language": ["de"] * 20 + ["nl"] * 40})
    encoded = encode(table, tokenizer, task="sequence", max_length=32, label_ids=None)
    models = [make_model("xlm-roberta", "sequence", seed=seed).eval() for seed in (0, 1)]

    def classes(number: int) -> np.ndarray:
        with torch.no_grad():
            ids = [torch.tensor([row]) for row in encoded["input_ids"]]
            return np.array([int(models[number](one).logits.argmax()) for one in ids])

    found = agreed([models[0], models[0]], table, encoded, "sequence")
    assert found == {"de": 1.0, "nl": 1.0}
    same = classes(0) == classes(1)
    assert agreed(models, table, encoded, "sequence") == pytest.approx(
        {"de": same[:20].mean(), "nl": same[20:].mean()}
    )


def test_of_words_only_those_count_that_either_takes_for_an_entity() -> None:
    tokenizer = make_tokenizer("xlm-roberta")
    words = [text.split() for text in sample_texts()[:40]]
    table = Dataset.from_dict({"text": words, "language": ["de"] * 40})
    encoded = encode(table, tokenizer, task="token", max_length=64, label_ids=None)
    models = [make_model("xlm-roberta", "token", seed=seed).eval() for seed in (0, 1)]
    given: list[list[int]] = []
    for model in models:
        with torch.no_grad():
            tags = [model(torch.tensor([row])).logits[0].argmax(-1) for row in encoded["input_ids"]]
        given.append(
            [
                int(tag[place])
                for tag, places in zip(tags, encoded["positions"], strict=True)
                for place in places
            ]
        )
    usual = Counter(given[0]).most_common(1)[0][0]
    pairs = [pair for pair in zip(*given, strict=True) if {*pair} != {usual}]
    shares = agreed(models, table, encoded, "token")
    assert shares == pytest.approx({"de": sum(a == b for a, b in pairs) / len(pairs)})


@pytest.mark.parametrize(("samples", "compared"), [(20, 4), (400, 0)])
def test_without_sentences_its_own_languages_are_compared_if_texts_are_left(
    tmp_path: Path, samples: int, compared: int
) -> None:
    config = ShrinkConfig(
        model="sample",
        layers=2,
        init="calibrated",
        data="sample",
        calibration_samples=samples,
        calibration_multilingual=0,
        output_dir=tmp_path / "start",
    )
    calibration = shrink(config).to_dict()["calibration"]
    assert calibration["multilingual_sentences"] == 0
    assert len(calibration["agreement"]) == compared


def test_a_calibrated_student_reports_every_language(tmp_path: Path) -> None:
    config = ShrinkConfig(
        model="sample",
        layers=6,
        init="calibrated",
        data="sample",
        calibration_samples=20,
        calibration_copies=0,
        output_dir=tmp_path / "start",
    )
    calibration = shrink(config).to_dict()["calibration"]
    assert calibration["multilingual_sentences"] > 0
    assert {"de-DE", "sw-KE"} <= set(calibration["agreement"])
    # The sample's vocabulary has no Thai: its sentences say nothing of this student.
    assert "th-TH" not in calibration["agreement"]
    record = json.loads((tmp_path / "start" / "kdshrink.json").read_text())
    assert record["calibration"]["agreement"] == calibration["agreement"]
