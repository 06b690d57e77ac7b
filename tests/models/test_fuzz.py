"""Model directories damaged at random: refused by a known error, or read as they stand, and nothing else.

By hand for longer: `KDSHRINK_FUZZ_CASES=1000 pytest -s tests/models/test_fuzz.py`; KDSHRINK_FUZZ_FIRST is the
number of the first case, and a case's number decides all of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from kdshrink.commands.distill import distill
from kdshrink.commands.evaluate import evaluate
from kdshrink.commands.shrink import shrink
from kdshrink.config.commands import DistillConfig, EvalConfig, ShrinkConfig
from kdshrink.errors import KdshrinkError
from kdshrink.models.loading import load_tokenizer, load_weights
from kdshrink.models.source import find_model

from ..helpers.models import LABELS, make_model

SEED = 14
CASES = int(os.environ.get("KDSHRINK_FUZZ_CASES", "60"))
FIRST = int(os.environ.get("KDSHRINK_FUZZ_FIRST", "0"))
LONG = "KDSHRINK_FUZZ_CASES" in os.environ
SECONDS = 90
"""A case that takes longer hangs; tests may share a slow machine."""

IDS = torch.tensor([[0, 17, 230, 301, 44, 2], [0, 5, 9, 2, 1, 1]])
Tensors = dict[str, torch.Tensor]


class HangError(BaseException):
    """A case took too long. No Exception, so that nothing on the way takes it for its own."""


@contextlib.contextmanager
def limited() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise HangError

    former = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


# --- mutations: each changes a directory in place and says what it did ---


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def damage_bytes(folder: Path, rng: random.Random) -> str:
    path = rng.choice(_files(folder))
    content = bytearray(path.read_bytes())
    kind = rng.choice(["flip", "truncate", "insert", "delete", "zero", "repeat"])
    # The header is where the most can go wrong, and a small share of the bytes.
    end = len(content) if rng.random() < 0.5 else min(len(content), 400)
    at = rng.randrange(max(end, 1))
    size = rng.choice([1, 4, 50])
    if kind == "flip":
        for _ in range(rng.choice([1, 3, 20])):
            if content:
                content[rng.randrange(max(end, 1)) % len(content)] ^= 1 << rng.randrange(8)
    elif kind == "truncate":
        del content[at:]
    elif kind == "insert":
        content[at:at] = rng.randbytes(size)
    elif kind == "delete":
        del content[at : at + size]
    elif kind == "zero":
        content[at : at + size] = bytes(len(content[at : at + size]))
    else:
        content[at:at] = content[at : at + size]
    path.write_bytes(content)
    return f"{kind} in {path.name} at {at}"


def _replace(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    path = folder / "model.safetensors"
    if not path.is_file():
        return
    tensors = change(load_file(path))
    path.unlink()
    save_file({name: t.clone().contiguous() for name, t in tensors.items()}, path, {"format": "pt"})


def _wrap_all(tensors: Tensors, rng: random.Random) -> Tensors:
    prefix = rng.choice(["module.", "_orig_mod.", "base_model.model.", "module._orig_mod.", "student.", "roberta."])  # fmt: skip
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _wrap_one(tensors: Tensors, rng: random.Random) -> Tensors:
    chosen = rng.choice(sorted(tensors))
    prefix = rng.choice(["module.", "roberta.", "x."])
    return {prefix + name if name == chosen else name: t for name, t in tensors.items()}


def _drop(tensors: Tensors, rng: random.Random) -> Tensors:
    part = rng.choice(sorted(tensors)) if rng.random() < 0.6 else rng.choice(["classifier", "layer.1", "LayerNorm", "word"])  # fmt: skip
    return {name: tensor for name, tensor in tensors.items() if part not in name}


def _unprefix(tensors: Tensors, rng: random.Random) -> Tensors:
    every = rng.random() < 0.5
    return {
        name.removeprefix("roberta.") if every or rng.random() < 0.2 else name: tensor
        for name, tensor in tensors.items()
    }


def _rename(tensors: Tensors, rng: random.Random) -> Tensors:
    old, new = rng.choice([
        ("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"),
        ("query", "key"), ("layer.0", "layer.7"), ("query.weight", "query.base_layer.weight"),
        ("classifier.", "classifier.modules_to_save.default."), ("encoder.", "encoder._orig_mod."),
        ("dense", "Dense"), ("layer.1.", "layer.01."),
    ])  # fmt: skip
    return {name.replace(old, new): tensor for name, tensor in tensors.items()}


def _reshape(tensors: Tensors, rng: random.Random) -> Tensors:
    chosen = rng.choice(sorted(tensors))
    tensor = tensors[chosen]
    shapes = [
        tensor.flatten(), tensor.T if tensor.dim() == 2 else tensor[None], tensor[:-1],
        torch.cat([tensor, tensor[:1]]), tensor[:0], tensor.flatten()[0],
    ]  # fmt: skip
    return {**tensors, chosen: rng.choice(shapes)}


def _duplicate(tensors: Tensors, rng: random.Random) -> Tensors:
    chosen = rng.choice(sorted(tensors))
    other = rng.choice([
        chosen.removeprefix("roberta."), f"roberta.{chosen}", f"module.{chosen}", "cls.predictions.bias",
        "roberta.pooler.dense.bias", "roberta.encoder.layer.2.output.dense.bias", "lm_head.bias",
        "roberta.embeddings.position_ids", "roberta.encoder.layer.0.attention.self.distance_embedding.weight",
        chosen.replace("weight", "gamma"), "classifier.weight", "adapter.down.weight",
    ])  # fmt: skip
    return {**tensors, other: tensors.get(other, tensors[chosen] + 1)}


def _retype(tensors: Tensors, rng: random.Random) -> Tensors:
    kind = rng.choice([torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int32, torch.bool])  # fmt: skip
    every, chosen = rng.random() < 0.5, rng.choice(sorted(tensors))
    return {n: t.to(kind) if every or n == chosen else t for n, t in tensors.items()}


def _spoil(tensors: Tensors, rng: random.Random) -> Tensors:
    chosen = rng.choice(sorted(tensors))
    value = rng.choice([float("nan"), float("inf"), 3e38, -1e30])
    spoiled = tensors[chosen].clone()
    spoiled.view(-1)[rng.randrange(spoiled.numel())] = value
    return {**tensors, chosen: spoiled}


def _swap(tensors: Tensors, rng: random.Random) -> Tensors:
    one, other = rng.sample(sorted(tensors), 2)
    return {**tensors, one: tensors[other], other: tensors[one]}


WEIGHTS = (_wrap_all, _wrap_one, _drop, _unprefix, _rename, _reshape, _duplicate, _retype, _spoil, _swap)  # fmt: skip


def change_weights(folder: Path, rng: random.Random) -> str:
    change = rng.choice(WEIGHTS)
    _replace(folder, lambda tensors: change(tensors, rng))
    return change.__name__


def repack(folder: Path, rng: random.Random) -> str:
    """Weights as a pickle, or in shards, with faults in the index."""
    path = folder / "model.safetensors"
    if not path.is_file():
        return "nothing to repack"
    tensors = load_file(path)
    if rng.random() < 0.4:
        if rng.random() < 0.7:
            path.unlink()
        torch.save(tensors, folder / "pytorch_model.bin")
        return "pickle"
    path.unlink()
    names = sorted(tensors)
    shards = [f"model-{i + 1:05}-of-00002.safetensors" for i in range(2)]
    places = {name: shards[i % 2] for i, name in enumerate(names)}
    for shard in shards:
        save_file({n: tensors[n] for n in names if places[n] == shard}, folder / shard)
    fault = rng.choice(["none", "lost", "twice", "map"])
    if fault == "lost":
        (folder / shards[1]).unlink()
    elif fault == "twice":
        shutil.copy(folder / shards[0], folder / shards[1])
    elif fault == "map":
        places[rng.choice(names)] = rng.choice(["../secret", "nowhere", 3, None, "config.json", ""])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return f"shards, {fault}"


def change_files(folder: Path, rng: random.Random) -> str:
    path = rng.choice(_files(folder))
    kind = rng.choice(["delete", "swap", "empty", "folder", "adapter"])
    if kind == "swap":
        other = rng.choice(_files(folder))
        content = path.read_bytes()
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
        return f"swap {path.name} {other.name}"
    if kind == "adapter":
        (folder / "adapter_config.json").write_text("{}")
        return kind
    path.unlink()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "folder":
        path.mkdir()
    return f"{kind} {path.name}"


VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 5, 10**9, 10**30, -(10**20), 0.5, 1e308, float("nan"), float("inf"),
    "", "x", "24", "x" * 5000, "\u0000", "../..", [], ["x"], [1, 2], [None], {}, {"0": "a"}, {"a": 0},
    "XLMRobertaModel", "XLMRobertaForTokenClassification", "bert", "deberta-v2", "t5", "gelu_new",
]  # fmt: skip
ADDED: dict[str, Any] = {
    "quantization_config": {"quant_method": "gptq"}, "problem_type": "regression", "num_labels": 3,
    "auto_map": {"AutoConfig": "evil.Config"}, "position_embedding_type": "relative_key",
    "tokenizer_class": "BertTokenizer", "id2label": LABELS, "label2id": {n: i for i, n in enumerate(LABELS)},
    "is_decoder": True, "add_cross_attention": True, "chunk_size_feed_forward": 7, "torch_dtype": "float16",
    "dtype": "bfloat16", "pruned_heads": {"0": [1]}, "tie_word_embeddings": False, "output_attentions": True,
    "return_dict": False, "use_return_dict": False, "attn_implementation": "flash_attention_2",
    "_attn_implementation": "x", "add_prefix_space": True, "model_max_length": 3, "truncation_side": "left",
    "padding_side": "left", "architectures": ["XLMRobertaModel"], "hidden_dropout_prob": 7,
    "transformers_weights": "other.safetensors", "gradient_checkpointing": True, "split_special_tokens": True,
}  # fmt: skip


def change_json(folder: Path, rng: random.Random) -> str:
    names = ["config.json", "config.json", "tokenizer_config.json", "tokenizer.json"]
    path = folder / rng.choice([name for name in names if (folder / name).is_file()] or [""])
    try:
        tree = json.loads(path.read_text())
    except (OSError, ValueError):
        return "no JSON to change"
    if not isinstance(tree, dict) or not tree:
        return "no JSON to change"
    if rng.random() < 0.25:
        key = rng.choice(sorted(ADDED))
        tree[key] = ADDED[key]
        told = f"{path.name}: {key} added"
    else:
        inner: Any = tree
        key = rng.choice(sorted(tree))
        while isinstance(inner[key], (dict, list)) and inner[key] and rng.random() < 0.8:
            inner = inner[key]
            key = rng.choice(sorted(inner)) if isinstance(inner, dict) else rng.randrange(len(inner))  # fmt: skip
        if isinstance(inner, dict) and rng.random() < 0.2:
            del inner[key]
            told = f"{path.name}: {key} deleted"
        else:
            inner[key] = rng.choice(VALUES)
            told = f"{path.name}: {key} = {inner[key]!r:.30}"
    path.write_text(json.dumps(tree))
    return told


MUTATIONS = (damage_bytes, change_weights, change_weights, repack, change_files, change_json, change_json)  # fmt: skip


def mutate(folder: Path, rng: random.Random) -> str:
    done = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if not _files(folder):
            break
        with contextlib.suppress(Exception):  # what one damaged, another cannot change
            done.append(rng.choice(MUTATIONS)(folder, rng))
    return "; ".join(done)


# --- what is accepted is what stands in the files ---


def stored_tensors(folder: Path) -> Tensors:
    """The weights as plain readers give them."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return load_file(single)
    if index.is_file():
        shards = set(json.loads(index.read_text())["weight_map"].values())
        return {n: t for shard in sorted(shards) for n, t in load_file(folder / shard).items()}
    return dict(torch.load(folder / "pytorch_model.bin", weights_only=True))


def assert_as_stored(state: Tensors, folder: Path, layers: Callable[[str], str]) -> None:
    """Assert that every tensor of a model stands in the files, under its name or that of a known wrapper."""
    plain = {}
    for stored, tensor in stored_tensors(folder).items():
        name = stored.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
            "LayerNorm.beta", "LayerNorm.bias"
        )
        for wrapper in ("base_model.model.", "module.", "_orig_mod."):
            name = name.replace(wrapper, "")
        plain[name.replace("roberta.", "")] = tensor
    for name, tensor in state.items():
        theirs = plain[layers(name).removeprefix("roberta.")]
        torch.testing.assert_close(
            tensor, theirs.to(tensor.dtype), rtol=0, atol=0, equal_nan=True, msg=name
        )


def compare_with_transformers(model: Any, labels: tuple[str, ...], folder: Path) -> None:
    """Assert that a model is what transformers reads, where it can and says that nothing is amiss."""
    try:
        plain, told = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
    except Exception:
        return
    chunked = getattr(plain.config, "chunk_size_feed_forward", 0)  # only some lengths fit then
    if told["missing_keys"] or told["mismatched_keys"] or chunked:
        return
    mine = model.state_dict()
    assert mine.keys() == plain.state_dict().keys()
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(mine[name], tensor, rtol=0, atol=0, equal_nan=True)
    assert labels == tuple(str(plain.config.id2label[i]) for i in range(len(labels)))
    with torch.inference_mode():
        ids, mask = IDS, IDS != 1
        mine, theirs = (m.eval()(ids, attention_mask=mask, return_dict=True).logits for m in (model, plain))  # fmt: skip
    torch.testing.assert_close(mine, theirs, equal_nan=True)


def run_case(folder: Path, data: Path, out: Path, *, distilled: bool) -> str:
    """Run a directory through load, shrink, eval and distill; how far it came."""
    source = find_model(str(folder))
    model = load_weights(source, "sequence")
    load_tokenizer(source)
    assert_as_stored(model.state_dict(), folder, lambda name: name)
    compare_with_transformers(model, source.labels, folder)
    reached = "loaded"
    run: dict[str, Any] = {"data": str(data), "device": "cpu"}
    steps: dict[str, Callable[[], Any]] = {
        "shrunk": lambda: shrink(
            ShrinkConfig(model=str(folder), layers=1, output_dir=out / "shrunk")
        ),
        "scored": lambda: evaluate(EvalConfig(model=str(folder), **run)),
    }
    if distilled:
        steps["distilled"] = lambda: distill(
            DistillConfig(
                teacher=str(folder), layers=1, max_steps=1, output_dir=out / "distilled", **run
            )
        )
    refusals = []
    for reached, step in steps.items():
        try:
            step()
        except KdshrinkError as error:
            check_message(error)
            refusals.append(f"not {reached}: {error}")
    if (out / "shrunk" / "config.json").exists():
        assert_as_stored(
            load_file(out / "shrunk" / "model.safetensors"),
            folder,
            lambda name: name.replace(".layer.0.", ".layer.1."),
        )
    return refusals[0] if refusals else reached


def check_message(error: KdshrinkError) -> None:
    lines = str(error).splitlines()
    assert len(lines) <= 4, error
    assert len(str(error)) < 1500, error


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, xlmr_tokenizer: PreTrainedTokenizerFast
) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "model"
    make_model("xlm-roberta", "sequence", num_hidden_layers=2).save_pretrained(folder)
    xlmr_tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.defect("W4", "W22", "T12", "T14", "T20", "M9")
def test_damaged_directories_are_refused_or_read_as_they_stand(
    whole: Path, text_data: Path, tmp_path: Path
) -> None:
    print(f"\nseed {SEED}, cases {FIRST} to {FIRST + CASES - 1}")
    outcomes: Counter[str] = Counter()
    faults = []
    for case in range(FIRST, FIRST + CASES):
        rng = random.Random(f"{SEED}/{case}")
        folder, out = tmp_path / "case" / "model", tmp_path / "case" / "out"
        shutil.copytree(whole, folder)
        out.mkdir()
        done = mutate(folder, rng)
        try:
            with limited():
                outcome = run_case(folder, text_data, out, distilled=LONG or case % 12 == 0)
            outcomes["accepted" if outcome in ("scored", "distilled") else "refused later"] += 1
        except KdshrinkError as error:
            check_message(error)
            outcomes["refused"] += 1
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            outcomes["fault"] += 1
            faults.append(f"case {case}: {done}: {type(error).__name__}: {str(error)[:300]}")
            if LONG:
                print(faults[-1], flush=True)
                traceback.print_exception(error, limit=-4)
        shutil.rmtree(tmp_path / "case")
        if LONG and case % 100 == 99:
            print(f"{case}: {dict(outcomes)}", flush=True)
    print(dict(outcomes))
    assert not faults, "\n".join(faults)
    assert CASES < 60 or (outcomes["accepted"] and outcomes["refused"])
