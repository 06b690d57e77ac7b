"""The model card: valid for huggingface_hub, true to its record, and readable."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub import ModelCard

from kdshrink.publishing.card import hub_base, model_card

COMMIT = "c" * 40
SCORES = {"de_pud": {"score": 0.5, "examples": 10}, "da_ddt": {"score": 0.75, "examples": 20}}


def record(**changes: Any) -> dict[str, Any]:
    """The record of a distilled tagger of words."""
    teacher = {"model": "org/teacher@v1", "revision": COMMIT}
    size = {"layers": 2, "hidden_size": 8, "vocabulary": 100, "parameters": 1000, "bytes": 4000}
    return {
        "kdshrink_version": "9.9",
        "command": "distill",
        "config": {"weights": {}},
        "versions": {"torch": "2", "transformers": "5"},
        "device": "cpu",
        "licences": [{"license": "mit"}],
        "chain": [
            {
                "command": "kdshrink distill --teacher org/teacher@v1",
                "models": [teacher],
                "data": {"name": "universal-ner", "hub_id": "a/b", "revision": "d" * 40},
            }
        ],
        "teacher": teacher,
        "start": "from-teacher",
        "sizes": {"the teacher": size, "this model": size},
        "layers": [2, 4],
        "of_layers": 4,
        "task": "token",
        "data": {"name": "universal-ner", "hub_id": "a/b", "languages": list(SCORES)},
        "training_languages": list(SCORES),
        "results": {
            "metric": "entity_f1",
            "score": 0.625,
            "best_step": 3,
            "steps": 9,
            "per_language": SCORES,
        },
        **changes,
    }


def test_metadata_and_model_index() -> None:
    card = ModelCard(model_card("org/tagger", record()))
    again = ModelCard(f"---\n{card.data.to_yaml()}\n---\n{card.text}")
    assert again.data.to_dict() == card.data.to_dict()
    data = card.data
    assert (data.base_model, data.base_model_relation) == ("org/teacher", "finetune")
    assert (data.license, data.language, data.datasets) == ("mit", ["da", "de"], ["a/b"])
    assert (data.pipeline_tag, data.model_name) == ("token-classification", "tagger")
    found = {(r.dataset_config, r.dataset_split): r.metric_value for r in data.eval_results}
    assert found == {
        (None, "validation"): 0.625,
        ("de_pud", "validation"): 0.5,
        ("da_ddt", "validation"): 0.75,
    }
    for part in (
        'pipeline("token-classification", model="org/tagger"',
        "| da_ddt | 0.7500 | 20 |",
        "layers 2 and 4 of the teacher's 4",
        "$ kdshrink distill --teacher org/teacher@v1",
        f"`org/teacher@v1` is commit `{COMMIT}`",
        "[org/teacher](https://huggingface.co/org/teacher)",
        "zh_gsd",
        "## Limits",
    ):
        assert part in card.text
    assert "None" not in card.text


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"licences": [{"license": "mit"}, {"license": "apache-2.0"}], "chain": []},
        {"command": "shrink", "data": None, "training_languages": [], "results": {}},
    ],
)
def test_huggingface_hub_writes_a_card_it_has_read_as_it_was(changes: dict[str, Any]) -> None:
    text = model_card("org/tagger", record(**changes))
    assert str(ModelCard(text)) == text


def test_the_test_set_s_scores_come_beside_the_teacher_s() -> None:
    group = {"metric": "entity_f1", "score": 0.5, "per_language": {"da_ddt": SCORES["da_ddt"]}}
    models = {
        name: {"parameters": 1, "seen": group, "unseen": None}
        for name in ("teacher", "distilled student")
    }
    results = record()["results"] | {"comparison": {"metric": "entity_f1", "models": models}}
    card = ModelCard(model_card("m", record(results=results)))
    assert "| da_ddt (trained on) | 0.7500 | 0.7500 |" in card.text
    assert {r.dataset_split for r in card.data.eval_results} == {"validation", "test"}


@pytest.mark.parametrize(
    ("licences", "expected", "text"),
    [
        ([], None, "names no licence"),
        (
            [{"license": "other", "license_name": "tea", "license_link": "https://x.org"}],
            "other",
            "tea, as named",
        ),
        (
            [{"license": "mit"}, {"license": "apache-2.0"}],
            ["mit", "apache-2.0"],
            "mit and apache-2.0",
        ),
    ],
)
def test_licences_are_those_of_the_sources(
    licences: list[dict[str, str]], expected: object, text: str
) -> None:
    card = ModelCard(model_card("m", record(licences=licences)))
    assert card.data.license == expected
    assert text in card.text
    if len(licences) == 1:
        assert (card.data.license_name, card.data.license_link) == ("tea", "https://x.org")


def test_what_was_matched_is_what_had_a_weight() -> None:
    weights = {"attention": 0.0, "embedding": 0.0, "task": 0.0}
    text = ModelCard(model_card("m", record(config={"weights": weights}))).text
    assert "The teacher's hidden states and logits were matched; no label was used" in text


def test_the_base_is_the_nearest_model_on_the_hub() -> None:
    local = {"model": "./teacher", "revision": None}
    assert hub_base(record(teacher=local)) == "org/teacher"
    assert hub_base(record(teacher=local, chain=[])) is None
    card = ModelCard(model_card("m", record(teacher=local, chain=[])))
    assert card.data.base_model is None
    assert "base_model_relation" not in card.data.to_dict()
