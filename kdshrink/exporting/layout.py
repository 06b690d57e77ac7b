"""The files around a graph, as transformers, transformers.js and text-embeddings-inference look for them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import ModelError
from ..files import write_json, write_text
from ..models.source import Source

_NMT_REMOVED = "[\x01-\x08\x0b\x0e-\x1f\x7f\x8f\x9f]"
_NMT_BLANKS = "[\t\n\x0c\r\u1680\u200b-\u200f\u2028\u2029\u2581\ufeff\ufffd]"
"""What the normalizer `Nmt` of tokenizers removes, and what it replaces by a blank."""
_OF_LOADING = ("is_local", "local_files_only")
"""What transformers adds to a tokenizer's settings about how it was loaded."""


def write_model(source: Source, model: PreTrainedModel, folder: Path) -> None:
    """Write config.json and the weights: its safetensors as they are, or anew where it has none."""
    files = sorted(source.directory.glob("*.safetensors*"))
    if files:
        for file in files:
            shutil.copyfile(file, folder / file.name)
    else:
        model.save_pretrained(folder)
    write_json(folder / "config.json", dict(source.config))


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, *, token_types: bool) -> None:
    """Write a tokenizer that more runtimes read, and that tokenises as it did.

    Its class becomes one that transformers 4 knows too, its list of further special tokens is named as
    there, and the normalizer `Nmt` is written as the two replacements that it makes.

    Args:
        token_types: Whether the model reads them; without a word transformers 4 makes them, and 5 does not.
    """
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    settings["model_input_names"] = ["input_ids", "attention_mask"]
    if token_types:
        settings["model_input_names"].append("token_type_ids")
    for name in _OF_LOADING:
        settings.pop(name, None)
    write_json(path, settings)
    path = folder / "tokenizer.json"
    if path.is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
        content["normalizer"] = without_nmt(content["normalizer"])
        write_text(path, json.dumps(content, ensure_ascii=False, indent=2))


def without_nmt(normalizer: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normalizer of tokenizer.json with `Nmt` spelt out; transformers.js does not know that name."""
    if normalizer is None:
        return None
    if normalizer["type"] == "Sequence":
        inner = [without_nmt(one) for one in normalizer["normalizers"]]
        return {"type": "Sequence", "normalizers": inner}
    if normalizer["type"] != "Nmt":
        return normalizer
    steps = [
        {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}
        for pattern, content in ((_NMT_REMOVED, ""), (_NMT_BLANKS, " "))
    ]
    return {"type": "Sequence", "normalizers": steps}


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, folder: Path, texts: Sequence[Any], max_length: int
) -> None:
    """Raise ModelError where the tokenizer in a folder makes other tokens of these texts, or word lists."""
    written = AutoTokenizer.from_pretrained(folder)
    how: dict[str, Any] = {
        "truncation": True,
        "max_length": max_length,
        "is_split_into_words": not isinstance(texts[0], str),
    }
    expected, found = (one(list(texts), **how)["input_ids"] for one in (tokenizer, written))
    for text, before, after in zip(texts, expected, found, strict=True):
        if before != after:
            raise ModelError(
                f"The exported tokenizer does not tokenise as the model's: {text!r:.120} has "
                f"{len(before)} tokens, and {len(after)} in {folder.name}."
            )
