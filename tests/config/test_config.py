"""The configs: what they refuse, and that the command line can be made from them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kdshrink.config.commands import (
    CompareConfig,
    DistillConfig,
    EvalConfig,
    FinetuneConfig,
    PushConfig,
    ShrinkConfig,
    ZeroShotConfig,
)
from kdshrink.config.fields import LOSS_TERMS, comma_list, weight_mapping
from kdshrink.errors import UsageError

REQUIRED: dict[type, dict[str, Any]] = {
    FinetuneConfig: {"model": "m", "data": "massive"},
    ShrinkConfig: {"model": "m"},
    DistillConfig: {"teacher": "t", "data": "massive"},
    EvalConfig: {"model": "m", "data": "massive"},
    ZeroShotConfig: {"model": "m", "data": "massive"},
    CompareConfig: {"models": ("a", "b"), "data": "massive"},
}
NAN, INF = float("nan"), float("inf")
BAD = {
    "seed": [-1, 2**32, 0.5, True],
    "device": ["mps", "meta", "xpu", "cuda:-1", "cuda:", "cpu:0", "CUDA", "nonsense", "cuda:٣"],
    "train_fraction": [0, -0.1, 1.5, NAN, "1"],
    "max_samples": [0, -1, 2**31, 1.5],
    "max_eval_samples": [0],
    "max_length": [2, 2**31],
    "languages": [(), ("",)],
    "text_column": ["", " "],
    "revision": ["", "a\0b", "\udcff"],
    "token": ["", "hf_a b", "hf_a\n", "hf_größe"],
    "split": ["", "../x", "a b", "-x"],
    "report_to": [""],
    "init": ["magic"],
    "task": ["words"],
    "trust_remote_code": ["yes"],
    "batch_size": [0],
    "max_steps": [0, 2**31],
    "num_train_epochs": [0, NAN, INF],
    "learning_rate": [0, -1e-5, NAN, INF],
    "gradient_accumulation_steps": [0],
    "warmup_steps": [-1, 0.1],
    "weight_decay": [-0.1, NAN, INF],
    "dropout": [-0.1, 1, NAN],
    "eval_steps": [0],
    "save_steps": [0],
    "logging_steps": [0],
    "save_total_limit": [0],
    "early_stopping_patience": [0],
    "layers": [0],
    "hidden_size": [0],
    "intermediate_size": [0],
    "attention_heads": [0],
    "temperature": [0, -1, NAN, INF],
    "weights": [{"atention": 1.0}, {"hidden": -1.0}, {"task": NAN}, {"task": INF}, {"task": "1"}],
    "vocab_size": [0],
    "vocab_min_count": [0],
    "calibration_samples": [0],
    "threads": [0, 1025, 1.5],
    "baseline": ["", "a\0b"],
    "calibration_copies": [-0.5, 11.0, NAN],
}


@pytest.mark.parametrize("config_class", REQUIRED)
def test_a_command_line_can_be_made_of_every_field(config_class: type) -> None:
    config = config_class(**REQUIRED[config_class])
    for item in dataclasses.fields(config):
        help_text = item.metadata["help"]
        assert len(help_text) > 10, item.name
        assert help_text.endswith(".")
        for flag in item.metadata["flags"]:
            assert re.fullmatch(r"-[a-z]|--[a-z0-9]+(-[a-z0-9]+)*", flag), flag
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.revision = "main"
    with pytest.raises(TypeError):
        config_class()


@pytest.mark.defect("T15", "M6")
@pytest.mark.parametrize(
    ("config_class", "name", "value"),
    [
        (config_class, item.name, value)
        for config_class in REQUIRED
        for item in dataclasses.fields(config_class)
        for value in BAD.get(item.name, [])
    ],
)
def test_a_bad_value_is_refused_by_every_command_and_its_flag_named(
    config_class: type, name: str, value: object
) -> None:
    flag = "--weight" if name == "weights" else "--" + name.replace("_", "-")
    with pytest.raises(UsageError, match=rf"^{flag}\b") as caught:
        config_class(**REQUIRED[config_class], **{name: value})
    assert len(str(caught.value).splitlines()) <= 3
    assert name != "token" or "hf_" not in str(caught.value)


def test_numbers_of_numpy_and_whole_numbers_for_shares_are_taken() -> None:
    config = FinetuneConfig(
        model="m", data="d", seed=np.int64(7), learning_rate=np.float32(1e-3), train_fraction=1
    )
    assert (config.seed, config.train_fraction) == (7, 1)
    with pytest.raises(UsageError, match=r"^--learning-rate inf"):
        FinetuneConfig(model="m", data="d", learning_rate=np.float32("inf"))


def test_a_value_is_shown_on_one_line_and_cut() -> None:
    with pytest.raises(UsageError) as caught:
        EvalConfig(model="m", data="d", device="x\n" * 1000)
    assert len(str(caught.value).splitlines()) == 2
    assert len(str(caught.value)) < 250


@pytest.mark.defect("T15")
@settings(max_examples=300, deadline=None)
@example(name="a" * 92 + ".git/0")
@example(name="a" * 97 + "/0")
@given(name=st.one_of(st.text("a1_-./é \n", max_size=8), st.from_regex(r"[a-z-.]{90,100}(\.git)?")))
def test_a_name_on_the_hub_is_what_its_client_takes(name: str) -> None:
    try:
        validate_repo_id(name)
        possible = True
    except HFValidationError:
        possible = False
    if possible:
        assert PushConfig(directory=Path("d"), hub_model_id=name).hub_model_id == name
    else:
        with pytest.raises(UsageError, match=r"^--hub-model-id"):
            PushConfig(directory=Path("d"), hub_model_id=name)


@pytest.mark.parametrize(
    ("config_class", "options", "message"),
    [
        (DistillConfig, {"student": "s", "init": "from-teacher"}, "--init from-teacher and"),
        (DistillConfig, {"student": "s", "layers": 6}, "--layers 6 and --student s"),
        (DistillConfig, {"student": "s", "hidden_size": 8}, "--hidden-size 8 and"),
        (DistillConfig, {"student": "s", "intermediate_size": 8}, "--intermediate-size 8 and"),
        (DistillConfig, {"student": "s", "attention_heads": 8}, "--attention-heads 8 and"),
        (DistillConfig, {"base": "b"}, "--base b needs --init from-base"),
        (DistillConfig, {"base": "b", "init": "from-scratch"}, "--base b needs"),
        (DistillConfig, {"resume": True, "overwrite": True}, "--resume and --overwrite"),
        (FinetuneConfig, {"resume": True, "overwrite": True}, "--resume and --overwrite"),
        (ShrinkConfig, {"vocab_size": 100}, "need --vocab-from"),
        (ShrinkConfig, {"vocab_min_count": 2}, "need --vocab-from"),
        (ShrinkConfig, {"init": "calibrated"}, "--init calibrated needs text"),
    ],
)
def test_options_that_contradict_each_other(
    config_class: type, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        config_class(**REQUIRED[config_class], **options)


@pytest.mark.parametrize("config_class", [c for c in REQUIRED if c is not ShrinkConfig])
def test_data_is_needed_by_all_but_shrink(config_class: type) -> None:
    with pytest.raises(UsageError, match="--data is missing"):
        config_class(**{**REQUIRED[config_class], "data": None})
    assert ShrinkConfig(model="m").data is None


def test_a_base_goes_with_from_base() -> None:
    config = DistillConfig(teacher="t", data="massive", init="from-base", base="b", layers=3)
    assert (config.base, config.layers) == ("b", 3)


def test_comma_lists() -> None:
    assert comma_list("de-DE, sw-KE,,") == ("de-DE", "sw-KE")
    assert comma_list("seen") == ("seen",)
    assert comma_list(" , ") == ()


def test_weights_of_terms() -> None:
    assert weight_mapping(["hidden=0", "task = 2.5"]) == {"hidden": 0.0, "task": 2.5}
    assert weight_mapping([]) == {}
    for wrong in ("hidden", "hidden=", "hidden=much"):
        with pytest.raises(UsageError, match=f"--weight {wrong}"):
            weight_mapping([wrong])
    config = DistillConfig(teacher="t", data="massive", weights={"hidden": 0.0})
    assert [config.weight(term) for term in LOSS_TERMS] == [1.0, 0.0, 1.0, 1.0, 1.0]
