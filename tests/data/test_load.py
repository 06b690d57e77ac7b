"""Reading, choosing, sampling and tokenising data."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from kdshrink.commands.inputs import data_request
from kdshrink.config.commands import EvalConfig
from kdshrink.data.encoding import Collator, encode, first_tokens
from kdshrink.data.labels import match_labels
from kdshrink.data.languages import find_units, language_of
from kdshrink.data.load import TaskData, load_data
from kdshrink.data.registry import MASSIVE, NAMED, TSM, UNIVERSAL_NER
from kdshrink.data.request import DataRequest, LanguageChoice
from kdshrink.data.sampling import language_codes, stratified_rows
from kdshrink.errors import DataError, KdshrinkError

from ..helpers.models import SHARED
from ..helpers.runner import run


def request(data: object, **options: Any) -> DataRequest:
    return data_request(EvalConfig(model="unused", data=str(data), **options))


def load(data: object, *splits: str, purpose: Any = "evaluate", **options: Any) -> TaskData:
    return load_data(request(data, **options), splits or ("test",), purpose=purpose)


def test_the_registry() -> None:
    assert len(MASSIVE.labels) == len(set(MASSIVE.labels)) == 60
    assert len(MASSIVE.units) == 52
    assert len(TSM.units) == 8
    assert len(UNIVERSAL_NER.units) == 18
    for data in NAMED.values():
        names = [unit.name for unit in data.units]
        assert set(data.unseen) < set(names)
        assert set(data.seen) | set(data.unseen) == set(names)
    trained = {unit.code for unit in UNIVERSAL_NER.units if unit.trains}
    unseen = {unit.code for unit in UNIVERSAL_NER.units if unit.name in UNIVERSAL_NER.unseen}
    assert unseen == {"ceb", "de", "ru", "tl"}
    assert not trained & unseen
    assert find_units("de", UNIVERSAL_NER.units) == ["de_pud"]
    assert find_units("zh-cn", MASSIVE.units) == ["zh-CN"]
    assert {language_of(name) for name in ("de-DE", "german", "de_pud")} == {"de"}


def test_the_sample() -> None:
    data = load("sample", "train", "validation", purpose="train")
    assert data.languages == ("de-DE", "en-US", "es-ES", "ru-RU")
    assert len(data.splits["train"]) == 160
    assert set(data.splits["train"].unique("label")) == set(range(20))
    unseen = load("sample", languages=("unseen",))
    assert unseen.languages == ("nl-NL", "pt-PT", "sv-SE")
    with pytest.raises(DataError, match="no training data in nl-NL"):
        load("sample", "train", purpose="train", languages=("nl",))


def test_languages_by_directory_and_by_column(text_data: Path, tmp_path: Path) -> None:
    data = load(text_data, languages=("es",))
    assert data.splits["test"].unique("language") == ["es"]
    assert data.labels == ("cold", "mild", "warm")
    flat = tmp_path / "flat.csv"
    flat.write_text("body,stars,locale\nsehr gut,5,de\nmuy mal,1,es\nbien,5,es\n")
    data = load(flat, text_column="body", label_column="stars")
    assert data.labels == ("1", "5")
    assert Counter(data.splits["test"]["language"]) == {"de": 1, "es": 2}
    assert load(flat, text_column="body", label_column="stars", languages=("de",)).reference[
        "examples"
    ] == {"test": 1}


def test_labels_are_those_of_all_splits_before_sampling(text_data: Path) -> None:
    path = text_data / "es" / "train.jsonl"
    with path.open("a") as file:
        file.write('{"text": "hielo", "label": "arctic"}\n')
    data = load(text_data, languages=("de",), max_samples=2)
    assert data.labels == ("arctic", "cold", "mild", "warm")


def test_formats_agree(text_data: Path, tmp_path: Path) -> None:
    source = text_data / "de" / "test.jsonl"
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    frame = pd.DataFrame(rows)
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    frame.to_parquet(tmp_path / "a.parquet")
    tables = [load(tmp_path / f"a.{e}").splits["test"] for e in ("csv", "tsv", "parquet")]
    for table in [load(source).splits["test"], *tables]:
        assert list(table["text"]) == [row["text"] for row in rows]
        assert table["label"][:3] == [0, 1, 2]


def test_iob2_and_conll(word_data: Path, tmp_path: Path) -> None:
    data = load(word_data)
    assert data.task == "token"
    assert data.labels == ("B-LOC", "B-PER", "I-PER", "O")
    assert data.splits["test"][0]["text"] == ["Anna", "Weber", "i", "Lisboa", "0"]
    conll = tmp_path / "a.conll"
    conll.write_text("-DOCSTART- O\n\nAnna NNP B-PER\nsings VBZ O\n\nLisboa NNP B-LOC\n")
    table = load(conll).splits["test"]
    assert list(table["text"]) == [["Anna", "sings"], ["Lisboa"]]


def test_held_out_validation_is_always_the_same(text_data: Path) -> None:
    for path in text_data.glob("*/validation.jsonl"):
        path.unlink()
    first, second = (load(text_data, "train", "validation", purpose="train") for _ in range(2))
    assert len(first.splits["validation"]) == 5
    assert list(first.splits["validation"]["text"]) == list(second.splits["validation"]["text"])
    train = set(first.splits["train"]["text"])
    assert not train & set(first.splits["validation"]["text"])


def test_samples_are_the_same_rows_in_every_command() -> None:
    some = load("sample", languages=("de",), max_samples=30)
    again = load("sample", languages=("all",), max_samples=30)
    mine = list(some.splits["test"]["text"])
    codes, names = language_codes(again.splits["test"])
    theirs = again.splits["test"].select(np.flatnonzero(codes == names.index("de-DE")))
    assert mine == list(theirs["text"])
    assert len(set(some.splits["test"]["label"])) > 5  # not the first of the file, of one topic
    train = load("sample", "train", "validation", purpose="train", max_eval_samples=7)
    assert (len(train.splits["train"]), len(train.splits["validation"])) == (160, 28)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 0.5])
def test_fractions_are_stratified(fraction: float) -> None:
    sizes = {("de", 0): 70, ("de", 1): 25, ("de", 2): 5, ("sw", 0): 33, ("sw", 1): 7}
    rows = [key for key, size in sizes.items() for _ in range(size)]
    table = Dataset.from_dict({"language": [r[0] for r in rows], "label": [r[1] for r in rows]})
    chosen = table.select(stratified_rows(table, fraction, labelled=True))
    part = Counter(zip(chosen["language"], chosen["label"], strict=True))
    assert set(part) == set(sizes)
    for key, count in sizes.items():
        assert max(1, int(count * fraction)) <= part[key] <= max(1, int(count * fraction) + 1)
    if fraction >= 0.25:
        assert sum(c for (language, _), c in part.items() if language == "de") == 100 * fraction
        assert sum(c for (language, _), c in part.items() if language == "sw") == 40 * fraction
    again = stratified_rows(table, fraction, labelled=True)
    assert list(chosen["label"]) == list(table.select(again)["label"])


def test_words_are_aligned_by_their_first_piece(
    xlmr_tokenizer: PreTrainedTokenizerFast, word_data: Path
) -> None:
    data = load(word_data, languages=("da",))
    table = data.splits["test"]
    ids = match_labels(data.labels or (), ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])
    encoded = encode(table, xlmr_tokenizer, task="token", max_length=64, label_ids=ids)
    for example, one in zip(table, encoded, strict=True):
        assert len(one["positions"]) == len(example["text"])
        labelled = [i for i, label in enumerate(one["labels"]) if label != -100]
        assert labelled == one["positions"]
        for word, position in zip(example["text"], one["positions"], strict=True):
            piece = xlmr_tokenizer.convert_ids_to_tokens(one["input_ids"][position])
            assert word.startswith(piece.lstrip("▁"))
    short = encode(table, xlmr_tokenizer, task="token", max_length=6, label_ids=ids)[0]
    assert short["length"] == 6
    assert short["positions"][-1] == -1
    assert first_tokens([None, 0, 0, 2, None], 3) == [1, -1, 3]


def test_the_collator_pads() -> None:
    batch = Collator(1)(
        [
            {"input_ids": [0, 5, 2], "labels": [-100, 3, -100]},
            {"input_ids": [0, 2], "labels": [-100, -100]},
        ]
    )
    assert batch["input_ids"].tolist() == [[0, 5, 2], [0, 2, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, 3, -100], [-100, -100, -100]]
    single = Collator(1)([{"input_ids": [0, 2], "labels": 4}])
    assert torch.equal(single["labels"], torch.tensor([4]))
    assert "labels" not in Collator(1)([{"input_ids": [0, 2]}])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"languages": ("xx",)}, "no language 'xx'"),
        ({"languages": ("french",)}, "There are: de, es"),
        ({"text_column": "body"}, "--text-column body"),
        ({"label_column": "stars"}, "It has: text, label"),
        ({"task": "token"}, "plain text"),
    ],
)
def test_what_is_not_there_is_named(text_data: Path, options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(text_data, **options)


def test_bad_files(tmp_path: Path, text_data: Path) -> None:
    cases = {
        "empty.jsonl": "",
        "broken.jsonl": '{"text": "a", "label": \n',
        "odd.iob2": "Anna\n",
        "uneven.jsonl": '{"tokens": ["a", "b"], "ner_tags": ["O"]}\n',
        "nothing.txt": "\n\n",
    }
    for name, content in cases.items():
        path = tmp_path / name
        path.write_text(content)
        with pytest.raises(DataError):
            load_data(request(path), ("test",), purpose="evaluate", labels="optional")
    with pytest.raises(DataError, match="no such file"):
        load(tmp_path / "nowhere.csv")
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match="no data"):
        load(tmp_path / "void")
    for path in text_data.glob("*/test.jsonl"):
        path.unlink()
    with pytest.raises(DataError, match="no test split"):
        load(text_data)


def test_unknown_labels_list_both_sides() -> None:
    with pytest.raises(DataError, match=r"cold[\s\S]*warm, hot[\s\S]*cold, warm"):
        match_labels(["cold", "warm"], ["warm", "hot"])


@pytest.mark.parametrize(
    ("option", "typed"),
    [
        ("--data", ("eval", "sample", "--data")),
        ("--data", ("shrink", "sample", "--init", "calibrated", "--data")),
        ("--vocab-from", ("shrink", "sample", "--vocab-from")),
        ("--vocab-from", ("shrink", "sample", "--init", "calibrated", "--vocab-from")),
        ("--unlabelled", ("distill", "--teacher", "sample", "--data", "sample", "--unlabelled")),
    ],
)
def test_what_is_missing_is_said_of_the_option_that_names_it(
    option: str, typed: tuple[str, ...], tmp_path: Path
) -> None:
    for name, said in (
        ("nowhere.txt", "there is no such file"),
        ("a b", "neither a file or directory here nor a possible Hub id"),
        ("nobody/nothing", ""),  # without a connection
    ):
        done = run(*typed, name, cwd=tmp_path)
        assert done.returncode == 1
        assert f"error: {option} {name}: {said}" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_the_hub_the_ways_out_are_named() -> None:
    with pytest.raises(KdshrinkError, match="--data-dir"):
        load("massive")


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="needs the data of ../shared")
def test_named_data_from_files() -> None:
    massive = SHARED / "data" / "massive"
    data = load("massive", data_dir=massive, languages=("sw", "english"))
    assert data.languages == ("en-US", "sw-KE")
    assert len(data.splits["test"]) == 2 * 2974
    raw = [json.loads(line) for line in (massive / "sw-KE" / "test.jsonl").read_text().splitlines()]
    last = data.splits["test"][-1]
    assert (last["text"], MASSIVE.labels[last["label"]]) == (raw[-1]["utt"], raw[-1]["intent"])

    with pytest.raises(DataError, match="no data of fr-FR"):
        load("massive", data_dir=massive, languages=("fr",))
    words = load("universal-ner", "train", data_dir=SHARED / "data" / "uner", purpose="train")
    assert "de_pud" not in words.languages
    assert set(words.languages) <= {unit.name for unit in UNIVERSAL_NER.units if unit.trains}
    tweets = request("tsm", data_dir=SHARED / "data" / "tsm", languages=("de", "ar"))
    assert load_data(tweets, ("test",), purpose="evaluate").languages == ("arabic", "german")
    unseen = replace(tweets, languages=LanguageChoice(wanted=("unseen",)))
    assert load_data(unseen, ("test",), purpose="evaluate").languages == ("portuguese",)
