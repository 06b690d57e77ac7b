"""Trims a tokenizer's vocabulary to the tokens that texts use, without changing their tokenisation."""

from __future__ import annotations

import copy
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from ..errors import ModelError, ShapeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Text = str | list[str]
"""A text, or the list of its words for token classification."""
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class TrimmedTokenizer:
    """A tokenizer with a subset of another's vocabulary.

    Attributes:
        kept: The old id of each new id.
        content: The content of its tokenizer.json.
        settings: The contents of its other JSON files, by name.
    """

    kept: list[int]
    content: dict[str, Any]
    settings: Mapping[str, dict[str, Any]]

    def backend(self) -> Tokenizer:
        return Tokenizer.from_str(json.dumps(self.content))

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and the settings, but none of the files that hold the whole vocabulary."""
        for name, content in {"tokenizer.json": self.content, **self.settings}.items():
            text = json.dumps(content, ensure_ascii=False, indent=None if "vocab" in name else 2)
            (folder / name).write_text(text, encoding="utf-8")


def count_tokens(tokenizer: PreTrainedTokenizerBase, texts: Iterable[Sequence[Text]]) -> np.ndarray:
    """Count how often each token occurs in texts.

    Args:
        texts: Batches of texts, or of lists of words.

    Returns:
        (V,) counts by id, without the special tokens that are added to a text.

    Raises:
        ModelError: The tokenizer's ids have gaps.
    """
    counts = np.zeros(len(tokenizer), dtype=np.int64)
    for batch in texts:
        encoded = tokenizer(
            list(batch),
            add_special_tokens=False,
            is_split_into_words=isinstance(batch[0], list),
            return_attention_mask=False,
            verbose=False,
        )
        ids = np.fromiter((i for one in encoded["input_ids"] for i in one), dtype=np.int64)
        if ids.max(initial=0) >= len(counts):
            raise _gaps(len(counts), ids.max())
        counts += np.bincount(ids, minlength=len(counts))
        for text, one in zip(batch, encoded["input_ids"], strict=True):
            if tokenizer.unk_token_id in one:
                counts[_beginnings_of_unknown_words(tokenizer, text)] += 1
    return counts


def _gaps(tokens: int, index: int) -> ModelError:
    return ModelError(
        f"The vocabulary cannot be trimmed: its ids have gaps ({tokens:,} tokens, but an id {index:,})."
    )


def _beginnings_of_unknown_words(tokenizer: PreTrainedTokenizerBase, text: Text) -> list[int]:
    """Ids of the tokens that WordPiece matched at the beginning of words that it found unknown.

    Without these it would match shorter ones there, and might then find the word known.
    """
    backend = tokenizer.backend_tokenizer
    if type(backend.model).__name__ != "WordPiece":
        return []
    vocabulary, prefix = tokenizer.get_vocab(), backend.model.continuing_subword_prefix
    found = []
    for part in [text] if isinstance(text, str) else text:
        normal = backend.normalizer.normalize_str(part) if backend.normalizer else part
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal):
            begin, end = 0, len(word)
            while begin < end:
                token = (prefix if begin else "") + word[begin:end]
                if token in vocabulary:
                    found.append(vocabulary[token])
                    begin, end = end, len(word)
                else:
                    end -= 1
    return found


def read_settings(folder: Path) -> dict[str, dict[str, Any]]:
    """The contents of a tokenizer's JSON files beside tokenizer.json, by name."""
    paths = [folder / name for name in _SETTINGS]
    return {p.name: json.loads(p.read_text(encoding="utf-8")) for p in paths if p.is_file()}


def trim_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    counts: np.ndarray,
    settings: Mapping[str, dict[str, Any]],
    *,
    vocab_size: int | None = None,
    min_count: int = 1,
) -> TrimmedTokenizer:
    """Trim a tokenizer to the tokens that were counted and those that other texts need.

    The latter are all special and added tokens, the ids up to the padding's (XLM-R counts positions from
    it), and all single characters of the scripts of the counted tokens, alone and as they begin or
    continue a word.

    Texts whose tokens are all kept are tokenised as before. Unigram: the best path still exists and
    competes with fewer others, so that it wins as before, ties included; the token of lowest score is
    kept, since the score of unknown characters derives from it. WordPiece: the longest match still
    exists, and no longer one is added. BPE: all merges that lead to a kept token are kept, with their
    parts, in the old order, so that each next merge is the same as before.

    Args:
        tokenizer: The tokenizer to trim, which stays as it is.
        counts: From `count_tokens`.
        settings: From `read_settings`.
        vocab_size: Tokens to keep at most, the most frequent ones; may change how texts are tokenised.
        min_count: Removes tokens that occur less often; may change how texts are tokenised.

    Raises:
        ModelError: The tokenizer is of a type that cannot be trimmed.
        ShapeError: vocab_size is too small for the tokens that must be kept.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model = content["model"]
    if model["type"] not in ("Unigram", "WordPiece", "BPE"):
        raise ModelError(
            f"The vocabulary of a tokenizer of type {model['type']} cannot be trimmed.\n"
            "Supported: Unigram, WordPiece and BPE."
        )
    ids = tokenizer.get_vocab()
    if max(ids.values()) >= len(counts):
        raise _gaps(len(counts), max(ids.values()))
    parts = _parts_of_merged(model) if model["type"] == "BPE" else {}
    kept_set = _with_parts(_needed(content, tokenizer, ids, counts), parts, set())
    if vocab_size is not None and vocab_size < len(kept_set):
        raise ShapeError(
            f"--vocab-size {vocab_size}: special tokens and single characters alone are "
            f"{len(kept_set)}.\nGive {len(kept_set)} or more."
        )
    used = np.flatnonzero(counts >= min_count).tolist()
    for index in sorted(used, key=lambda i: (-counts[i], i)):
        added = _with_parts({index}, parts, kept_set)
        if vocab_size is None or len(kept_set) + len(added) <= vocab_size:
            kept_set |= added
    kept = sorted(kept_set)
    new_ids = {old: new for new, old in enumerate(kept)}
    _renumber(content, new_ids)
    new_settings = {name: _renumber_settings(value, new_ids) for name, value in settings.items()}
    return TrimmedTokenizer(kept, content, new_settings)


def _needed(
    content: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    ids: Mapping[str, int],
    counts: np.ndarray,
) -> set[int]:
    """Ids that are kept even where they were not counted."""
    model = content["model"]
    special = {token["id"] for token in content["added_tokens"]} | set(tokenizer.all_special_ids)
    needed = special | set(range(int(tokenizer.pad_token_id or 0) + 1))
    if model["type"] == "Unigram":
        needed |= {int(np.argmin([score for _, score in model["vocab"]])), model["unk_id"]}
    elif unknown := model.get("unk_token"):
        needed.add(model["vocab"][unknown])
    byte_level = "ByteLevel" in json.dumps([content["pre_tokenizer"], content["decoder"]])
    counted = {token for token, index in ids.items() if counts[index] and index not in special}
    scripts = {"common"} | {script(character) for token in counted for character in token}
    for token, index in ids.items():
        bare = _bare(token, model)
        single = len(bare) <= 1 and (byte_level or not bare or script(bare) in scripts)
        if single or (model.get("byte_fallback") and re.fullmatch("<0x[0-9A-F]{2}>", token)):
            needed.add(index)
    return needed


def _bare(token: str, model: Mapping[str, Any]) -> str:
    """A token without the prefix or suffix that marks its position in a word."""
    for mark in (model.get("continuing_subword_prefix"), "▁"):
        if mark and token.startswith(mark):
            return token.removeprefix(mark)
    return token.removesuffix(model.get("end_of_word_suffix") or "")


def script(character: str) -> str:
    """The script of a character, by the first word of its Unicode name ("CYRILLIC", "CJK").

    Python has no table of scripts, and names give them with few exceptions, which are handled here.
    Digits, punctuation and accents that scripts share are "common"; a symbol is a script of its own.
    """
    if character < "\u0250":
        return "LATIN" if character.isalpha() else "common"
    name = unicodedata.name(character, character).split(" ")[0].split("-")[0]
    if "\u2000" <= character < "\u2070" or name in ("COMBINING", "MODIFIER", "VARIATION"):
        return "common"
    if "\u3000" <= character < "\u3040" or name in ("IDEOGRAPHIC", "FULLWIDTH"):
        return "CJK"
    if unicodedata.category(character)[0] not in "LMNP":
        return character
    return "ARABIC" if name == "EXTENDED" else name


def _parts_of_merged(model: Mapping[str, Any]) -> dict[int, list[int]]:
    """For the id of each merged token, the ids of the parts of every merge that leads to it."""
    vocabulary = model["vocab"]
    parts: dict[int, list[int]] = {}
    for left, right in map(_pair, model["merges"]):
        merged = vocabulary[_merged(left, right, model)]
        parts.setdefault(merged, []).extend([vocabulary[left], vocabulary[right]])
    return parts


def _with_parts(ids: set[int], parts: Mapping[int, Sequence[int]], kept: set[int]) -> set[int]:
    """These ids and all that they are merged from, minus those already kept (with their parts)."""
    closed, to_do = set[int](), [index for index in ids if index not in kept]
    while to_do:
        index = to_do.pop()
        if index not in closed:
            closed.add(index)
            to_do += [part for part in parts.get(index, ()) if part not in kept]
    return closed


def _merged(left: str, right: str, model: Mapping[str, Any]) -> str:
    return left + right.removeprefix(model.get("continuing_subword_prefix") or "")


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _renumber(content: dict[str, Any], new_ids: Mapping[int, int]) -> None:
    """Rewrite the content of a tokenizer.json with the new ids, in place."""
    model = content["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [model["vocab"][old] for old in new_ids if old < len(model["vocab"])]
        model["unk_id"] = new_ids[model["unk_id"]]
    else:
        model["vocab"] = {
            token: new_ids[old] for token, old in model["vocab"].items() if old in new_ids
        }
    if model["type"] == "BPE":
        vocabulary = model["vocab"]
        model["merges"] = [
            merge
            for merge in model["merges"]
            if all(p in vocabulary for p in (*_pair(merge), _merged(*_pair(merge), model)))
        ]
    for token in content["added_tokens"]:
        token["id"] = new_ids[token["id"]]
    if content.get("post_processor"):
        content["post_processor"] = _renumber_processor(content["post_processor"], new_ids)


def _renumber_processor(processor: dict[str, Any], new_ids: Mapping[int, int]) -> dict[str, Any]:
    processor = copy.deepcopy(processor)
    for token in (processor.get("special_tokens") or {}).values():
        token["ids"] = [new_ids[old] for old in token["ids"]]
    for name in ("sep", "cls"):
        if isinstance(processor.get(name), list):
            processor[name][1] = new_ids[processor[name][1]]
    if "processors" in processor:
        processor["processors"] = [_renumber_processor(p, new_ids) for p in processor["processors"]]
    return processor


def _renumber_settings(content: dict[str, Any], new_ids: Mapping[int, int]) -> dict[str, Any]:
    """tokenizer_config.json with new ids, of added tokens too (as transformers 4 wrote them)."""
    changed: dict[str, Any] = {
        key: new_ids[old]
        for key, old in content.items()
        if (key == "unk_id" or key.endswith("_token_id")) and old in new_ids
    }
    if decoder := content.get("added_tokens_decoder"):
        changed["added_tokens_decoder"] = {
            str(new_ids[int(old)]): token for old, token in decoder.items() if int(old) in new_ids
        }
    return {**content, **changed}
