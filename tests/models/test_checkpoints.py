"""Checkpoints that are whole, or refused by name; heads and labels in every form they were saved in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from kdshrink.commands.distill import distill
from kdshrink.commands.evaluate import evaluate, zero_shot
from kdshrink.commands.finetune import finetune
from kdshrink.commands.info import info
from kdshrink.commands.shrink import shrink
from kdshrink.config.commands import (
    DistillConfig,
    EvalConfig,
    FinetuneConfig,
    InfoConfig,
    ShrinkConfig,
    ZeroShotConfig,
)
from kdshrink.data.encoding import encode
from kdshrink.errors import KdshrinkError, ModelError
from kdshrink.models.labels import class_names
from kdshrink.models.loading import load_tokenizer, load_weights, load_with_head
from kdshrink.models.source import find_model
from kdshrink.models.whole import check_whole

from ..helpers.models import AUTO, LABELS, make_model, make_tokenizer

IDS = torch.tensor([[0, 17, 230, 301, 44, 2]])


@pytest.fixture(scope="module")
def classifiers(
    tmp_path_factory: pytest.TempPathFactory, xlmr_tokenizer: PreTrainedTokenizerFast
) -> Path:
    """A classifier of texts and one of words."""
    folder = tmp_path_factory.mktemp("classifiers")
    for task in ("sequence", "token"):
        make_model("xlm-roberta", task).save_pretrained(folder / task)
        xlmr_tokenizer.save_pretrained(folder / task)
    return folder


@pytest.fixture
def teacher(classifiers: Path, tmp_path: Path) -> Path:
    shutil.copytree(classifiers / "sequence", tmp_path / "teacher")
    return tmp_path / "teacher"


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Rewrite a model's weights; `change` works in place, or gives others."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    path.unlink()
    save_file(change(tensors) or tensors, path, {"format": "pt"})


def change_config(folder: Path, **changes: Any) -> None:
    """Rewrite config.json; a value of None removes the field, and `...` sets it to null."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    kept = {k: None if v is ... else v for k, v in config.items() if v is not None}
    path.write_text(json.dumps(kept))


def assert_same_weights(folder: Path, other: Path) -> None:
    """Where a tensor lies in a file changes the last bits of what is computed with it, so not the logits."""
    mine, theirs = (
        load_weights(find_model(str(one)), "sequence").state_dict() for one in (folder, other)
    )
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def logits(folder: Path, task: Any = "sequence") -> torch.Tensor:
    source = find_model(str(folder))
    with torch.inference_mode():
        return load_weights(source, task).eval()(IDS).logits


def commands(folder: Path, data: Path, out: Path) -> dict[str, Callable[[], Any]]:
    """Every command that reads the weights of a model, on this one."""
    run: dict[str, Any] = {"data": str(data), "device": "cpu"}
    brief = {**run, "max_steps": 1, "batch_size": 4}
    teacher = str(folder)
    return {
        "eval": lambda: evaluate(EvalConfig(model=teacher, **run)),
        "zero-shot": lambda: zero_shot(
            ZeroShotConfig(model=teacher, **run, unseen_languages=("es",))
        ),
        "distill": lambda: distill(
            DistillConfig(teacher=teacher, output_dir=out / "distilled", **brief)
        ),
        "shrink": lambda: shrink(ShrinkConfig(model=teacher, layers=2, output_dir=out / "shrunk")),
        "finetune": lambda: finetune(
            FinetuneConfig(model=teacher, output_dir=out / "tuned", **brief)
        ),
    }


def refused_by(folder: Path, data: Path, match: str, *names: str) -> None:
    """Assert that these commands refuse a model, in at most three lines, and write nothing."""
    out = folder.parent / "results"
    out.mkdir()
    for name in names:
        with pytest.raises(KdshrinkError, match=match) as caught:
            commands(folder, data, out)[name]()
        assert len(str(caught.value).splitlines()) <= 3, name
        assert max(map(len, str(caught.value).splitlines())) < 500, name
    assert not [path for path in out.rglob("*") if path.name == "config.json"]


ALL = ("eval", "zero-shot", "distill", "shrink", "finetune")


def _rename(old: str, new: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {name.replace(old, new, 1): t for name, t in tensors.items()}


def _without(part: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {name: t for name, t in tensors.items() if part not in name}


def _with(name: str, *shape: int) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {**tensors, name: torch.zeros(shape)}


@pytest.mark.defect("W4")
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_rename("roberta.", "student.roberta."), r"(Missing|that this architecture does not): .*student\.roberta"),
        (_without("layer.1."), r"layer\.1\."),
        (_without("word_embeddings"), r"word_embeddings"),
        (_without("layer.3.output.LayerNorm.bias"), r"layer\.3\.output\.LayerNorm\.bias"),
        (_with("roberta.encoder.layer.4.output.dense.bias", 24), r"layer\.4\.output\.dense\.bias"),
        (_with("roberta.encoder.layer.0.attention.self.distance_embedding.weight", 9, 6), "distance_embedding"),
        (_with("encoder.layer.0.output.dense.bias", 24), "both there|two tensors"),
        (_rename("roberta.embeddings.position", "roberta.embeddings.place"), "place_embeddings"),
    ],
)  # fmt: skip
def test_what_is_missing_or_foreign_is_named_and_refused_by_every_command(
    teacher: Path,
    text_data: Path,
    change: Callable[[dict[str, torch.Tensor]], Any],
    named: str,
) -> None:
    change_weights(teacher, change)
    refused_by(teacher, text_data, f"(?s){named}", "eval", "distill", "shrink", "finetune")


@pytest.mark.defect("W4")
def test_a_shape_that_is_not_the_architecture_s_is_named(teacher: Path, text_data: Path) -> None:
    change_weights(
        teacher, lambda t: {**t, "roberta.encoder.layer.0.output.dense.bias": torch.zeros(7)}
    )
    refused_by(teacher, text_data, "output.dense.bias is 7, and should be 24", *ALL)


@pytest.mark.defect("W4")
def test_a_missing_head_is_made_by_the_command_that_makes_heads_and_no_other(
    teacher: Path, text_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change_weights(teacher, _without("classifier."))
    refused_by(
        teacher,
        text_data,
        r"head .*is not in the weights",
        "eval",
        "zero-shot",
        "distill",
        "shrink",
    )
    commands(teacher, text_data, tmp_path)["finetune"]()
    assert "a new one is drawn" in caplog.text


@pytest.mark.defect("W4")
def test_a_wider_head_is_foreign_where_the_own_is_kept_and_no_matter_where_a_new_one_is_made(
    teacher: Path,
) -> None:
    change_weights(teacher, _with("classifier.extra.weight", 24, 24))
    source = find_model(str(teacher))
    with pytest.raises(ModelError, match=r"Unexpected: classifier\.extra\.weight"):
        check_whole(source, "sequence")
    model = load_with_head(source, "sequence", ["yes", "no"], 0)
    assert model.config.num_labels == 2


@pytest.mark.defect("W4")
@pytest.mark.parametrize(
    "wrapper", ["module.", "_orig_mod.", "base_model.model.", "module._orig_mod.", "_orig_mod.module."]
)  # fmt: skip
def test_known_wrappers_are_unwrapped_and_said_so(
    teacher: Path, classifiers: Path, wrapper: str, caplog: pytest.LogCaptureFixture
) -> None:
    change_weights(teacher, lambda t: {f"{wrapper}{name}": tensor for name, tensor in t.items()})
    assert_same_weights(teacher, classifiers / "sequence")
    assert wrapper.split(".")[0] in caplog.text
    shrink(ShrinkConfig(model=str(teacher), layers=4, output_dir=teacher.parent / "same"))
    assert_same_weights(teacher.parent / "same", classifiers / "sequence")


@pytest.mark.defect("W4")
def test_compiled_parts_are_unwrapped_within_and_in_pickles(
    teacher: Path, classifiers: Path
) -> None:
    change_weights(teacher, _rename("roberta.encoder.", "roberta.encoder._orig_mod."))
    torch.save(load_file(teacher / "model.safetensors"), teacher / "pytorch_model.bin")
    (teacher / "model.safetensors").unlink()
    assert_same_weights(teacher, classifiers / "sequence")


@pytest.mark.defect("W4")
@pytest.mark.parametrize(
    "change",
    [
        lambda t: {**t, "roberta.encoder.layer.0.attention.self.query.lora_A.default.weight": t["classifier.dense.weight"][:4].clone()},
        lambda t: {f"base_model.model.{n.replace('classifier.', 'classifier.modules_to_save.default.')}": v for n, v in t.items()},
        lambda t: {n.replace("query.weight", "query.base_layer.weight"): v for n, v in t.items()},
    ],
)  # fmt: skip
def test_an_adapter_is_refused_with_what_to_do(
    teacher: Path, text_data: Path, change: Callable[[dict[str, torch.Tensor]], Any]
) -> None:
    change_weights(teacher, change)
    refused_by(teacher, text_data, r"(?s)PEFT.*merge_and_unload", *ALL)


@pytest.mark.defect("W4")
def test_a_directory_of_peft_is_refused_with_what_to_do(teacher: Path, text_data: Path) -> None:
    (teacher / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    refused_by(teacher, text_data, r"(?s)PEFT.*merge_and_unload", *ALL)
    (teacher / "config.json").unlink()
    with pytest.raises(ModelError, match=r"(?s)no config.json.*PEFT.*merge_and_unload"):
        find_model(str(teacher))


@pytest.mark.defect("W4")
@pytest.mark.parametrize("family", ["xlm-roberta", "bert", "deberta-v2"])
@pytest.mark.parametrize("head", [None, "lm", "sequence", "token"])
def test_good_checkpoints_of_every_family_are_whole_with_a_new_head_or_as_encoders(
    tmp_path: Path, family: str, head: Any
) -> None:
    """With the leftovers that real ones have: heads of pretraining, poolers, buffers of positions."""
    make_model(family, head).save_pretrained(tmp_path)
    prefixes = {"xlm-roberta": "roberta.", "bert": "bert.", "deberta-v2": "deberta."}
    prefix = "" if head is None else prefixes[family]
    leftovers = {
        f"{prefix}embeddings.position_ids": torch.arange(70)[None],
        "lm_predictions.lm_head.bias": torch.zeros(520),
        "mask_predictions.dense.weight": torch.zeros(24, 24),
        "cls.seq_relationship.weight": torch.zeros(2, 24),
        **({} if head == "lm" else {"lm_head.bias": torch.zeros(520)}),
        **(
            {}
            if head is None or prefix == "deberta."
            else {f"{prefix}pooler.dense.bias": torch.zeros(24)}
        ),
    }
    change_weights(tmp_path, lambda t: {**leftovers, **t})
    source = find_model(str(tmp_path))
    check_whole(source, head)
    check_whole(source, None)
    for task, names in (("sequence", ["x", "y"]), ("token", ["O", "B-X"])):
        check_whole(source, task, names)  # type: ignore[arg-type]


@pytest.mark.defect("W4")
def test_an_encoder_without_its_pooler_gets_none_at_random(tmp_path: Path) -> None:
    make_model("xlm-roberta", "lm").save_pretrained(tmp_path)
    source = find_model(str(tmp_path))
    model = load_weights(source, None)
    assert model.pooler is None
    assert not [name for name in model.state_dict() if "pooler" in name]
    plain = AUTO[None].from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        assert torch.equal(model(IDS).last_hidden_state, plain(IDS).last_hidden_state)


@pytest.mark.defect("W4")
def test_checking_draws_no_random_number(teacher: Path) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    check_whole(find_model(str(teacher)), "sequence")
    check_whole(find_model(str(teacher)), "sequence", ["a", "b"])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.defect("W4")
def test_half_precision_shards_and_old_names_load_as_transformers_loads_them(
    tmp_path: Path,
) -> None:
    model = make_model("bert", "sequence").half()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.inference_mode():
        assert torch.equal(logits(tmp_path), plain.eval()(IDS).logits)
    for path in tmp_path.glob("*.safetensors"):
        old = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): tensor
            for name, tensor in load_file(path).items()
        }
        save_file(old, path)
    with torch.inference_mode():
        assert torch.equal(logits(tmp_path), plain(IDS).logits)


@pytest.mark.defect("W4")
def test_whole_numbers_are_no_weights(teacher: Path, text_data: Path) -> None:
    change_weights(
        teacher,
        lambda t: {
            n: (v * 100).to(torch.int8) if n.endswith("query.weight") else v for n, v in t.items()
        },
    )
    refused_by(teacher, text_data, "integers", *ALL)


@pytest.mark.defect("T20")
@pytest.mark.parametrize(
    "settings", [{"quant_method": "bitsandbytes", "load_in_8bit": True}, {"quant_method": "gptq", "bits": 4}, {}]
)  # fmt: skip
def test_a_quantised_checkpoint_is_refused_with_what_to_do(
    teacher: Path, text_data: Path, settings: dict[str, Any]
) -> None:
    change_config(teacher, quantization_config=settings)
    refused_by(teacher, text_data, r"(?s)quantised.*dequantize", *ALL)


@pytest.mark.defect("W20", "W21")
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"problem_type": "multi_label_classification"}, "several labels.*multi_label"),
        ({"problem_type": "regression"}, "numbers.*regression"),
        ({"problem_type": "ranking"}, "ranking"),
        ({"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}, "one number"),
        ({"id2label": None, "label2id": None, "num_labels": 1}, "one number"),
    ],
)
def test_a_head_of_several_labels_or_one_number_is_refused_by_name(
    teacher: Path, text_data: Path, changes: dict[str, Any], named: str
) -> None:
    change_config(teacher, **changes)
    refused_by(teacher, text_data, named, "eval", "zero-shot", "distill", "finetune")


@pytest.mark.defect("W20")
def test_a_teacher_of_pairs_is_refused_by_its_classes(teacher: Path, text_data: Path) -> None:
    names = ["entailment", "NEUTRAL", "contradiction"]
    change_config(
        teacher,
        id2label={str(i): name for i, name in enumerate(names)},
        label2id={name: i for i, name in enumerate(names)},
    )
    refused_by(teacher, text_data, "pairs of texts", "eval", "zero-shot", "distill")
    commands(teacher, text_data, teacher.parent / "tried")["finetune"]()


@pytest.mark.defect("W20")
def test_a_student_or_base_of_several_labels_is_refused(
    teacher: Path, classifiers: Path, text_data: Path, tmp_path: Path
) -> None:
    change_config(teacher, problem_type="multi_label_classification")
    for changes in ({"student": str(teacher)}, {"init": "from-base", "base": str(teacher)}):
        options: Any = {"data": str(text_data), "output_dir": tmp_path / "out", **changes}
        with pytest.raises(ModelError, match="several labels"):
            distill(DistillConfig(teacher=str(classifiers / "sequence"), max_steps=1, **options))


@pytest.mark.defect("W20")
def test_shrink_copies_a_head_of_several_labels(teacher: Path, tmp_path: Path) -> None:
    change_config(teacher, problem_type="multi_label_classification")
    shrink(ShrinkConfig(model=str(teacher), layers=2, output_dir=tmp_path / "out"))
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    assert saved["problem_type"] == "multi_label_classification"


GOOD_NAMES: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"id2label": {"0": "a", "1": "b", "2": "c"}}, ("a", "b", "c")),
    ({"id2label": {"2": "c", "0": "a", "1": "b"}}, ("a", "b", "c")),
    ({"id2label": {str(i): f"n{i}" for i in range(11)}}, tuple(f"n{i}" for i in range(11))),
    ({"id2label": ["a", "b", "c"]}, ("a", "b", "c")),
    ({"id2label": {"0": 4, "1": 5}}, ("4", "5")),
    ({"id2label": {"0": 0, "1": 1}}, ("0", "1")),
    ({"id2label": {"neg": 1, "pos": 0}}, ("pos", "neg")),
    ({"label2id": {"neg": 1, "pos": 0}}, ("pos", "neg")),
    ({}, ("LABEL_0", "LABEL_1")),
    ({"num_labels": 3}, ("LABEL_0", "LABEL_1", "LABEL_2")),
    ({"id2label": None, "label2id": None}, ("LABEL_0", "LABEL_1")),
]
BAD_NAMES: list[tuple[dict[str, Any], str]] = [
    ({"id2label": {"0": "a", "2": "c"}}, "ids are not 0 to 1"),
    ({"id2label": {"1": "a", "2": "c"}}, "ids are not 0 to 1"),
    ({"id2label": {"0": "a", "1": "a"}}, "two classes are named 'a'"),
    ({"id2label": {"0": "a", "00": "b"}}, "two of its keys"),
    ({"id2label": {"a": "b", "c": "d"}}, "neither ids"),
    ({"id2label": {"a": 0, "c": 0}}, "two of its names"),
    ({"id2label": {"0": "a", "1": None}}, "named None"),
    ({"id2label": {"0": "a", "1": ["b"]}}, "named"),
    ({"id2label": {"0": "a", "1": True}}, "named True"),
    ({"id2label": "positive"}, "it is 'positive'"),
    ({"id2label": 3}, "it is 3"),
    ({"id2label": {"0": "a", "1": "b"}, "num_labels": 3}, "names 2 classes, and num_labels is 3"),
    ({"num_labels": "3"}, "num_labels"),
    ({"num_labels": 0}, "num_labels"),
    ({"num_labels": 10**12}, "num_labels"),
    ({"label2id": {"a": "0"}}, "label2id"),
]


@pytest.mark.defect("T13", "T14")
@pytest.mark.parametrize(("config", "names"), GOOD_NAMES)
def test_names_of_classes_are_read_in_any_form_that_is_clear(
    config: dict[str, Any], names: tuple[str, ...]
) -> None:
    assert class_names(config) == names


@pytest.mark.defect("T13", "T14")
@pytest.mark.parametrize(("config", "reason"), BAD_NAMES)
def test_names_of_classes_that_are_not_clear_are_refused(
    config: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ModelError, match=reason):
        class_names(config)


@pytest.mark.defect("T14")
@pytest.mark.parametrize(
    "changes",
    [{"id2label": LABELS, "label2id": None}, {"id2label": {name: i for i, name in enumerate(LABELS)}},
     {"id2label": None, "label2id": {name: i for i, name in enumerate(LABELS)}}],
)  # fmt: skip
def test_a_model_with_odd_names_of_classes_works_everywhere_and_its_student_plainly(
    teacher: Path, classifiers: Path, text_data: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    expected = commands(classifiers / "sequence", text_data, tmp_path)["eval"]().score
    change_config(teacher, **changes)
    run = commands(teacher, text_data, tmp_path)
    assert run["eval"]().score == expected
    run["shrink"]()
    if isinstance(changes["id2label"], list):
        run["distill"]()
    for folder in (path.parent.name for path in tmp_path.glob("*ed/config.json")):
        student = AutoModelForSequenceClassification.from_pretrained(tmp_path / folder)
        assert student.config.id2label == dict(enumerate(LABELS))


@pytest.mark.defect("T13")
def test_a_model_of_two_classes_without_id2label(
    tmp_path: Path, xlmr_tokenizer: PreTrainedTokenizerFast
) -> None:
    """transformers leaves the names out where they are LABEL_0 and LABEL_1."""
    model = make_model("xlm-roberta", "sequence", id2label={0: "LABEL_0", 1: "LABEL_1"})
    model = AUTO["sequence"].from_config(type(model.config)(**{
        k: v for k, v in model.config.to_dict().items() if k not in ("id2label", "label2id")
    }))  # fmt: skip
    model.save_pretrained(tmp_path / "two")
    xlmr_tokenizer.save_pretrained(tmp_path / "two")
    change_config(tmp_path / "two", id2label=None, label2id=None)
    data = tmp_path / "data" / "de"
    data.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        rows = [{"text": f"wetter {i}", "label": f"LABEL_{i % 2}"} for i in range(8)]
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = commands(tmp_path / "two", data.parent, tmp_path)
    for name in ("eval", "shrink", "distill"):
        run[name]()


@pytest.mark.defect("T14")
@pytest.mark.parametrize("names", [LABELS[:2], [*LABELS, "hot"]])
def test_as_many_names_as_the_head_has_rows(
    teacher: Path, text_data: Path, names: list[str]
) -> None:
    change_config(teacher, id2label={str(i): n for i, n in enumerate(names)}, label2id=None)
    refused_by(
        teacher, text_data, "out_proj.* is 3.*, and should be|do not know|know", "eval", "shrink"
    )
    with pytest.raises(ModelError, match=r"out_proj\S+ is 3"):
        check_whole(find_model(str(teacher)), "sequence")


@pytest.mark.defect("M9")
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architectures", "XLMRobertaForSequenceClassification"), ("architectures", [3]),
        ("hidden_size", "24"), ("hidden_size", -1), ("hidden_size", True), ("vocab_size", ...),
        ("vocab_size", 520.0), ("num_hidden_layers", []), ("model_type", 3), ("pad_token_id", "1"),
        ("max_position_embeddings", {}), ("num_attention_heads", 0), ("model_type", "no-such-type"),
        ("num_attention_heads", 5), ("num_hidden_layers", 10**9),
    ],
)  # fmt: skip
def test_a_fault_of_config_json_is_told_as_one(
    teacher: Path, text_data: Path, field: str, value: Any
) -> None:
    change_config(teacher, **{field: value})
    named = rf"config\.json.*{field}|config\.json (cannot be read|describes no model)|do not belong to config\.json"
    refused_by(teacher, text_data, f"(?s){named}|model_type|type 'no-such-type'", *ALL)


@pytest.mark.parametrize("field", ["output_attentions", "output_hidden_states"])
def test_a_config_that_asks_for_more_outputs_is_served(
    teacher: Path, text_data: Path, tmp_path: Path, field: str
) -> None:
    change_config(teacher, **{field: True})
    for name in ("eval", "distill", "finetune"):
        commands(teacher, text_data, tmp_path)[name]()


def test_a_tokenizer_that_knows_no_unknown_character_is_refused_before_the_work(
    teacher: Path, text_data: Path
) -> None:
    path = teacher / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"].pop("unk_id")
    path.write_text(json.dumps(content))
    refused_by(teacher, text_data, "its tokenizer cannot be loaded", "eval", "distill", "finetune")


@pytest.mark.defect("M9")
@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden_act", "no-such-function"), ("layer_norm_eps", "small"), ("pad_token_id", 10**6)],
)
def test_a_fault_that_only_a_model_shows_is_told_where_one_is_made(
    teacher: Path, text_data: Path, field: str, value: Any
) -> None:
    """shrink makes none: it copies tensors from file to file."""
    change_config(teacher, **{field: value})
    named = r"config\.json.*|do not belong to config\.json"
    refused_by(teacher, text_data, f"(?s){named}", "eval", "zero-shot", "finetune")


@pytest.mark.defect("M9")
@pytest.mark.parametrize(
    ("file", "place", "value", "named"),
    [
        ("tokenizer_config.json", ("model_max_length",), "long", "model_max_length: 'long'"),
        ("tokenizer_config.json", ("model_max_length",), 1, "model_max_length: 1"),
        ("tokenizer.json", ("post_processor", "special_tokens"), {}, "tokenizer cannot be loaded"),
        ("tokenizer.json", ("post_processor", "single", 0, "SpecialToken", "id"), "?", "tokenizer cannot"),
        ("tokenizer.json", ("model", "vocab"), [], "tokenizer"),
        ("config.json", ("max_position_embeddings",), 3, "max_position_embeddings 3|belong to config"),
    ],
)  # fmt: skip
def test_a_fault_of_the_tokenizer_is_told_as_one(
    teacher: Path, text_data: Path, file: str, place: tuple[Any, ...], value: Any, named: str
) -> None:
    content = inner = json.loads((teacher / file).read_text())
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (teacher / file).write_text(json.dumps(content))
    refused_by(teacher, text_data, named, "eval", "distill", "finetune")


@pytest.mark.defect("M9")
def test_a_config_that_asks_for_tuples_is_scored(teacher: Path, text_data: Path) -> None:
    change_config(teacher, return_dict=False)
    run = commands(teacher, text_data, teacher.parent)
    assert run["eval"]().examples == 24


@pytest.mark.defect("W22", "T21")
def test_weights_that_are_not_finite_are_found_before_long_work(
    teacher: Path, text_data: Path, tmp_path: Path
) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["roberta.encoder.layer.2.output.dense.weight"][3, 3] = float("nan")

    change_weights(teacher, spoil)
    named = r"layer\.2\.output\.dense\.weight holds numbers that are not finite"
    refused_by(teacher, text_data, named, "eval", "zero-shot", "distill")
    calibrated: Any = {"init": "calibrated", "data": str(text_data), "device": "cpu"}
    with pytest.raises(ModelError, match=named):
        shrink(ShrinkConfig(model=str(teacher), layers=2, output_dir=tmp_path / "c", **calibrated))


def _overflow(tensors: dict[str, torch.Tensor]) -> None:
    tensors["classifier.out_proj.weight"].fill_(3e38)
    tensors["classifier.dense.bias"].fill_(5.0)


@pytest.mark.defect("W22")
def test_answers_that_are_not_finite_end_with_the_text(
    teacher: Path, text_data: Path, tmp_path: Path
) -> None:
    change_weights(teacher, _overflow)
    refused_by(
        teacher, text_data, r"no finite prediction for text \d+ \((de|es|af-ZA)\): '", "eval", "zero-shot", "distill"
    )  # fmt: skip


@pytest.mark.defect("W22")
def test_words_whose_answers_are_not_finite_end_with_their_sentence(
    classifiers: Path, word_data: Path, tmp_path: Path
) -> None:
    shutil.copytree(classifiers / "token", tmp_path / "tagger")
    change_weights(
        tmp_path / "tagger",
        lambda t: {n: torch.full_like(v, 3e38) if n == "classifier.weight" else v for n, v in t.items()},
    )  # fmt: skip
    refused_by(
        tmp_path / "tagger",
        word_data,
        r"text \d+ \((da|pt|af-ZA)\): ['\"]\w+ \w+",
        "eval",
        "distill",
    )


@pytest.mark.defect("W22")
def test_a_bad_row_of_the_embeddings_matters_to_the_texts_that_reach_it(
    teacher: Path, text_data: Path, xlmr_tokenizer: PreTrainedTokenizerFast
) -> None:
    piece = xlmr_tokenizer("musik")["input_ids"][1]
    path = text_data / "de" / "test.jsonl"
    first = next(
        i for i, line in enumerate(path.read_text().splitlines())
        if piece in xlmr_tokenizer(json.loads(line)["text"])["input_ids"]
    )  # fmt: skip

    def spoil(row: int) -> Callable[[dict[str, torch.Tensor]], None]:
        def change(tensors: dict[str, torch.Tensor]) -> None:
            tensors["roberta.embeddings.word_embeddings.weight"][row] = float("nan")

        return change

    change_weights(teacher, spoil(519))  # beyond the tokenizer's vocabulary
    run: Any = {"model": str(teacher), "data": str(path), "device": "cpu"}
    assert np.isfinite(evaluate(EvalConfig(**run)).score)
    change_weights(teacher, spoil(piece))
    with pytest.raises(ModelError, match=r"text \d+ ") as caught:
        evaluate(EvalConfig(**run, batch_size=1))
    assert "musik" in str(caught.value)
    assert first >= 0


@pytest.mark.defect("T21")
@pytest.mark.parametrize("text", ["a", "wetter", " ", "!"])
@pytest.mark.parametrize("task", ["sequence", "token"])
def test_calibrating_on_almost_no_text_works_or_asks_for_more(
    classifiers: Path, tmp_path: Path, text: str, task: str
) -> None:
    data = tmp_path / "one.jsonl"
    data.write_text(json.dumps({"text": text}) + "\n")
    options: Any = {"init": "calibrated", "data": str(data), "layers": 2, "hidden_size": 12}
    config = ShrinkConfig(
        model=str(classifiers / task), output_dir=tmp_path / "out", device="cpu", **options
    )
    try:
        shrink(config)
    except ModelError as error:
        assert "Give more text" in str(error)  # noqa: PT017
        assert not (tmp_path / "out").exists()
    else:
        weights = load_file(tmp_path / "out" / "model.safetensors")
        assert all(bool(tensor.isfinite().all()) for tensor in weights.values())


@pytest.fixture
def distilbert(tmp_path: Path) -> Path:
    tokenizer = make_tokenizer("bert")
    sizes: dict[str, Any] = {"vocab_size": 520, "dim": 24, "hidden_dim": 48, "n_heads": 4}
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {n: i for i, n in enumerate(LABELS)}}
    for depth in (4, 2):
        config = DistilBertConfig(**sizes, n_layers=depth, max_position_embeddings=70, **names)
        torch.manual_seed(depth)
        DistilBertForSequenceClassification(config).save_pretrained(tmp_path / f"distilbert{depth}")
        tokenizer.save_pretrained(tmp_path / f"distilbert{depth}")
    return tmp_path / "distilbert4"


@pytest.mark.defect("T12")
def test_distilbert_is_scored_fine_tuned_and_teaches_a_student_that_is_given(
    distilbert: Path, text_data: Path, tmp_path: Path
) -> None:
    run = commands(distilbert, text_data, tmp_path)
    run["eval"]()
    run["finetune"]()
    student = str(tmp_path / "distilbert2")
    options: Any = {"data": str(text_data), "max_steps": 1, "batch_size": 4, "device": "cpu"}
    distill(
        DistillConfig(
            teacher=str(distilbert), student=student, output_dir=tmp_path / "taught", **options
        )
    )
    record = json.loads((tmp_path / "taught" / "kdshrink.json").read_text())
    assert (record["layers"], record["of_layers"]) == ([2, 4], 4)
    shown = info(InfoConfig(model=str(distilbert)))
    assert (shown.layers, shown.hidden_size, shown.heads, shown.vocabulary) == (4, 24, 4, 520)


@pytest.mark.defect("T12")
def test_distilbert_cannot_be_cut_and_says_so_before_the_data_is_read(
    distilbert: Path, tmp_path: Path
) -> None:
    missing = tmp_path / "no-such-data"
    refused_by(distilbert, missing, r"'distilbert' cannot be shrunk yet", "shrink", "distill")


@pytest.mark.defect("D10")
def test_a_sentence_transformers_directory_is_cut_with_a_note(
    encoder_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (encoder_dir / "modules.json").write_text(json.dumps([{"path": "", "type": "Transformer"}]))
    (encoder_dir / "1_Pooling").mkdir()
    (encoder_dir / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 24}')
    shrink(ShrinkConfig(model=str(encoder_dir), layers=2, output_dir=tmp_path / "out"))
    assert "sentence-transformers" in caplog.text
    assert "modules.json" in caplog.text


@pytest.fixture
def byte_level(tmp_path: Path) -> Path:
    """A RoBERTa that tags words, whose tokenizer puts no space before the first word of a text."""
    make_model("roberta", "token").save_pretrained(tmp_path / "tagger")
    make_tokenizer("roberta").save_pretrained(tmp_path / "tagger")
    path = tmp_path / "tagger" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["pre_tokenizer"]["add_prefix_space"] = False
    path.write_text(json.dumps(content))
    return tmp_path / "tagger"


def _word_ids(folder: Path, tokenizer: Any) -> list[list[int]]:
    words = ["morgen", "Wetter", "in", "Berlin"]
    table = Dataset.from_dict({"text": [words], "language": ["de"]})
    ids = encode(table, tokenizer, task="token", max_length=64, label_ids=None)["input_ids"]
    return [list(one) for one in ids]


@pytest.mark.defect("W16")
@pytest.mark.parametrize("kind", ["TokenizersBackend", "RobertaTokenizerFast"])
def test_words_of_a_byte_level_tokenizer_are_cut_as_in_a_sentence(
    byte_level: Path, kind: str
) -> None:
    settings = byte_level / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "tokenizer_class": kind}))
    source = find_model(str(byte_level))
    tokenizer = load_tokenizer(source, "token")
    plain = AutoTokenizer.from_pretrained(byte_level)
    in_a_sentence = plain(" morgen Wetter in Berlin")["input_ids"]
    assert _word_ids(byte_level, tokenizer) == [in_a_sentence]
    assert load_tokenizer(source)("morgen")["input_ids"] == plain("morgen")["input_ids"]


@pytest.mark.defect("W16")
@pytest.mark.parametrize("command", ["finetune", "distill"])
def test_the_saved_tokenizer_goes_on_cutting_words_so(
    byte_level: Path, word_data: Path, tmp_path: Path, command: str
) -> None:
    commands(byte_level, word_data, tmp_path)[command]()
    folder = tmp_path / {"finetune": "tuned", "distill": "distilled"}[command]
    plain = AutoTokenizer.from_pretrained(byte_level)
    in_a_sentence = plain(" morgen Wetter in Berlin")["input_ids"]
    assert _word_ids(folder, AutoTokenizer.from_pretrained(folder)) == [in_a_sentence]
