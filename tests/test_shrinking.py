"""Shrinking against slices taken here, independently, of the loaded teacher."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from kdshrink import ShrinkConfig, shrink
from kdshrink.errors import ModelError, OutputError, ShapeError, UsageError
from kdshrink.shrinking.layers import choose_layers
from kdshrink.shrinking.slices import even_indices
from kdshrink.tensors import TensorReader, TensorSpec, write_tensors

from .conftest import AUTO, FAMILIES, make_model

IDS = torch.tensor([[0, 5, 9, 44, 17, 2], [0, 8, 6, 2, 1, 1]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])


def saved(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, family: str, task: str | None
) -> Path:
    folder = tmp_path / "teacher"
    make_model(family, task).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def expected_tensor(tensor: torch.Tensor, old: dict[str, int], new: dict[str, int]) -> torch.Tensor:
    """The even slice: every axis of a shrunk size is cut by that size's indices."""
    for dimension, size in enumerate(tensor.shape):
        for name in ("hidden", "ffn"):
            if size == old[name] and old[name] != new[name]:
                step = old[name] // new[name]
                tensor = tensor.index_select(dimension, torch.arange(0, old[name], step))
    return tensor


@pytest.mark.parametrize("family", FAMILIES)
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

    auto = AUTO[None if task == "lm" else task]
    teacher, student = auto.from_pretrained(teacher_dir), auto.from_pretrained(out)
    theirs, mine = teacher.state_dict(), student.state_dict()
    sizes = {"hidden": 24, "ffn": 48}, {"hidden": 12, "ffn": 24}
    checked = 0
    for name, tensor in mine.items():
        source = name
        for new, old in ((0, 1), (1, 3)):
            if f".layer.{new}." in name:
                source = name.replace(f".layer.{new}.", f".layer.{old}.")
        if task == "lm" and "pooler" in name:
            continue  # a masked language model has none: transformers draws it
        torch.testing.assert_close(tensor, expected_tensor(theirs[source], *sizes), rtol=0, atol=0)
        checked += 1
    assert checked > 30
    stored = load_file(out / "model.safetensors")
    assert result["parameters_after"] == sum(t.numel() for t in stored.values())
    assert result["bytes_after"] == sum(t.numel() * t.element_size() for t in stored.values())


@pytest.mark.parametrize("family", FAMILIES)
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


@pytest.mark.parametrize("task", ["sequence", "token"])
def test_student_loads_with_no_missing_or_spare_tensor(
    tmp_path: Path, xlmr_tokenizer: PreTrainedTokenizerFast, task: str
) -> None:
    for family in FAMILIES:
        teacher_dir = saved(tmp_path / family, xlmr_tokenizer, family, task)
        out = tmp_path / family / "student"
        shrink(ShrinkConfig(model=str(teacher_dir), layers=1, hidden_size=8, output_dir=out))
        _, report = AUTO[task].from_pretrained(out, output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        assert not report["mismatched_keys"]


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
    with pytest.raises(ShapeError, match="rise"):
        choose_layers(12, None, "5,2")
    with pytest.raises(UsageError, match="names 2 layers"):
        choose_layers(12, 3, "2,4")
    with pytest.raises(UsageError, match="no list"):
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
    shrink(ShrinkConfig(**options, overwrite=True))
    assert (out / "config.json").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


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


def test_streamed_file_is_what_safetensors_reads(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 5),
        "b": torch.arange(7),
        "c": torch.randn(2, 2).to(torch.bfloat16),
        "d": torch.tensor([True, False]),
        "e": torch.tensor(2.5, dtype=torch.float16),
    }
    specs = {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in tensors.items()}
    write_tensors(tmp_path / "model.safetensors", specs, tensors.__getitem__)
    read = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    with TensorReader(tmp_path) as reader:
        assert reader.specs == specs


def test_shards_are_read(tmp_path: Path, xlmr_tokenizer: PreTrainedTokenizerFast) -> None:
    folder = tmp_path / "sharded"
    make_model("xlm-roberta", "sequence").save_pretrained(folder, max_shard_size="20KB")
    xlmr_tokenizer.save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    shrink(ShrinkConfig(model=str(folder), layers=2, output_dir=tmp_path / "out"))
    auto = AUTO["sequence"]
    teacher, student = auto.from_pretrained(folder), auto.from_pretrained(tmp_path / "out")
    name = "roberta.encoder.layer.1.output.dense.weight"
    theirs = teacher.state_dict()["roberta.encoder.layer.3.output.dense.weight"]
    assert torch.equal(student.state_dict()[name], theirs)
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
