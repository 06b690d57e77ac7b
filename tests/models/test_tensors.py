"""Reading and writing tensors: against safetensors and torch, and of damaged files."""

from __future__ import annotations

import gc
import json
import weakref
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kdshrink.errors import ModelError
from kdshrink.models import tensors
from kdshrink.models.tensors import TensorReader, TensorSpec, to_array, write_tensors

TENSORS = {
    "b.weight": torch.randn(3, 5),
    "a.weight": torch.arange(7),
    "half": torch.randn(2, 2, 2).to(torch.bfloat16),
    "mask": torch.tensor([True, False]),
    "scalar": torch.tensor(2.5, dtype=torch.float16),
    "empty": torch.zeros(0, 4),
    "überschrift": torch.tensor([-1], dtype=torch.int8),
}
SPECS = {name: TensorSpec.of(tensor) for name, tensor in TENSORS.items()}


def array_of(name: str) -> np.ndarray:
    return to_array(TENSORS[name])


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor as read for computing, after a check that it is copied as the same."""
    with TensorReader(folder) as reader:
        read = {name: reader.read(name) for name in reader.specs}
        for name, tensor in read.items():
            copied = list(reader.blocks(name))
            assert b"".join(block.tobytes() for block in copied) == to_array(tensor).tobytes()
        return read


def assert_same(read: dict[str, torch.Tensor]) -> None:
    assert set(read) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_streamed_file_is_what_safetensors_reads(tmp_path: Path) -> None:
    write_tensors(tmp_path / "model.safetensors", SPECS, array_of)
    assert_same(load_file(tmp_path / "model.safetensors"))
    with TensorReader(tmp_path) as reader:
        assert reader.specs == SPECS
    assert_same(read_all(tmp_path))


def test_views_are_written_as_they_look(tmp_path: Path) -> None:
    table = torch.arange(12.0).reshape(3, 4)
    views = {"transposed": table.T, "columns": table[:, ::2], "expanded": table[:1].expand(5, 4)}
    specs = {name: TensorSpec.of(view) for name, view in views.items()}
    write_tensors(tmp_path / "model.safetensors", specs, lambda name: to_array(views[name]))
    read = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(read[name], views[name]) for name in views)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("rows", [None, [4, 0, 3, 3]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_are_read_in_blocks_of_rows(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    rows: list[int] | None,
    dtype: torch.dtype,
) -> None:
    table = torch.randn(5, 2, 3).to(dtype)
    if kind == "bin":
        torch.save({"table": table}, tmp_path / "pytorch_model.bin")
    else:
        save_file(
            {"first": torch.ones(3, dtype=torch.int8), "table": table},
            tmp_path / "model.safetensors",
        )
    monkeypatch.setattr(tensors, "_BLOCK", 2 * table[0].nbytes)
    with TensorReader(tmp_path) as reader:
        blocks = list(reader.blocks("table", rows))
    chosen = table if rows is None else table[rows]
    assert [len(block) for block in blocks] == ([2, 2, 1] if rows is None else [2, 2])
    assert torch.equal(torch.from_numpy(np.concatenate(blocks)).view(dtype), chosen)


def test_one_tensor_at_a_time(tmp_path: Path) -> None:
    """No tensor made for the file is alive when the one after the next is asked for."""
    made: list[weakref.ref[np.ndarray]] = []

    def produce(_: str) -> np.ndarray:
        gc.collect()
        assert sum(ref() is not None for ref in made) <= 1
        array = np.ones((4, 4), np.float32)
        made.append(weakref.ref(array))
        return array

    specs = {str(i): TensorSpec((4, 4), "F32") for i in range(5)}
    write_tensors(tmp_path / "model.safetensors", specs, produce)
    assert len(made) == 5


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    write_tensors(
        tmp_path / "model.safetensors",
        SPECS,
        array_of,
        lambda what, done, total, figures: told.append((done, total)),
    )
    assert told == [(i, len(SPECS)) for i in range(1, len(SPECS) + 1)]


@pytest.mark.parametrize("as_zip", [True, False])
def test_pickles_of_today_and_of_before_torch_1_6(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, as_zip: bool
) -> None:
    state = OrderedDict(TENSORS)
    state["b.weight"] = torch.nn.Parameter(state["b.weight"])
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=as_zip)
    read = read_all(tmp_path)
    assert_same(read)
    assert not read["b.weight"].requires_grad
    assert "weights_only=True" in caplog.text


def test_safetensors_come_before_pickles(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"never looked at")
    assert_same(read_all(tmp_path))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards(tmp_path: Path, kind: str) -> None:
    base = "model" if kind == "safetensors" else "pytorch_model"
    names = list(TENSORS)
    files = {name: f"{base}-{1 + i % 3:05}-of-00003.{kind}" for i, name in enumerate(names)}
    for file in set(files.values()):
        part = {name: TENSORS[name] for name in names if files[name] == file}
        if kind == "safetensors":
            save_file(part, tmp_path / file)
        else:
            torch.save(part, tmp_path / file)
    index = tmp_path / f"{base}.{kind}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    assert_same(read_all(tmp_path))

    (tmp_path / f"{base}-00002-of-00003.{kind}").unlink()
    with pytest.raises(ModelError, match=r"shards are missing: .*-00002-of-00003"):
        TensorReader(tmp_path)
    for damaged in ("{", "[]", '{"weight_map": [1]}', "{}"):
        index.write_text(damaged)
        with pytest.raises(ModelError, match="no index of shards"):
            TensorReader(tmp_path)


def test_names_of_tensorflow(tmp_path: Path) -> None:
    """As in google-bert/bert-base-multilingual-cased."""
    norm = {"bert.LayerNorm.gamma": torch.ones(3), "bert.LayerNorm.beta": torch.zeros(3)}
    save_file({**norm, "bert.gamma_like.weight": torch.ones(1)}, tmp_path / "model.safetensors")
    read = read_all(tmp_path)
    assert set(read) == {"bert.LayerNorm.weight", "bert.LayerNorm.bias", "bert.gamma_like.weight"}
    assert torch.equal(read["bert.LayerNorm.weight"], torch.ones(3))


def test_no_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no weights"):
        TensorReader(tmp_path)


def test_damaged_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    whole = path.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    swapped = whole[:8] + whole[8 : 8 + header].replace(b"BF16", b"XX16") + whole[8 + header :]
    for broken in (b"", whole[:5], whole[: header // 2], whole[:-1], whole + b"x", swapped):
        path.write_bytes(broken)
        with pytest.raises(ModelError, match="damaged or cut off"):
            TensorReader(tmp_path)


@pytest.mark.parametrize("as_zip", [True, False])
def test_damaged_pickles(tmp_path: Path, as_zip: bool) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=as_zip)
    whole = path.read_bytes()
    for broken in (b"", whole[:10], whole[: len(whole) // 2], whole[:-9], b"<html>404</html>"):
        path.write_bytes(broken)
        with pytest.raises(ModelError, match="damaged or cut off"):
            TensorReader(tmp_path)


class _Code:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return exec, ("raise SystemExit('ran')",)


def test_pickles_that_would_run_code_are_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"weight": _Code()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="could run code") as caught:
        TensorReader(tmp_path)
    message = str(caught.value)
    assert "exec" in message
    assert "weights_only" not in message  # torch's advice to switch the protection off
    assert len(message.splitlines()) <= 3


def test_pickles_of_something_else(tmp_path: Path) -> None:
    for other in ({"state_dict": TENSORS, "epoch": 3}, [torch.ones(1)], torch.ones(1)):
        torch.save(other, tmp_path / "pytorch_model.bin")
        with pytest.raises(ModelError, match="something else than tensors by name"):
            TensorReader(tmp_path)


def test_types_that_are_not_supported_are_named(tmp_path: Path) -> None:
    odd = {"scales": torch.ones(2).to(torch.float8_e4m3fn)}
    save_file(odd, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="F8_E4M3, as scales"):
        TensorReader(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(odd, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="float8_e4m3fn, as scales"):
        TensorReader(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_pointers_of_git_lfs(tmp_path: Path, name: str) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (tmp_path / name).write_text(pointer)
    with pytest.raises(ModelError, match="git lfs pull"):
        TensorReader(tmp_path)
