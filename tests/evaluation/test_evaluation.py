"""Scores against scikit-learn, seqeval and plain loops; what zero-shot counts as seen."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from seqeval.metrics import f1_score as seqeval_f1
from seqeval.metrics import precision_score, recall_score
from seqeval.scheme import IOB2
from sklearn.metrics import accuracy_score, f1_score
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from kdshrink.commands.evaluate import evaluate, zero_shot
from kdshrink.config.commands import EvalConfig, ZeroShotConfig
from kdshrink.data.encoding import Collator, encode, first_tokens
from kdshrink.data.labels import match_labels
from kdshrink.data.registry import SAMPLE, UNIVERSAL_NER, Task
from kdshrink.errors import DataError, ModelError, OutputError
from kdshrink.evaluation.evaluator import Evaluator, predict
from kdshrink.evaluation.metrics import entity_scores, majority_scores, text_scores
from kdshrink.evaluation.results import EvalResult, LanguageScore

from ..helpers.models import AUTO, LABELS, TAGS, make_config, sample_texts

CPU = torch.device("cpu")


def classifier(
    task: Task, labels: Sequence[str], seed: int = 1, layers: int = 4
) -> PreTrainedModel:
    """A random model whose answers differ from text to text, and from word to word."""
    config = make_config("xlm-roberta", initializer_range=0.5, num_hidden_layers=layers)
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: i for i, name in enumerate(labels)}
    torch.manual_seed(seed)
    return AUTO[task].from_config(config).eval()


def head(model: PreTrainedModel) -> torch.nn.Linear:
    layer = model.classifier
    return layer if isinstance(layer, torch.nn.Linear) else layer.out_proj


def reorder(model: PreTrainedModel, order: Sequence[int]) -> PreTrainedModel:
    """Give the model's classes other ids: the same answers by name."""
    names = [model.config.id2label[i] for i in order]
    with torch.no_grad():
        for tensor in (head(model).weight, head(model).bias):
            tensor.copy_(tensor[list(order)].clone())
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: i for i, name in enumerate(names)}
    return model


def text_table(count: int = 40) -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset.from_dict(
        {
            "text": sample_texts()[:count],
            "label": rng.integers(0, len(LABELS), count).tolist(),
            "language": [("de", "sw", "th")[i % 3] for i in range(count)],
        }
    )


def word_table(count: int = 40) -> Dataset:
    rng = np.random.default_rng(0)
    words = [text.split() for text in sample_texts()[:count]]
    return Dataset.from_dict(
        {
            "text": words,
            "label": [rng.integers(0, len(TAGS), len(one)).tolist() for one in words],
            "language": [("da", "pt")[i % 2] for i in range(count)],
        }
    )


def test_numbers_are_scored_by_value(
    tmp_path: Path, xlmr_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = classifier("sequence", ["1.0", "2.0", "3.0"], layers=2)
    model.save_pretrained(tmp_path / "model")
    xlmr_tokenizer.save_pretrained(tmp_path / "model")
    lines = []
    for text in sample_texts()[:20]:
        batch = xlmr_tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        answer = int(model(**batch).logits.argmax())
        lines.append(json.dumps({"text": text, "label": answer + 1}))
    (tmp_path / "ratings.jsonl").write_text("\n".join(lines))
    config = EvalConfig(model=str(tmp_path / "model"), data=str(tmp_path / "ratings.jsonl"))
    assert evaluate(config).score == 1


@pytest.fixture
def make_evaluator(xlmr_tokenizer: PreTrainedTokenizerFast) -> Callable[..., Evaluator]:
    def make(
        model: PreTrainedModel, task: Task, table: Dataset, max_length: int = 64, **changes: Any
    ) -> Evaluator:
        labels = LABELS if task == "sequence" else TAGS
        names = [model.config.id2label[i] for i in sorted(model.config.id2label)]
        encoded = encode(
            table,
            xlmr_tokenizer,
            task=task,
            max_length=max_length,
            label_ids=match_labels(labels, names),
        )
        return Evaluator(
            table,
            encoded,
            labels=labels,
            model_labels=names,
            task=task,
            collate=Collator(int(xlmr_tokenizer.pad_token_id)),
            **{"batch_size": 8, "device": CPU, **changes},
        )

    return make


@torch.no_grad()
def plain_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    table: Dataset,
    task: Task,
    max_length: int = 64,
) -> tuple[list[Any], list[Any]]:
    """Names and probabilities, a text at a time, without padding or kdshrink; cut off: O and 0."""
    names = model.config.id2label
    answers: list[Any] = []
    probabilities: list[Any] = []
    for text in table["text"]:
        inputs = tokenizer(
            text,
            is_split_into_words=task == "token",
            truncation=True,
            max_length=max_length,
            return_tensors="pt",
        )
        logits = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        ).logits
        share = logits[0].softmax(-1)
        if task == "sequence":
            answers.append(names[int(share.argmax())])
            probabilities.append(float(share.max()))
            continue
        word_ids = inputs.word_ids()
        at = [word_ids.index(w) if w in word_ids else None for w in range(len(text))]
        answers.append(["O" if i is None else names[int(share[i].argmax())] for i in at])
        probabilities.append([0.0 if i is None else float(share[i].max()) for i in at])
    return answers, probabilities


# Metrics


@pytest.mark.parametrize("seed", range(5))
def test_text_scores_equal_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gold = rng.choice(["a", "b", "c", "never predicted"], 50).tolist()
    predicted = rng.choice(["a", "b", "c", "never right"], 50).tolist()
    scores = text_scores(gold, predicted)
    assert scores.score == pytest.approx(f1_score(gold, predicted, average="macro"))
    assert scores.details == {"accuracy": accuracy_score(gold, predicted)}
    # By hand, over every class on either side.
    for name in {*gold, *predicted}:
        right = sum(g == p == name for g, p in zip(gold, predicted, strict=True))
        f1 = 2 * right / (gold.count(name) + predicted.count(name))
        assert scores.per_class[name] == pytest.approx(f1)
    assert set(scores.per_class) == {*gold, *predicted}
    assert type(scores.score) is float


@pytest.mark.parametrize("seed", range(5))
def test_entity_scores_equal_seqeval(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gold = [rng.choice(TAGS, length).tolist() for length in rng.integers(1, 9, 30)]
    predicted = [rng.choice(TAGS, len(tags)).tolist() for tags in gold]
    scores = entity_scores(gold, predicted)
    assert scores.score == pytest.approx(seqeval_f1(gold, predicted))
    assert scores.details["precision"] == pytest.approx(precision_score(gold, predicted))
    assert scores.details["recall"] == pytest.approx(recall_score(gold, predicted))
    assert set(scores.per_class) == {"PER", "LOC"}
    assert json.loads(json.dumps([scores.score, *scores.details.values()]))


def test_entity_scores_use_the_default_mode_not_strict_iob2() -> None:
    gold, predicted = [["B-PER", "O"]], [["I-PER", "O"]]
    assert entity_scores(gold, predicted).score == 1.0
    assert seqeval_f1(gold, predicted, mode="strict", scheme=IOB2) == 0.0


@pytest.mark.parametrize("gold", [[["O", "O"]], [[]], [["O"], []]])
def test_sentences_without_entities_score_zero_silently(gold: list[list[str]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = entity_scores(gold, gold)
    assert (scores.score, scores.details) == (0.0, {"precision": 0.0, "recall": 0.0})
    assert scores.per_class == {}


def test_majority_scores_of_texts() -> None:
    gold = ["a"] * 5 + ["b"] * 3 + ["c"] * 2
    score, accuracy = majority_scores(gold, "sequence")
    assert score == pytest.approx((2 * 5 / (5 + 10) + 0 + 0) / 3)
    assert accuracy == 0.5


def test_majority_scores_of_words() -> None:
    gold = [["B-LOC", "O", "O"], ["B-PER", "O", "B-LOC"], ["O", "O", "O", "B-LOC"]]
    score, accuracy = majority_scores(gold, "token")
    # Each B-LOC begins an entity of its own: 10 are answered, 3 of 4 are found.
    assert score == pytest.approx(2 * 3 / (10 + 4))
    tags = [tag for tags in gold for tag in tags]
    assert accuracy == pytest.approx(Counter(tags)["O"] / len(tags))
    assert majority_scores([["O", "O"]], "token") == (0.0, 1.0)


# Predicting


@pytest.mark.parametrize("task", ["sequence", "token"])
@pytest.mark.parametrize("batch_size", [1, 7, 64, None])
def test_answers_equal_a_plain_loop_whatever_the_batch(
    task: Task,
    batch_size: int | None,
    make_evaluator: Callable[..., Evaluator],
    xlmr_tokenizer: PreTrainedTokenizerFast,
) -> None:
    table = text_table() if task == "sequence" else word_table()
    model = classifier(task, LABELS if task == "sequence" else TAGS)
    expected, shares = plain_answers(model, xlmr_tokenizer, table, task)
    evaluator = make_evaluator(model, task, table, batch_size=batch_size)
    predictions = evaluator.predict(model)
    assert evaluator.predicted(predictions) == expected
    flat = shares if task == "sequence" else [share for one in shares for share in one]
    np.testing.assert_allclose(predictions.probabilities, flat, atol=1e-5)
    assert predictions.probabilities.dtype == np.float32
    # Or the comparison would hold for a model that always says the same.
    assert len(set(expected if task == "sequence" else chain.from_iterable(expected))) > 1


@pytest.mark.parametrize("task", ["sequence", "token"])
def test_scores_do_not_depend_on_the_order_of_examples(
    task: Task, make_evaluator: Callable[..., Evaluator]
) -> None:
    table = text_table() if task == "sequence" else word_table()
    model = classifier(task, LABELS if task == "sequence" else TAGS)
    result = make_evaluator(model, task, table).score(model, per_class=True)
    shuffled = make_evaluator(model, task, table.shuffle(seed=3)).score(model, per_class=True)
    assert shuffled.score == pytest.approx(result.score)
    assert shuffled.details == pytest.approx(result.details)
    assert shuffled.per_class == pytest.approx(result.per_class)
    by_language = {name: row.score for name, row in result.per_language.items()}
    assert {n: r.score for n, r in shuffled.per_language.items()} == pytest.approx(by_language)


def test_modes_are_restored_module_by_module(make_evaluator: Callable[..., Evaluator]) -> None:
    model = classifier("sequence", LABELS).train()
    model.roberta.embeddings.eval()
    before = [module.training for module in model.modules()]
    evaluator = make_evaluator(model, "sequence", text_table(8))
    first, second = evaluator.predict(model), evaluator.predict(model)
    assert [module.training for module in model.modules()] == before
    # Dropout was off.
    np.testing.assert_array_equal(first.probabilities, second.probabilities)

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluator.predict(model, fail)
    assert [module.training for module in model.modules()] == before


def test_progress_counts_examples(make_evaluator: Callable[..., Evaluator]) -> None:
    model = classifier("sequence", LABELS)
    told: list[tuple[int, int | None]] = []
    make_evaluator(model, "sequence", text_table(20)).predict(
        model, lambda what, done, total, figures: told.append((done, total))
    )
    assert told == [(4, 20), (12, 20), (20, 20)]


def test_predict_needs_no_labels(xlmr_tokenizer: PreTrainedTokenizerFast) -> None:
    table = text_table(8).remove_columns("label")
    encoded = encode(table, xlmr_tokenizer, task="sequence", max_length=64, label_ids=None)
    predictions = predict(
        classifier("sequence", LABELS),
        encoded,
        task="sequence",
        collate=Collator(int(xlmr_tokenizer.pad_token_id)),
        batch_size=4,
        device=CPU,
    )
    assert predictions.classes.shape == (8,)
    assert predictions.bounds is None


# Scoring


def test_scores_of_texts_pooled_by_language_and_their_mean(
    make_evaluator: Callable[..., Evaluator], xlmr_tokenizer: PreTrainedTokenizerFast
) -> None:
    table, model = text_table(), classifier("sequence", LABELS)
    answers, _ = plain_answers(model, xlmr_tokenizer, table, "sequence")
    gold = [LABELS[i] for i in table["label"]]
    result = make_evaluator(model, "sequence", table).score(model)
    assert result.score == pytest.approx(f1_score(gold, answers, average="macro"))
    assert result.details["accuracy"] == pytest.approx(accuracy_score(gold, answers))
    for language in ("de", "sw", "th"):
        rows = [i for i, name in enumerate(table["language"]) if name == language]
        expected = f1_score([gold[i] for i in rows], [answers[i] for i in rows], average="macro")
        assert result.per_language[language].score == pytest.approx(expected)
        assert result.per_language[language].examples == len(rows)
    means = [row.score for row in result.per_language.values()]
    assert result.mean_over_languages == pytest.approx(sum(means) / 3)
    assert (result.examples, result.cut_off_words, result.per_class) == (40, None, None)


@pytest.mark.parametrize("task", ["sequence", "token"])
def test_labels_are_matched_by_name(task: Task, make_evaluator: Callable[..., Evaluator]) -> None:
    table = text_table() if task == "sequence" else word_table()
    labels = LABELS if task == "sequence" else TAGS
    model = classifier(task, labels)
    expected = make_evaluator(model, task, table).score(model, per_class=True)
    other = reorder(classifier(task, labels), list(range(len(labels)))[::-1])
    assert other.config.id2label[0] == labels[-1]
    result = make_evaluator(other, task, table).score(other, per_class=True)
    assert result.score == expected.score
    assert result.details == expected.details
    assert result.per_class == expected.per_class


def test_a_class_that_the_data_lacks_is_wrong_under_its_own_name(
    make_evaluator: Callable[..., Evaluator],
) -> None:
    table = text_table()
    model = classifier("sequence", ["stormy", *LABELS])
    with torch.no_grad():
        head(model).bias[0] = 1e4
    result = make_evaluator(model, "sequence", table).score(model, per_class=True)
    assert (result.score, result.details["accuracy"]) == (0.0, 0.0)
    assert result.per_class is not None
    assert set(result.per_class) == {"stormy", *LABELS}


def test_words_that_are_cut_off_are_counted_as_missed(
    make_evaluator: Callable[..., Evaluator], xlmr_tokenizer: PreTrainedTokenizerFast
) -> None:
    table, model = word_table(), classifier("token", TAGS)
    gold = [[TAGS[i] for i in tags] for tags in table["label"]]
    answers, _ = plain_answers(model, xlmr_tokenizer, table, "token", max_length=9)
    cut = 0
    for words in table["text"]:
        whole = xlmr_tokenizer(words, is_split_into_words=True, truncation=True, max_length=9)
        cut += first_tokens(whole.word_ids(), len(words)).count(-1)
    evaluator = make_evaluator(model, "token", table, max_length=9)
    result = evaluator.score(model)
    assert result.cut_off_words == cut > 0
    assert result.score == pytest.approx(seqeval_f1(gold, answers))
    assert result.details["recall"] == pytest.approx(recall_score(gold, answers))
    # Answered rightly wherever it was read, a model still misses the entities that were cut off.
    read = evaluator.predict(model)
    at = [read.classes[b:e] for b, e in zip(read.bounds, read.bounds[1:], strict=False)]
    perfect = np.concatenate(
        [np.where(kept < 0, -1, tags) for kept, tags in zip(at, table["label"], strict=True)]
    )
    best = evaluator.score_predictions(replace(read, classes=perfect), 1.0)
    assert 0 < best.details["recall"] < 1
    whole = make_evaluator(model, "token", table).score(model)
    assert whole.cut_off_words == 0


def test_a_part_scores_as_its_languages_do(make_evaluator: Callable[..., Evaluator]) -> None:
    model = classifier("sequence", LABELS)
    evaluator = make_evaluator(model, "sequence", text_table())
    part = evaluator.part(["sw"]).score(model)
    assert list(part.per_language) == ["sw"]
    assert part.score == evaluator.score(model).per_language["sw"].score


@pytest.mark.parametrize(
    ("metric", "details", "said"),
    [
        ("macro_f1", {"accuracy": 0.5}, "averaging"),
        ("entity_f1", {"precision": 0.25, "recall": 0.5}, "mode"),
    ],
)
def test_result_as_json(metric: str, details: dict[str, float], said: str) -> None:
    result = EvalResult(
        metric=metric,
        score=0.5,
        details=details,
        mean_over_languages=0.5,
        per_language={"de": LanguageScore(0.5, 3)},
        examples=3,
        examples_per_second=12.0,
        cut_off_words=1 if metric == "entity_f1" else None,
        split="test",
    )
    content = result.to_dict()
    expected = {"metric", "score", *details, said, "mean_over_languages", "per_language"}
    expected |= {"examples", "examples_per_second", "split"}
    if metric == "entity_f1":
        expected |= {"cut_off_words"}
    assert set(content) == expected
    assert content["per_language"] == {"de": {"score": 0.5, "examples": 3}}
    assert EvalResult.from_dict(json.loads(json.dumps(content))) == result


# evaluate()


@pytest.fixture
def save(tmp_path: Path, xlmr_tokenizer: PreTrainedTokenizerFast) -> Callable[..., str]:
    def write(model: PreTrainedModel, record: dict[str, Any] | None = None) -> str:
        folder = tmp_path / "model"
        model.save_pretrained(folder)
        xlmr_tokenizer.save_pretrained(folder)
        if record is not None:
            (folder / "kdshrink.json").write_text(json.dumps(record))
        return str(folder)

    return write


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_evaluate_texts_with_predictions(
    save: Callable[..., str],
    text_data: Path,
    tmp_path: Path,
    xlmr_tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = reorder(classifier("sequence", LABELS), [2, 0, 1])
    path = tmp_path / "answers.jsonl"
    result = evaluate(
        EvalConfig(
            model=save(model), data=str(text_data), device="cpu", predictions=path, per_class=True
        )
    )
    rows = [
        {**json.loads(line), "language": language}
        for language in ("de", "es")
        for line in (text_data / language / "test.jsonl").read_text().splitlines()
    ]
    table = Dataset.from_list(rows)
    answers, shares = plain_answers(model, xlmr_tokenizer, table, "sequence")
    lines = read_lines(path)
    assert [line["language"] for line in lines] == table["language"][:]
    assert [line["gold"] for line in lines] == table["label"][:]
    assert [line["predicted"] for line in lines] == answers
    assert [line["probability"] for line in lines] == pytest.approx(shares, abs=1e-5)
    assert result.score == pytest.approx(f1_score(table["label"][:], answers, average="macro"))
    assert list(result.per_class or ()) == sorted({*table["label"][:], *answers})
    assert result.split == "test"
    assert not list(tmp_path.glob(".*.part"))


def test_evaluate_words_with_predictions(
    save: Callable[..., str],
    word_data: Path,
    tmp_path: Path,
    xlmr_tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = classifier("token", TAGS)
    path = tmp_path / "answers.jsonl"
    result = evaluate(
        EvalConfig(
            model=save(model), data=str(word_data), device="cpu", predictions=path, max_length=8
        )
    )
    table = Dataset.from_dict(
        {"text": [["Anna", "Weber", "i", "Lisboa", str(i)] for _ in ("da", "pt") for i in range(8)]}
    )
    answers, shares = plain_answers(model, xlmr_tokenizer, table, "token", max_length=8)
    lines = read_lines(path)
    assert [line["predicted"] for line in lines] == answers
    assert [len(line["probability"]) for line in lines] == [5] * 16
    for line, expected in zip(lines, shares, strict=True):
        assert line["probability"] == pytest.approx(expected, abs=1e-5)
        assert line["gold"] == ["B-PER", "I-PER", "O", "B-LOC", "O"]
    assert result.cut_off_words == sum(share == 0 for one in shares for share in one) > 0
    gold = [line["gold"] for line in lines]
    assert result.score == pytest.approx(seqeval_f1(gold, answers))
    assert result.per_class is None


def test_what_can_be_checked_is_checked_before_the_weights_are_read(
    save: Callable[..., str], text_data: Path, word_data: Path, tmp_path: Path
) -> None:
    folder = save(classifier("sequence", ["wet", "dry"]))
    weights = Path(folder) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    config = EvalConfig(model=folder, data=str(text_data), device="cpu")
    with pytest.raises(OutputError, match="no directory"):
        evaluate(replace(config, predictions=tmp_path / "missing" / "answers.jsonl"))
    with pytest.raises(OutputError, match="is a directory"):
        evaluate(replace(config, predictions=tmp_path))
    with pytest.raises(DataError, match="cold, mild, warm") as caught:
        evaluate(config)
    assert "wet, dry" in str(caught.value)
    with pytest.raises(ModelError, match="token classification"):
        evaluate(replace(config, data=str(word_data)))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_predictions_on_a_full_disk_leave_what_was_there(
    save: Callable[..., str], text_data: Path, tmp_path: Path
) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text("of before\n")
    (tmp_path / ".answers.jsonl.part").symlink_to("/dev/full")
    model = save(classifier("sequence", LABELS))
    options: dict[str, Any] = {"data": str(text_data), "device": "cpu", "overwrite": True}
    with pytest.raises(OutputError, match="disk is full"):
        evaluate(EvalConfig(model=model, predictions=path, **options))
    assert path.read_text() == "of before\n"
    assert sorted(file.name for file in tmp_path.glob("*answers*")) == ["answers.jsonl"]


# zero_shot()

NER = UNIVERSAL_NER.labels


@pytest.fixture
def treebanks(tmp_path: Path) -> Path:
    """A copy of universal-ner with few sentences."""
    folder = tmp_path / "uner"
    for i, name in enumerate(("da_ddt", "de_pud", "en_ewt", "en_pud", "sr_set")):
        path = folder / name / "test.iob2"
        path.parent.mkdir(parents=True)
        place = "1\tLisboa\tB-LOC\n2\ter\tO\n3\there\tO\n"
        person = "1\tAnna\tB-PER\n2\tWeber\tI-PER\n3\tsov\tO\n"
        path.write_text("\n".join([place, person, place][: 2 + i % 2]))
    return folder


@pytest.fixture
def ner_config(save: Callable[..., str], treebanks: Path) -> Callable[..., ZeroShotConfig]:
    def make(trained: Sequence[str] | None, **options: Any) -> ZeroShotConfig:
        record = None if trained is None else {"training_languages": list(trained)}
        return ZeroShotConfig(
            model=save(classifier("token", NER), record),
            data="universal-ner",
            data_dir=treebanks,
            device="cpu",
            **options,
        )

    return make


def groups(config: ZeroShotConfig) -> tuple[list[str], list[str], str]:
    result = zero_shot(config)
    seen = [] if result.seen is None else list(result.seen.per_language)
    return seen, list(result.unseen.per_language), result.seen_from


def test_a_language_is_seen_in_whichever_treebank(ner_config: Callable[..., Any]) -> None:
    seen, unseen, said_by = groups(ner_config(["en_ewt", "da_ddt"]))
    assert (seen, unseen) == (["da_ddt", "en_ewt", "en_pud"], ["de_pud", "sr_set"])
    assert said_by == "kdshrink.json"


def test_names_of_another_data_set_are_compared_by_language(
    ner_config: Callable[..., Any],
) -> None:
    seen, unseen, _ = groups(ner_config(["en-US", "german"]))
    assert (seen, unseen) == (["de_pud", "en_ewt", "en_pud"], ["da_ddt", "sr_set"])


def test_the_seen_flag_comes_before_the_record(ner_config: Callable[..., Any]) -> None:
    config = ner_config(["en_ewt"], seen_languages=("da",))
    assert groups(config) == (
        ["da_ddt"],
        ["de_pud", "en_ewt", "en_pud", "sr_set"],
        "--seen-languages",
    )
    both = replace(config, unseen_languages=("sr_set",))
    assert groups(both) == (["da_ddt"], ["sr_set"], "--seen-languages")


def test_the_unseen_flag_does_not_make_the_rest_seen(
    ner_config: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    config = ner_config(["en_ewt", "da_ddt"], unseen_languages=("de_pud",))
    assert groups(config) == (["da_ddt", "en_ewt", "en_pud"], ["de_pud"], "kdshrink.json")
    assert not caplog.records
    seen, unseen, _ = groups(replace(config, unseen_languages=("en_pud", "sr_set")))
    assert (seen, unseen) == (["da_ddt", "en_ewt"], ["en_pud", "sr_set"])
    assert "was trained on en_pud" in caplog.text


def test_without_a_record_the_data_sets_list_serves(
    ner_config: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kdshrink")
    seen, unseen, said_by = groups(ner_config(None))
    assert (seen, unseen) == (["da_ddt", "en_ewt", "en_pud", "sr_set"], ["de_pud"])
    assert said_by == "the data set's list"
    assert UNIVERSAL_NER.lists_note in caplog.text
    assert groups(ner_config(None, unseen_languages=("sr",)))[2] == "--unseen-languages"


def test_languages_restrict_both_groups(ner_config: Callable[..., Any]) -> None:
    config = ner_config(["en_ewt"], languages=("en_pud", "sr_set"))
    assert groups(config)[:2] == (["en_pud"], ["sr_set"])
    nothing_seen = zero_shot(replace(config, languages=("sr_set",)))
    assert nothing_seen.seen is None
    assert nothing_seen.gap is None
    assert json.loads(json.dumps(nothing_seen.to_dict()))["seen"] is None


def test_nothing_unseen_is_an_error_told_before_the_weights_are_read(
    ner_config: Callable[..., Any],
) -> None:
    config = ner_config(["en", "da"], languages=("en_ewt", "da_ddt"))
    weights = Path(config.model) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(
        DataError, match=r"unseen according to kdshrink\.json: da_ddt, en_ewt"
    ) as caught:
        zero_shot(config)
    assert "--unseen-languages" in str(caught.value)


def test_own_names_that_only_look_alike_stay_apart(
    save: Callable[..., str], text_data: Path
) -> None:
    (text_data / "de").rename(text_data / "dialect-north")
    (text_data / "es").rename(text_data / "dialect-south")
    model = save(classifier("sequence", LABELS), {"training_languages": ["dialect-north"]})
    config = ZeroShotConfig(model=model, data=str(text_data), device="cpu")
    assert groups(config)[:2] == (["dialect-north"], ["dialect-south"])


def test_zero_shot_of_an_untrained_student_on_the_sample(save: Callable[..., str]) -> None:
    model = save(classifier("sequence", SAMPLE.labels), {"training_languages": ["de-DE", "en-US"]})
    options: dict[str, Any] = {"model": model, "data": "sample", "device": "cpu"}
    options |= {"max_eval_samples": 30}
    result = zero_shot(ZeroShotConfig(**options))
    unseen = ("es-ES", "ru-RU", "nl-NL", "pt-PT", "sv-SE")
    assert set(result.unseen.per_language) == set(unseen)
    alone = evaluate(EvalConfig(**options, languages=unseen))
    assert result.unseen.score == pytest.approx(alone.score)
    assert result.unseen.mean_over_languages == pytest.approx(alone.mean_over_languages)
    trained = evaluate(EvalConfig(**options, languages=("de", "en")))
    assert result.seen is not None
    assert result.seen.score == pytest.approx(trained.score)
    assert result.gap == pytest.approx(trained.score - alone.score)
    content = result.to_dict()
    assert set(content) == {
        "metric",
        "seen",
        "unseen",
        "gap",
        "random_score",
        "majority_accuracy",
        "seen_from",
    }
    assert content["metric"] == "macro_f1"
    assert content["unseen"]["examples"] == alone.examples


def test_majority_scores_are_those_of_the_unseen_languages(
    save: Callable[..., str], tmp_path: Path
) -> None:
    counts = {"de": {"cold": 6, "mild": 1}, "sw": {"mild": 2, "warm": 4, "cold": 2}}
    for language, labels in counts.items():
        path = tmp_path / "own" / language / "test.jsonl"
        path.parent.mkdir(parents=True)
        rows = [
            {"text": f"{name} {i}", "label": name} for name, n in labels.items() for i in range(n)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = save(classifier("sequence", LABELS), {"training_languages": ["de"]})
    result = zero_shot(ZeroShotConfig(model=model, data=str(tmp_path / "own"), device="cpu"))
    assert result.majority_accuracy == pytest.approx(4 / 8)
    assert result.random_score == pytest.approx((2 * 4 / (4 + 8)) / 3)


SHARED = """
import sys
import numpy as np, torch
from datasets import Dataset
from kdshrink import EvalConfig
from kdshrink.data.encoding import Collator, encode
from kdshrink.evaluation.evaluator import predict
from kdshrink.models.loading import load_classifier
from kdshrink.models.source import find_model

torch.set_num_threads(1)
model, data = sys.argv[1:]
loaded = load_classifier(find_model(model), "token")
encoded = encode(
    Dataset.load_from_disk(data), loaded.tokenizer, task="token", max_length=12, label_ids=None
)


def answers():
    calls = []
    handle = loaded.model.register_forward_hook(lambda *_: calls.append(1))
    cpu = torch.device("cpu")
    made = predict(
        loaded.model, encoded, task="token", collate=Collator(1), batch_size=4, device=cpu
    )
    handle.remove()
    return made, len(calls)


alone, all_batches = answers()
torch.distributed.init_process_group("gloo")
shared, batches = answers()
assert 0 < batches <= (all_batches + 1) // 2 < all_batches, (batches, all_batches)
assert np.array_equal(alone.classes, shared.classes) and (alone.classes < 0).any()
assert np.array_equal(alone.probabilities, shared.probabilities)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_processes_share_an_evaluation(
    tmp_path: Path, xlmr_tokenizer: PreTrainedTokenizerFast
) -> None:
    classifier("token", TAGS).save_pretrained(tmp_path / "model")
    xlmr_tokenizer.save_pretrained(tmp_path / "model")
    word_table().save_to_disk(tmp_path / "data")
    (tmp_path / "script.py").write_text(SHARED)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    paths = [str(tmp_path / name) for name in ("script.py", "model", "data")]
    subprocess.run(
        [*launcher, "--nproc_per_node", "2", *paths],
        check=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
