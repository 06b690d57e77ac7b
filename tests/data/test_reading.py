"""What a whole command makes of data that is not as the named sets are."""

from __future__ import annotations

import json
import logging
import os
import stat
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from kdshrink import DistillConfig, EvalConfig, ShrinkConfig, distill, evaluate, shrink
from kdshrink.commands.evaluate import zero_shot
from kdshrink.commands.inputs import data_request
from kdshrink.config.commands import ZeroShotConfig
from kdshrink.data.encoding import encode, first_tokens
from kdshrink.data.languages import language_of
from kdshrink.data.load import TaskData, load_data
from kdshrink.data.local import FileTable
from kdshrink.data.request import DataRequest, LanguageChoice, Reading
from kdshrink.data.shard import Columns
from kdshrink.data.store import read_table
from kdshrink.data.tags import from_iob2, to_iob2
from kdshrink.errors import DataError, ModelError, OutputError, UsageError
from kdshrink.evaluation.evaluator import Predictions, make_evaluator
from kdshrink.evaluation.metrics import majority_scores, text_scores
from kdshrink.models.loading import load_tokenizer
from kdshrink.models.source import find_model
from kdshrink.training.setup import encode_splits

from ..helpers.models import LABELS, make_model, make_tokenizer

WORDS = ["Anna", "Weber", "in", "Lisboa"]
SCHEMES = {
    "IO": ["PER", "PER", "O", "LOC"],
    "IOB1": ["I-PER", "I-PER", "O", "I-LOC"],
    "IOB2": ["B-PER", "I-PER", "O", "B-LOC"],
    "BIOES": ["B-PER", "E-PER", "O", "S-LOC"],
    "BILOU": ["B-PER", "L-PER", "O", "U-LOC"],
}
NOTHING = "\u200b"
"""A word that BERT's normalizer takes away."""


def load(data: object, *splits: str, purpose: Any = "evaluate", **options: Any) -> TaskData:
    config = EvalConfig(model="unused", data=str(data), **options)
    return load_data(data_request(config), splits or ("test",), purpose=purpose)


def write(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts(*labels: object, **more: Any) -> list[dict[str, Any]]:
    return [{"text": f"text {i}", "label": label, **more} for i, label in enumerate(labels)]


@pytest.fixture
def model(tmp_path: Path, xlmr_tokenizer: PreTrainedTokenizerFast) -> str:
    make_model("xlm-roberta", "sequence").save_pretrained(tmp_path / "model")
    xlmr_tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def tagger(tmp_path: Path, xlmr_tokenizer: PreTrainedTokenizerFast) -> str:
    make_model("xlm-roberta", "token").save_pretrained(tmp_path / "tagger")
    xlmr_tokenizer.save_pretrained(tmp_path / "tagger")
    return str(tmp_path / "tagger")


def relabel(model: str, labels: list[str]) -> None:
    """Give a model other names of its classes."""
    path = Path(model) / "config.json"
    config = json.loads(path.read_text())
    config["id2label"] = {str(i): name for i, name in enumerate(labels)}
    config["label2id"] = {name: i for i, name in enumerate(labels)}
    path.write_text(json.dumps(config))


# --- which split


@pytest.mark.defect("W13", "M5")
def test_a_single_file_has_no_splits_but_all_of_it(model: str, tmp_path: Path) -> None:
    path = write(tmp_path / "reviews.jsonl", *texts(*LABELS))
    result = evaluate(EvalConfig(model=model, data=str(path), device="cpu"))
    assert (result.split, result.examples) == ("all", 3)
    for split in ("validation", "test"):
        with pytest.raises(DataError, match="a single file, which has no splits"):
            evaluate(EvalConfig(model=model, data=str(path), split=split, device="cpu"))
    with pytest.raises(UsageError, match="--split bogus"):
        evaluate(EvalConfig(model=model, data=str(path), split="bogus", device="cpu"))
    folder = tmp_path / "folder"
    write(folder / "dev.jsonl", *texts(*LABELS))
    for name in ("dev", "validation", "valid"):
        scored = evaluate(EvalConfig(model=model, data=str(folder), split=name, device="cpu"))
        assert (scored.split, scored.examples) == ("validation", 3)


@pytest.mark.defect("W13")
def test_a_comparison_is_not_made_on_the_training_file(model: str, tmp_path: Path) -> None:
    path = write(tmp_path / "one.jsonl", *texts(*LABELS * 4))
    with pytest.raises(DataError, match="all of which is trained on"):
        distill(
            DistillConfig(
                teacher=model,
                data=str(path),
                compare=True,
                layers=2,
                max_steps=1,
                output_dir=tmp_path / "out",
                device="cpu",
            )
        )


@pytest.mark.defect("W19")
def test_a_language_without_the_split_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kdshrink")
    folder = tmp_path / "data"
    write(folder / "de" / "test.jsonl", *texts(*LABELS))
    write(folder / "sw" / "train.jsonl", *texts(*LABELS))
    assert load(folder).splits["test"].unique("language") == ["de"]
    assert "there is no test split in sw" in caplog.text
    with pytest.raises(DataError, match="no test split in sw"):
        load(folder, languages=("de", "sw"))
    named = tmp_path / "massive"
    row = {"utt": "wake me up", "intent": "alarm_set"}
    write(named / "de-DE" / "test.jsonl", row)
    write(named / "sw-KE" / "train.jsonl", row)
    caplog.clear()
    assert load("massive", data_dir=named).languages == ("de-DE",)
    assert "there is no test split in sw-KE" in caplog.text
    with pytest.raises(DataError, match="no test split in sw-KE"):
        load("massive", data_dir=named, languages=("de", "sw"))


@pytest.mark.defect("W18")
def test_a_model_was_trained_on_the_languages_that_have_training_data(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write(folder / "de" / "train.jsonl", *texts(*LABELS * 4))
    write(folder / "sw" / "test.jsonl", *texts(*LABELS))
    data = load(folder, "train", "validation", purpose="train")
    assert data.languages == ("de",)
    assert data.reference["languages"] == ["de"]
    assert load(folder).languages == ("sw",)


def test_a_vocabulary_is_cut_to_all_splits_that_there_are(tmp_path: Path) -> None:
    """Though some languages have one of them only."""
    options: dict[str, Any] = {"purpose": "evaluate", "labels": "unused"}
    sample = load_data(DataRequest(data="sample"), None, **options)
    assert len(sample.languages) == 7
    assert sample.reference["examples"] == {"train": 160, "validation": 240, "test": 840}
    folder = tmp_path / "data"
    write(folder / "de" / "train.jsonl", *texts("a"))
    write(folder / "sw" / "test.jsonl", *texts("a"))
    for languages in (None, ("de", "sw")):
        wanted = DataRequest(data=str(folder), languages=LanguageChoice(wanted=languages))
        assert load_data(wanted, None, **options).reference["examples"] == {"train": 1, "test": 1}


def test_a_tenth_of_each_language_and_label_is_held_out(tmp_path: Path) -> None:
    rows = [
        {"text": f"{language} {label} {i}", "label": label, "language": language}
        for language, labels in {"de": {"a": 60, "b": 20}, "sw": {"a": 20, "b": 100}}.items()
        for label, count in labels.items()
        for i in range(count)
    ]
    data = load(write(tmp_path / "a.jsonl", *rows), "train", "validation", purpose="train")
    held = data.splits["validation"]
    found = [text.rsplit(" ", 1)[0] for text in held["text"]]
    assert {kind: found.count(kind) for kind in found} == {
        "de a": 6,
        "de b": 2,
        "sw a": 2,
        "sw b": 10,
    }
    assert len(data.splits["train"]) == 180


# --- languages


@pytest.mark.parametrize("name", ["de", "deu", "ger", "German", "Deutsch", "de-DE", "de_DE"])
@pytest.mark.defect("W18")
def test_one_language_by_all_its_names(tmp_path: Path, name: str) -> None:
    assert language_of(name) == "de"
    write(tmp_path / "data" / name / "test.jsonl", *texts(*LABELS))
    write(tmp_path / "data" / "sw" / "test.jsonl", *texts(*LABELS))
    assert load(tmp_path / "data", languages=("de",)).languages == (name,)


@pytest.mark.defect("W18")
def test_what_is_not_known_is_not_unseen(
    model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "data"
    for name in ("deu", "German", "sw"):
        write(folder / name / "test.jsonl", *texts(*LABELS))
    record = Path(model) / "kdshrink.json"

    def score(languages: list[str] | None, data: Path = folder, **options: Any) -> list[list[str]]:
        record.unlink(missing_ok=True)
        if languages is not None:
            record.write_text(json.dumps({"training_languages": languages}))
        result = zero_shot(ZeroShotConfig(model=model, data=str(data), device="cpu", **options))
        return [sorted(part.per_language) if part else [] for part in (result.seen, result.unseen)]

    assert score(["de"]) == [["German", "deu"], ["sw"]]
    with pytest.raises(DataError, match="data without a language"):
        score(["und"])
    with pytest.raises(DataError, match="does not say its training languages"):
        score(None)
    assert score(None, seen_languages=("de",)) == [["German", "deu"], ["sw"]]
    assert score(["und"], unseen_languages=("sw",)) == [[], ["sw"]]
    score(["de", "und"])
    assert "was also trained on data without a language" in caplog.text
    nameless = write(tmp_path / "nameless.jsonl", *texts(*LABELS))
    with pytest.raises(DataError, match="does not say the language of its texts"):
        score(["de"], nameless)
    some = write(tmp_path / "some.jsonl", *texts("cold"), *texts("mild", language="swa"))
    assert score(["de"], some) == [[], ["swa"]]
    assert "texts without a language are left out" in caplog.text


@pytest.mark.defect("M13")
def test_thousands_of_languages_take_seconds(tmp_path: Path) -> None:
    """By the rows of one file; what took long was a table for each, and lists searched for each name."""
    names = [f"x-{i:04d}" for i in range(8000)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(texts("a", language=n)[0]) + "\n" for n in names))
    began = time.process_time()
    data = load(path, languages=("all",), max_samples=1)
    assert list(data.splits["test"]["language"]) == names
    assert len(data.languages) == 8000
    # No benchmark: a search in a search would take ten times as long.
    assert time.process_time() - began < 30


# --- tags and words


@pytest.mark.defect("W10")
def test_tags_of_another_kind_are_scored_by_tag(tagger: str, tmp_path: Path) -> None:
    kinds = ["NOUN", "PROPN", "ADP", "VERB", "X"]
    relabel(tagger, kinds)
    tags = ["PROPN", "PROPN", "ADP", "NOUN"]
    path = write(tmp_path / "a.jsonl", *[{"tokens": WORDS, "tags": tags}] * 3)
    predictions = tmp_path / "p.jsonl"
    options: dict[str, Any] = {"model": tagger, "data": str(path), "device": "cpu"}
    result = evaluate(EvalConfig(**options, predictions=predictions))
    lines = [json.loads(line) for line in predictions.read_text().splitlines()]
    gold, answers = ([tag for line in lines for tag in line[key]] for key in ("gold", "predicted"))
    assert gold == tags * 3
    expected = text_scores(gold, answers)
    assert result.metric == "macro_f1"
    assert result.score == expected.score
    assert result.details == expected.details
    assert "mode" not in result.to_dict()
    assert majority_scores([tags], "token") == (text_scores(tags, ["PROPN"] * 4).score, 0.5)


@pytest.mark.defect("W10")
def test_perfect_answers_score_one_in_any_scheme(tagger: str, tmp_path: Path) -> None:
    """A model's tags may be of one scheme, and the data's of another."""
    found = find_model(tagger)
    tokenizer = load_tokenizer(found)
    for scheme, tags in SCHEMES.items():
        path = write(tmp_path / f"{scheme}.jsonl", {"tokens": WORDS, "ner_tags": tags})
        data = load(path)
        assert data.tag_scheme == scheme
        for labels in SCHEMES.values():
            names = sorted({*labels})
            config = {**found.config, "id2label": {str(i): n for i, n in enumerate(names)}}
            source = replace(found, config=config)
            evaluator = make_evaluator(
                data,
                "test",
                tokenizer,
                source,
                max_length=64,
                batch_size=None,
                device=torch.device("cpu"),
            )
            classes = np.asarray([names.index(tag) for tag in labels])
            right = Predictions(classes, np.ones(4, np.float32), np.asarray([0, 4]))
            scored = evaluator.score_predictions(right, 1.0)
            assert (scored.metric, scored.score) == ("entity_f1", 1.0), (scheme, names)
            assert scored.tag_scheme == scheme


@pytest.mark.defect("W10")
@pytest.mark.parametrize("scheme", [*SCHEMES, "BMES"])
def test_a_model_is_trained_on_tags_of_its_own_scheme(
    scheme: str, tagger: str, tmp_path: Path
) -> None:
    known = {*SCHEMES.get(scheme, ["B-PER", "M-PER", "E-PER", "S-PER", "S-LOC", "O"])}
    if scheme in ("BIOES", "BILOU", "BMES"):
        inner = {"BIOES": "IBES", "BILOU": "IBLU", "BMES": "MBES"}[scheme]
        known |= {f"{prefix}-{kind}" for prefix in inner for kind in ("PER", "LOC")}
    if scheme == "IOB1":
        known |= {"B-LOC"}
    sentences = [
        ["B-PER", "I-PER", "I-PER", "O", "B-LOC"],
        ["B-LOC", "B-LOC", "O", "B-PER", "B-LOC", "I-LOC"],
        ["O"],
    ]
    if scheme == "IOB2":
        known |= {"I-LOC"}
    for tags in sentences:
        own = from_iob2(tags, known)
        assert {*own} <= known
        back = "IOB1" if scheme == "IOB1" else scheme
        joined = scheme == "IO" and tags[:2] == ["B-LOC", "B-LOC"]  # which IO cannot tell apart
        assert to_iob2(own, back) == (["B-LOC", "I-LOC", *tags[2:]] if joined else tags)
    if scheme == "IOB1":
        assert from_iob2(sentences[1], known)[:2] == ["I-LOC", "B-LOC"]


@pytest.mark.defect("W10")
def test_a_teacher_of_another_scheme_teaches(tagger: str, tmp_path: Path) -> None:
    names = ["O", "S-PER", "B-PER", "I-PER", "E-PER"]
    relabel(tagger, names)
    tags = ["B-PER", "I-PER", "O", "O"]
    path = write(tmp_path / "a.jsonl", *[{"tokens": WORDS, "ner_tags": tags}] * 8)
    data = load(path, "train", "validation", purpose="train")
    tokenizer = make_tokenizer("xlm-roberta")
    encoded = encode_splits(data, ("train",), tokenizer, 64, names)["train"]
    labels = [label for label in encoded[0]["labels"] if label >= 0]
    assert [names[label] for label in labels] == ["B-PER", "E-PER", "O", "O"]
    result = distill(
        DistillConfig(
            teacher=tagger,
            data=str(path),
            layers=2,
            max_steps=1,
            output_dir=tmp_path / "out",
            device="cpu",
        )
    )
    assert result.development.metric == "entity_f1"


@pytest.mark.defect("W10")
def test_tags_of_entities_and_others_together_are_refused(tmp_path: Path) -> None:
    rows = [{"tokens": WORDS, "ner_tags": ["B-PER", "I-PER", "O", "LOC"]}]
    path = write(tmp_path / "a.jsonl", *rows)
    with pytest.raises(DataError, match=r"line 1, column 'ner_tags'.*'LOC' is not an entity tag"):
        load(path)
    renamed = tmp_path / "names.json"
    renamed.write_text('{"LOC": "B-LOC"}')
    assert load(path, label_map=renamed).labels == ("B-LOC", "B-PER", "I-PER", "O")


def test_a_named_set_of_entities_refuses_tags_that_are_none_of_its(tmp_path: Path) -> None:
    folder = tmp_path / "uner" / "da_ddt"
    tags = ["B-PER", "I-OTH", "B-OTH", "O"]
    write(folder / "test.jsonl", {"tokens": WORDS, "ner_tags": tags})
    table = load("universal-ner", data_dir=tmp_path / "uner").splits["test"]
    assert table["label"][0] == [1, 0, 0, 0]
    write(folder / "test.jsonl", {"tokens": WORDS, "ner_tags": ["PER", "PER", "O", "O"]})
    with pytest.raises(DataError, match=r"line 1, column 'ner_tags': universal-ner has no label"):
        load("universal-ner", data_dir=tmp_path / "uner")


@pytest.mark.defect("M10")
def test_words_without_a_token_are_not_cut_off(tmp_path: Path) -> None:
    tokenizer = make_tokenizer("bert")
    words = ["Anna", NOTHING, "Weber"]
    assert first_tokens(tokenizer(words, is_split_into_words=True).word_ids(), 3)[1] == -1
    path = write(tmp_path / "a.jsonl", {"tokens": words, "ner_tags": ["B-PER", "O", "O"]})
    table = load(path).splits["test"]
    options: dict[str, Any] = {"task": "token", "label_ids": [0, 1]}
    assert encode(table, tokenizer, max_length=64, **options)[0]["cut_off"] == 0
    short = encode(table, tokenizer, max_length=3, **options)[0]
    assert short["cut_off"] == 2
    assert [label for label in short["labels"] if label >= 0] == [0]
    long = load(write(tmp_path / "b.jsonl", *texts("a")))
    cut = encode(long.splits["test"], tokenizer, task="sequence", max_length=3, label_ids=[0])
    assert cut[0]["cut_off"] == 1


@pytest.mark.defect("M10")
def test_words_without_a_token_are_told_apart(tmp_path: Path) -> None:
    make_model("bert", "token").save_pretrained(tmp_path / "bert")
    make_tokenizer("bert").save_pretrained(tmp_path / "bert")
    rows = {"tokens": ["Anna", NOTHING, "Weber"], "ner_tags": ["B-PER", "O", "O"]}
    path = write(tmp_path / "a.jsonl", rows)
    result = evaluate(EvalConfig(model=str(tmp_path / "bert"), data=str(path), device="cpu"))
    assert (result.cut_off_words, result.words_without_tokens) == (0, 1)


# --- labels and their names


def test_a_label_map_names_the_classes_of_data_and_model(
    model: str, tmp_path: Path, save_json: Callable[..., Path]
) -> None:
    relabel(model, ["LABEL_0", "LABEL_1", "LABEL_2"])
    path = write(tmp_path / "a.jsonl", *texts(0, 1, 2, 1))
    with pytest.raises(DataError, match=r"are unknown to .*: 0, 1, 2\."):
        evaluate(EvalConfig(model=model, data=str(path), device="cpu"))
    by_number = {f"LABEL_{i}": name for i, name in enumerate(LABELS)}
    names = save_json({**by_number, "0": "cold", "1": "mild", "2": "warm"})
    options: dict[str, Any] = {"model": model, "data": str(path), "label_map": names}
    result = evaluate(EvalConfig(**options, per_class=True, device="cpu"))
    assert {*(result.per_class or ())} <= {*LABELS}
    assert load(path, label_map=names).reference["label_map"] == json.loads(names.read_text())
    twice = save_json({"LABEL_0": "cold", "LABEL_1": "cold"})
    with pytest.raises(ModelError, match="two classes of the model 'cold'"):
        evaluate(EvalConfig(model=model, data=str(path), label_map=twice, device="cpu"))


@pytest.fixture
def save_json(tmp_path: Path) -> Callable[..., Path]:
    def save(content: object) -> Path:
        path = tmp_path / f"map{len(list(tmp_path.glob('map*')))}.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return save


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "not a JSON object"),
        ("{}", "not a JSON object"),
        ('{"a": 1', "not JSON"),
        ('{"a": "b", "a": "c"}', "has 'a' twice"),
        ('{"a": null}', "which is not a name"),
        ('{"a": {"b": "c"}}', "which is not a name"),
    ],
)
def test_a_label_map_that_cannot_be_read(
    tmp_path: Path, save_json: Callable[..., Path], content: str, message: str
) -> None:
    path = write(tmp_path / "a.jsonl", *texts("a"))
    with pytest.raises(DataError, match=message):
        load(path, label_map=save_json(content))
    with pytest.raises(DataError, match="no such file"):
        load(path, label_map=tmp_path / "none.json")


@pytest.mark.defect("W21", "W20")
def test_measurements_are_no_classes(tmp_path: Path) -> None:
    halves = write(tmp_path / "halves.jsonl", *texts(*[i / 2 for i in range(2, 11)]))
    assert load(halves).labels == ("1.0", "1.5", "2.0", "2.5", "3.0", "3.5", "4.0", "4.5", "5.0")
    path = write(tmp_path / "a.jsonl", *texts(*[i / 7 for i in range(40)]))
    with pytest.raises(DataError, match="regression is not supported"):
        load(path)


@pytest.mark.defect("W7")
def test_a_number_is_matched_by_value_and_never_by_position(model: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *texts(1, 2, 3))
    with pytest.raises(DataError, match="are unknown to"):
        evaluate(EvalConfig(model=model, data=str(path), device="cpu"))
    relabel(model, ["1.0", "2.0", "3.0"])
    assert evaluate(EvalConfig(model=model, data=str(path), device="cpu")).examples == 3
    zeros = write(tmp_path / "b.jsonl", *texts("01", "02"))
    with pytest.raises(DataError, match=r"are unknown to .*: 01, 02"):
        evaluate(EvalConfig(model=model, data=str(zeros), device="cpu"))


@pytest.mark.defect("M4")
def test_a_message_lists_ten_values_at_most(model: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *texts(*[f"class {'x' * 500} {i}" for i in range(5000)]))
    with pytest.raises(DataError, match="and 4,990 more") as caught:
        evaluate(EvalConfig(model=model, data=str(path), device="cpu"))
    assert len(str(caught.value)) < 2500


# --- places


@pytest.mark.defect("M11")
@pytest.mark.parametrize("kind", ["a file", "no permission"])
def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    cache = tmp_path / "cache"
    if kind == "a file":
        cache.write_text("")
    else:
        cache.mkdir()
        cache.chmod(stat.S_IRUSR | stat.S_IXUSR)
        if os.access(cache, os.W_OK):
            pytest.skip("root may write anywhere")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    with pytest.raises(OutputError, match="HF_DATASETS_CACHE") as caught:
        load(write(tmp_path / "a.jsonl", *texts("a")))
    assert str(cache) in str(caught.value)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    class Growing(FileTable):
        """A file that somebody writes to."""

        def read(self, columns: Columns) -> Any:
            yield from super().read(columns)
            with self.path.open("a") as file:
                file.write('{"text": "new", "label": "a"}\n')

    path = write(tmp_path / "a.jsonl", *texts("a", note="of this test alone"))
    with pytest.raises(DataError, match="changed while it was read"):
        read_table(Growing(path, Reading()), Columns("text", "label", None, "sequence"))
    assert len(load(path).splits["test"]) == 2


def test_what_is_not_used_is_not_read(tmp_path: Path) -> None:
    rows = texts("a", "b", tokens=[{"x": 1}], meta={"deep": [1, None]}, embedding=[0.5, "x"])
    path = write(tmp_path / "a.jsonl", *rows)
    assert list(load(path).splits["test"]["text"]) == ["text 0", "text 1"]
    config = ShrinkConfig(model="sample-base", vocab_from=str(path), output_dir=tmp_path / "small")
    write(path, *[{**row, "label": {"no": "label"}} for row in rows])
    assert shrink(config).vocabulary is not None


@pytest.mark.defect("W15")
@pytest.mark.parametrize("written", ["['Anna', 'Weber']", '["Anna"]', "['a' 'b']"])
def test_lists_written_as_text_are_no_text_and_no_labels(tmp_path: Path, written: str) -> None:
    path = tmp_path / "a.csv"
    quoted = '"' + written.replace('"', '""') + '"'
    path.write_text(f"tokens,label\n{quoted},a\n{quoted},b\n")
    with pytest.raises(DataError, match=r"a\.csv, column 'tokens': these are lists"):
        load_data(DataRequest(data=str(path)), None, purpose="evaluate", labels="unused")
    path.write_text(f"text,label\nx,{quoted}\ny,{quoted}\n")
    with pytest.raises(DataError, match=r"a\.csv, line 2, column 'label': these are lists"):
        load(path)
    path.write_text("text,label\n[laughs],[a]\n[music],[b]\n")
    assert load(path).labels == ("[a]", "[b]")


def test_labels_are_not_needed_where_none_are_used(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write(folder / "train.jsonl", *texts("a", "b", "a", "b"))
    write(folder / "test.jsonl", *texts(None, None))
    assert load(folder, "train", "validation", purpose="train").labels == ("a", "b")
    with pytest.raises(DataError, match=r"test\.jsonl, line 1, column 'label': there is no label"):
        load(folder)
