"""Shrinking against slices taken here, independently, of the loaded teacher."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ElectraConfig, PreTrainedModel, PreTrainedTokenizerFast

from kdshrink import ShrinkConfig, shrink
from kdshrink.errors import ModelError, OutputError, ShapeError, UsageError
from kdshrink.models.architectures import family_of
from kdshrink.output import final_files, open_output
from kdshrink.shrinking.layer_map import choose_layers, even_indices
from kdshrink.shrinking.plan import Shape, plan_student

from ..helpers.models import AUTO, FAMILIES, make_config, make_model

IDS = torch.tensor([[0, 5, 9, 44, 17, 2], [0, 8, 6, 2, 1, 1]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])


def make_any(family: str, task: str | None) -> PreTrainedModel:
    """As make_model, for ELECTRA, and DeBERTa with narrow tables or its newer language model, too."""
    sizes: dict[str, Any] = {
        "vocab_size": 520,
        "hidden_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 70,
    }
    if family in FAMILIES:
        return make_model(family, task)
    if family.startswith("electra"):
        width = 16 if family == "electra-narrow" else 24
        config: Any = ElectraConfig(**sizes, embedding_size=width, pad_token_id=0)
    else:
        config = make_config("deberta-v2")
        if family == "deberta-narrow":
            config.embedding_size = 16
        config.legacy = family != "deberta-new-lm"
        config.attention_head_size = 6
    config.id2label = {0: "cold", 1: "mild", 2: "warm"}
    torch.manual_seed(1)
    return AUTO[task].from_config(config).eval()


def saved(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, family: str, task: str | None
) -> Path:
    folder = tmp_path / "teacher"
    make_any(family, task).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def taken(tensor: torch.Tensor, cuts: Mapping[int, Sequence[int]]) -> torch.Tensor:
    """Of every axis of a size that is cut, the units listed for that size."""
    for dimension, size in enumerate(tensor.shape):
        if size in cuts:
            tensor = torch.stack([tensor.select(dimension, unit) for unit in cuts[size]], dimension)
    return tensor


ALL = (*FAMILIES, "electra", "electra-narrow", "deberta-narrow", "deberta-new-lm")


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("task", ["sequence", "token", None, "lm"])
def test_every_tensor_is_its_slice(
    tmp_path: Path, xlmr_tokenizer: PreTrainedTokenizerFast, family: str, task: str | None
) -> None:
    teacher_dir = saved(tmp_path, xlmr_tokenizer, family, task)
    out = tmp_path / "student"
    result = shrink(
        ShrinkConfig(model=str(teacher_dir), layers=2, hidden_size=12, output_dir=out)
    ).to_dict()
    assert result["layers"] == [2, 4]

    auto = AUTO[task]
    teacher = auto.from_pretrained(teacher_dir)
    student, report = auto.from_pretrained(out, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    teacher_tensors, student_tensors = teacher.state_dict(), student.state_dict()
    assert len(student_tensors) < len(teacher_tensors)
    cuts = {24: range(0, 24, 2), 48: range(0, 48, 2)}
    for name, tensor in student_tensors.items():
        source = name.replace(".layer.1.", ".layer.3.").replace(".layer.0.", ".layer.1.")
        assert torch.equal(tensor, taken(teacher_tensors[source], cuts)), name
    stored = load_file(out / "model.safetensors")
    assert result["parameters_after"] == sum(t.numel() for t in stored.values())
    assert result["bytes_after"] == sum(t.numel() * t.element_size() for t in stored.values())
    with torch.no_grad():
        assert torch.isfinite(student.eval()(IDS, attention_mask=MASK)[0]).all()


def test_uneven_sizes_and_named_layers(
    tmp_path: Path, xlmr_tokenizer: PreTrainedTokenizerFast
) -> None:
    """24 → 20 and 48 → 36, neither a whole multiple; the units were worked out by hand."""
    teacher_dir = saved(tmp_path, xlmr_tokenizer, "bert", "sequence")
    out = tmp_path / "student"
    shrink(
        ShrinkConfig(
            model=str(teacher_dir),
            layer_map="1,2,4",
            hidden_size=20,
            intermediate_size=36,
            output_dir=out,
        )
    )
    teacher_tensors, student_tensors = (
        load_file(d / "model.safetensors") for d in (teacher_dir, out)
    )
    # 23 and 47 steps spread over 19 and 35, with no halves among them.
    hidden = [int(i * 23 / 19 + 0.5) for i in range(20)]
    inner = [int(i * 47 / 35 + 0.5) for i in range(36)]
    for name, tensor in student_tensors.items():
        source = name.replace(".layer.2.", ".layer.3.")
        assert torch.equal(tensor, taken(teacher_tensors[source], {24: hidden, 48: inner})), name
    config = json.loads((out / "config.json").read_text())
    assert (config["num_hidden_layers"], config["hidden_size"]) == (3, 20)
    assert config["intermediate_size"] == 36


def test_head_for_pretraining_is_left_out_where_it_is_no_masked_language_model(
    tmp_path: Path,
    xlmr_tokenizer: PreTrainedTokenizerFast,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As microsoft/mdeberta-v3-base: no architecture in config.json, and two heads of pretraining."""
    folder = saved(tmp_path, xlmr_tokenizer, "deberta-new-lm", "lm")
    tensors = load_file(folder / "model.safetensors")
    tensors["mask_predictions.dense.weight"] = torch.zeros(24, 24)
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    config = json.loads((folder / "config.json").read_text())
    del config["architectures"]
    (folder / "config.json").write_text(json.dumps(config))
    with caplog.at_level("INFO"):
        shrink(ShrinkConfig(model=str(folder), layers=2, output_dir=tmp_path / "out"))
    assert "lm_predictions, mask_predictions" in caplog.text
    assert "weights_only" in caplog.text
    _, report = AUTO[None].from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_second_copies_of_tied_tensors_are_neither_written_nor_counted(
    tmp_path: Path, xlmr_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Older pickles hold the decoder of the language model beside the embeddings it is tied to."""
    folder = saved(tmp_path, xlmr_tokenizer, "xlm-roberta", "lm")
    model = AUTO["lm"].from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    assert "lm_head.decoder.weight" in model.state_dict()
    result = shrink(ShrinkConfig(model=str(folder), layers=4, output_dir=tmp_path / "out"))
    assert result.to_dict()["parameters_before"] == model.num_parameters()
    student = AUTO["lm"].from_pretrained(tmp_path / "out").eval()
    assert torch.equal(student(IDS, attention_mask=MASK)[0], model.eval()(IDS, MASK)[0])


@pytest.mark.parametrize("family", ALL)
def test_same_size_gives_identical_logits(
    tmp_path: Path, xlmr_tokenizer: PreTrainedTokenizerFast, family: str
) -> None:
    teacher_dir = saved(tmp_path, xlmr_tokenizer, family, "sequence")
    shrink(ShrinkConfig(model=str(teacher_dir), layers=4, output_dir=tmp_path / "same"))
    auto = AUTO["sequence"]
    outputs = [
        auto.from_pretrained(d).eval()(IDS, attention_mask=MASK).logits
        for d in (teacher_dir, tmp_path / "same")
    ]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("task", ["lm", "sequence", "token"])
def test_scratch_keeps_the_head_and_counts_it(
    task: str, tmp_path: Path, xlmr_tokenizer: PreTrainedTokenizerFast
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    model = make_model("xlm-roberta", task)
    model.save_pretrained(source)
    xlmr_tokenizer.save_pretrained(source)
    result = shrink(ShrinkConfig(model=str(source), layers=2, init="scratch", output_dir=out))
    fresh, info = type(model).from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert result.to_dict()["parameters_after"] == fresh.num_parameters()


def test_scratch_has_the_shape_but_not_the_weights(encoder_dir: Path, tmp_path: Path) -> None:
    options = {"model": str(encoder_dir), "layers": 2}
    shrink(ShrinkConfig(**options, output_dir=tmp_path / "copy"))
    shrink(ShrinkConfig(**options, init="scratch", seed=1, output_dir=tmp_path / "a"))
    shrink(ShrinkConfig(**options, init="scratch", seed=1, output_dir=tmp_path / "b"))
    copy, a, b = (load_file(tmp_path / n / "model.safetensors") for n in ("copy", "a", "b"))
    name = "encoder.layer.1.output.dense.weight"
    assert a[name].shape == copy[name].shape
    assert not torch.equal(a[name], copy[name])
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    ("layers", "layer_map", "expected"),
    [
        (6, None, [2, 4, 6, 8, 10, 12]),
        (4, None, [3, 6, 9, 12]),
        (12, None, list(range(1, 13))),
        (3, "first", [1, 2, 3]),
        (3, "last", [10, 11, 12]),
        (6, "distilbert", [1, 3, 5, 8, 10, 12]),
        (None, "2,5,8,12", [2, 5, 8, 12]),
    ],
)
def test_layer_maps(layers: int | None, layer_map: str | None, expected: list[int]) -> None:
    assert choose_layers(12, layers, layer_map) == expected


def test_layer_maps_that_cannot_be() -> None:
    with pytest.raises(ShapeError, match=r"1, 2, 3, 4, 6, 12.*--layer-map"):
        choose_layers(12, 5, None)
    with pytest.raises(ShapeError, match="only 12 layers"):
        choose_layers(12, 13, None)
    with pytest.raises(ShapeError, match="1 to 12"):
        choose_layers(12, None, "2,13")
    with pytest.raises(ShapeError, match="ascending"):
        choose_layers(12, None, "5,2")
    with pytest.raises(UsageError, match="names 2 layers"):
        choose_layers(12, 3, "2,4")
    with pytest.raises(UsageError, match="neither a list"):
        choose_layers(12, None, "evry-second")


def test_even_indices() -> None:
    assert even_indices(4, 2) == [0, 2]
    assert even_indices(768, 384) == list(range(0, 768, 2))
    assert even_indices(5, 3) == [0, 2, 4]
    assert even_indices(4, 3) == [0, 2, 3]  # 1.5 to the even 2
    assert even_indices(7, 7) == list(range(7))


def test_heads_keep_to_their_own() -> None:
    """768 → 384 with 12 heads: student head j (32 wide) draws on teacher head j (64 wide) alone."""
    indices = even_indices(768, 384)
    assert all(index // 64 == unit // 32 for unit, index in enumerate(indices))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": 3}, ShapeError, "1, 2, 4"),
        ({"hidden_size": 10}, ShapeError, "8 and 12"),
        ({"hidden_size": 48}, ShapeError, "only 24 wide"),
        ({"intermediate_size": 99}, ShapeError, "only 48 units"),
    ],
)
def test_shapes_that_cannot_be_cut(
    encoder_dir: Path, tmp_path: Path, options: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        shrink(ShrinkConfig(model=str(encoder_dir), output_dir=tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()


def test_damaged_and_missing_files(encoder_dir: Path, tmp_path: Path) -> None:
    def attempt() -> None:
        shrink(ShrinkConfig(model=str(encoder_dir), layers=2, output_dir=tmp_path / "out"))

    weights = encoder_dir / "model.safetensors"
    whole = weights.read_bytes()
    for broken in (whole[:-100], whole[:50], b"", b"\xff" * 64):
        weights.write_bytes(broken)
        with pytest.raises(ModelError, match="damaged or cut off"):
            attempt()
    weights.unlink()
    with pytest.raises(ModelError, match="no weights"):
        attempt()
    weights.write_bytes(whole)
    (encoder_dir / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="no tokenizer"):
        attempt()
    (encoder_dir / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not JSON"):
        attempt()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["encoder"]


def test_a_pickle_with_code_is_refused(encoder_dir: Path, tmp_path: Path) -> None:
    (encoder_dir / "model.safetensors").unlink()
    torch.save({"weight": Path("x")}, encoder_dir / "pytorch_model.bin")
    with pytest.raises(ModelError, match="could run code"):
        shrink(ShrinkConfig(model=str(encoder_dir), layers=2, output_dir=tmp_path / "out"))


def test_an_unknown_tensor_is_not_guessed_at(encoder_dir: Path, tmp_path: Path) -> None:
    tensors = load_file(encoder_dir / "model.safetensors")
    tensors["encoder.adapter.weight"] = torch.zeros(24, 24)
    save_file(tensors, encoder_dir / "model.safetensors")
    with pytest.raises(ModelError, match=r"encoder\.adapter\.weight"):
        shrink(ShrinkConfig(model=str(encoder_dir), layers=2, output_dir=tmp_path / "out"))


def test_output_is_not_overwritten_unasked(encoder_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    options = {"model": str(encoder_dir), "layers": 2, "output_dir": out}
    with pytest.raises(OutputError, match="not empty"):
        shrink(ShrinkConfig(**options))
    assert (out / "notes.txt").read_text() == "mine"
    with pytest.raises(OutputError, match="remove it yourself"):
        shrink(ShrinkConfig(**options, overwrite=True))
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    (out / "notes.txt").unlink()
    shrink(ShrinkConfig(**options))
    (out / "notes.txt").write_text("mine")
    shrink(ShrinkConfig(**options, overwrite=True))
    assert (out / "config.json").exists()
    assert (out / "notes.txt").read_text() == "mine"
    assert not list(tmp_path.rglob(".*"))


def test_old_names_of_norms_are_read(
    tmp_path: Path, xlmr_tokenizer: PreTrainedTokenizerFast
) -> None:
    teacher_dir = saved(tmp_path, xlmr_tokenizer, "bert", None)
    tensors = load_file(teacher_dir / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): t
        for name, t in tensors.items()
    }
    save_file(old, teacher_dir / "model.safetensors")
    shrink(ShrinkConfig(model=str(teacher_dir), layers=2, output_dir=tmp_path / "out"))
    student = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(
        student["encoder.layer.0.output.LayerNorm.weight"],
        tensors["encoder.layer.1.output.LayerNorm.weight"],
    )


@pytest.mark.parametrize(
    ("family", "changes", "hidden_size"),
    [
        ("deberta-conv", {"conv_groups": 2}, 12),
        ("bert", {"attention_head_size": 8}, 12),
        ("electra-narrow", {}, 16),
    ],
)
def test_widths_that_no_rule_can_cut(
    family: str, changes: dict[str, Any], hidden_size: int
) -> None:
    config = {**make_any(family, None).config.to_dict(), **changes}
    plan_student(config, Shape(layers=2))
    with pytest.raises(ShapeError, match=f"--hidden-size {hidden_size}"):
        plan_student(config, Shape(hidden_size=hidden_size))


@pytest.mark.parametrize(
    ("shape", "calibrated", "message"),
    [
        (Shape(hidden_size=12, attention_heads=2), False, "Give --init calibrated"),
        (Shape(attention_heads=8), True, "--attention-heads 8: the teacher has only 4"),
        (Shape(hidden_size=18, attention_heads=2), True, "a width of 18 needs at least 3"),
        (Shape(hidden_size=16, attention_heads=3), True, "the 3 attention heads do not divide it"),
    ],
)
def test_heads_that_a_student_cannot_have(shape: Shape, calibrated: bool, message: str) -> None:
    config = make_any("xlm-roberta", None).config.to_dict()
    with pytest.raises(ShapeError, match=message):
        plan_student(config, shape, calibrated=calibrated)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_size": 32}, r"embeddings.* is .*24, and should be .*32"),
        ({"vocab_size": 519}, "word_embeddings.weight is 520 × 24, and should be 519 × 24"),
        ({"num_hidden_layers": 6}, "no whole layer 6"),
        ({"num_hidden_layers": None}, "no num_hidden_layers"),
        ({"model_type": "t5"}, "'t5' cannot be shrunk"),
    ],
)
def test_weights_that_do_not_fit_their_config(
    encoder_dir: Path, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    path = encoder_dir / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    with pytest.raises(ModelError, match=message):
        shrink(ShrinkConfig(model=str(encoder_dir), layers=2, output_dir=tmp_path / "out"))


def test_a_layer_that_lacks_a_tensor(encoder_dir: Path, tmp_path: Path) -> None:
    tensors = load_file(encoder_dir / "model.safetensors")
    del tensors["encoder.layer.3.attention.self.key.bias"]
    save_file(tensors, encoder_dir / "model.safetensors")
    with pytest.raises(ModelError, match=r"layer 4\. .*layer\.3\.attention\.self\.key\.bias"):
        shrink(ShrinkConfig(model=str(encoder_dir), layers=2, output_dir=tmp_path / "out"))


def test_shards_are_read(tmp_path: Path, xlmr_tokenizer: PreTrainedTokenizerFast) -> None:
    folder = tmp_path / "sharded"
    make_model("xlm-roberta", "sequence").save_pretrained(folder, max_shard_size="20KB")
    xlmr_tokenizer.save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    shrink(ShrinkConfig(model=str(folder), layers=2, output_dir=tmp_path / "out"))
    auto = AUTO["sequence"]
    teacher, student = auto.from_pretrained(folder), auto.from_pretrained(tmp_path / "out")
    name = "roberta.encoder.layer.1.output.dense.weight"
    expected = teacher.state_dict()["roberta.encoder.layer.3.output.dense.weight"]
    assert torch.equal(student.state_dict()[name], expected)
    next(folder.glob("*-00002-*.safetensors")).unlink()
    with pytest.raises(ModelError, match="shards are missing"):
        shrink(ShrinkConfig(model=str(folder), layers=2, output_dir=tmp_path / "again"))


def test_the_record_tells_what_was_done(encoder_dir: Path, tmp_path: Path) -> None:
    shrink(
        ShrinkConfig(
            model=str(encoder_dir), layers=2, output_dir=tmp_path / "out", token="hf_secret"
        )
    )
    record = json.loads((tmp_path / "out" / "kdshrink.json").read_text())
    assert record["command"] == "shrink"
    assert record["layers"] == [2, 4]
    assert record["base"] == str(encoder_dir)
    written = "".join(p.read_text(errors="replace") for p in (tmp_path / "out").iterdir())
    assert "hf_secret" not in written


def test_a_directory_is_whole_and_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / ".kdshrink.part").mkdir(parents=True)
    (out / ".kdshrink.part" / "model.safetensors").write_bytes(b"half")
    (out / ".kdshrink.lock").write_text("process 1")
    with open_output(out, "shrink", overwrite=False):
        assert [path.name for path in out.iterdir()] == [".kdshrink.lock"]
        with final_files(out) as filling:
            (filling / "config.json").write_text("{}")
            assert not (out / "config.json").exists()
        with (
            pytest.raises(OutputError, match=f"another run .*process {os.getpid()} on"),
            open_output(out, "shrink", overwrite=True),
        ):
            pytest.fail("two runs hold one directory")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] == ["config.json"]


@pytest.mark.defect("W4")
@pytest.mark.parametrize("task", [None, "lm", "sequence", "token"])
def test_the_tables_need_what_transformers_models_have(task: str | None) -> None:
    electra = {"vocab_size": 50, "num_hidden_layers": 2, "num_attention_heads": 4}
    configs = [make_config(family) for family in FAMILIES]
    configs += [ElectraConfig(**electra, hidden_size=24, embedding_size=size) for size in (24, 12)]
    configs += [
        make_config("deberta-v2", **change)
        for change in (
            {"embedding_size": 12},
            {"relative_attention": False},
            {"position_biased_input": True, "type_vocab_size": 2},
        )
    ]
    for config in configs:
        model = AUTO[task].from_config(config)
        stored = {
            **json.loads(model.config.to_json_string()),
            "architectures": [type(model).__name__],
        }
        family = family_of(stored, "shrunk")
        names = {name.removeprefix(f"{family.prefix}.") for name in model.state_dict()}
        names = {name for name in names if not family.is_tied(name)}
        needed = set(family.needed(stored))
        if task is None:  # no hidden state depends on it
            names = {name for name in names if not name.startswith("pooler.")}
        if task == "lm" and config.model_type == "deberta-v2":  # saved in two forms
            names = {name for name in names if not name.startswith("cls.")}
        assert needed == names, type(model).__name__
