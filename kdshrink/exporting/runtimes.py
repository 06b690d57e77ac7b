"""What a runtime is known not to read of an exported model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..data.registry import Task

# The names in @huggingface/tokenizers and in models/registry.js of transformers.js 4.3.2.
_JS_PARTS = {
    "normalizer": (
        "BertNormalizer Precompiled Sequence Replace NFC NFD NFKC NFKD Strip StripAccents Lowercase Prepend"
    ).split(),
    "pre_tokenizer": (
        "BertPreTokenizer Sequence Whitespace WhitespaceSplit Metaspace ByteLevel Split Punctuation Digits "
        "Replace FixedLength"
    ).split(),
    "model": "WordPiece Unigram BPE".split(),
    "post_processor": (
        "TemplateProcessing ByteLevel BertProcessing RobertaProcessing Sequence"
    ).split(),
    "decoder": (
        "ByteLevel WordPiece Metaspace BPEDecoder CTC Sequence Replace Fuse Strip ByteFallback"
    ).split(),
}
_JS_BOTH = (
    "bert eurobert neobert modernbert roformer electra esm convbert camembert deberta deberta-v2 mpnet "
    "distilbert roberta xlm xlm-roberta"
).split()
_JS_MODELS: dict[Task, list[str]] = {
    "sequence": [*_JS_BOTH, "albert", "bart", "mbart", "mobilebert", "squeezebert"],
    "token": _JS_BOTH,
}


def unread(folder: Path, config: Mapping[str, Any], task: Task) -> dict[str, list[str]]:
    """For each runtime that does not read all of a model, what it does not, a sentence each.

    Args:
        folder: The exported directory.
        config: Its config.json.
    """
    found = {
        "transformers.js": [*_not_in_javascript(folder, config, task)],
        "text-embeddings-inference": []
        if task == "sequence"
        else ["It classifies texts, and not their words (issue 707)."],
    }
    return {runtime: faults for runtime, faults in found.items() if faults}


def _not_in_javascript(folder: Path, config: Mapping[str, Any], task: Task) -> Iterator[str]:
    model_type = str(config.get("model_type"))
    if model_type not in _JS_MODELS[task]:
        kind = {"sequence": "text", "token": "token"}[task]
        yield f"It has no {model_type} for {kind} classification."
    path = folder / "tokenizer.json"
    if not path.is_file():
        yield "It reads tokenizer.json, which this tokenizer has not."
        return
    content = json.loads(path.read_text(encoding="utf-8"))
    for part, known in _JS_PARTS.items():
        for name in _types(content.get(part)):
            if name not in known:
                yield f"It does not know the tokenizer's {part} {name}."


def _types(part: Any) -> Iterator[str]:
    """The types that a part of tokenizer.json is made of."""
    if not isinstance(part, Mapping):
        return
    if isinstance(part.get("type"), str):
        yield part["type"]
    for name in ("normalizers", "pretokenizers", "processors", "decoders"):
        for inner in part.get(name) or ():
            yield from _types(inner)
