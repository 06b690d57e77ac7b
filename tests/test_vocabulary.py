"""Trimming a vocabulary: nothing changes for the text it was trimmed for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from kdshrink import ShrinkConfig, shrink
from kdshrink.errors import ShapeError
from kdshrink.shrinking.vocabulary import count_pieces, held_out_cost, trim_tokenizer

from .conftest import make_model, make_tokenizer, sample_texts

KINDS = ("xlm-roberta", "deberta-v2", "bert", "roberta")
SOME = sample_texts()[::9]
AS_TENSORS = {
    "padding": True,
    "truncation": True,
    "max_length": 64,
    "return_tensors": "pt",
    "return_token_type_ids": False,
}


def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer(kind, size=900)
    if kind == "deberta-v2":  # its mask stands behind the vocabulary, as mDeBERTa's at 250101
        tokenizer.add_special_tokens({"mask_token": AddedToken("[MASK]", lstrip=True)})
        assert tokenizer.mask_token_id == len(tokenizer) - 1
    return tokenizer


@pytest.mark.parametrize("kind", KINDS)
def test_trimmed_and_untrimmed_agree_on_the_text(tmp_path: Path, kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    teacher = tmp_path / "teacher"
    tokenizer.save_pretrained(teacher)
    # More rows than pieces, as in XLM-R checkpoints whose table was padded.
    make_model(kind, "sequence", vocab_size=len(tokenizer) + 7).save_pretrained(teacher)
    text = tmp_path / "text.txt"
    text.write_text("\n".join(SOME))
    out = tmp_path / "trimmed"
    result = shrink(
        ShrinkConfig(model=str(teacher), vocab_from=str(text), output_dir=out)
    ).to_dict()
    assert result["vocabulary"]["after"] < result["vocabulary"]["before"]

    before, after = AutoTokenizer.from_pretrained(teacher), AutoTokenizer.from_pretrained(out)
    assert len(after) == result["vocabulary"]["after"]
    assert after.pad_token_id == before.pad_token_id
    for name in ("cls_token", "sep_token", "mask_token", "unk_token"):
        token = getattr(before, name)
        assert getattr(after, name) == token
        assert after.convert_ids_to_tokens(after.convert_tokens_to_ids(token)) == token
    models = [AutoModelForSequenceClassification.from_pretrained(d).eval() for d in (teacher, out)]
    assert models[1].config.vocab_size == len(after)
    for text_line in SOME:
        assert before.tokenize(text_line) == after.tokenize(text_line)
    for start in range(0, len(SOME), 16):
        batch = SOME[start : start + 16]
        with torch.no_grad():
            logits = [
                model(**tok(batch, **AS_TENSORS)).logits
                for model, tok in zip(models, (before, after), strict=True)
            ]
        torch.testing.assert_close(*logits, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_unseen_words_still_split(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    counts = count_pieces(tokenizer, [SOME[:40]])
    trimmed = trim_tokenizer(tokenizer, counts, {}).backend()
    unseen = [text for text in sample_texts() if text not in SOME and text.isascii()]
    for text in unseen:
        before = tokenizer.backend_tokenizer.encode(text).ids
        if tokenizer.unk_token_id not in before:
            assert trimmed.token_to_id(tokenizer.unk_token) not in trimmed.encode(text).ids, text


def test_files_of_the_whole_vocabulary_do_not_stay(tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    tokenizer_of("xlm-roberta").save_pretrained(teacher)
    make_model("xlm-roberta", "sequence", vocab_size=901).save_pretrained(teacher)
    (teacher / "sentencepiece.bpe.model").write_bytes(b"stale")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(SOME))
    shrink(ShrinkConfig(model=str(teacher), vocab_from=str(text), output_dir=tmp_path / "out"))
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "README.md",
        "config.json",
        "kdshrink.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_bpe_merges_are_closed() -> None:
    tokenizer = tokenizer_of("roberta")
    trimmed = trim_tokenizer(tokenizer, count_pieces(tokenizer, [SOME]), {})
    vocabulary = trimmed.content["model"]["vocab"]
    reachable = {piece for piece in vocabulary if len(piece) == 1}
    for left, right in trimmed.content["model"]["merges"]:
        assert {left, right, left + right} <= set(vocabulary)
        reachable.add(left + right)
    special = {token["content"] for token in trimmed.content["added_tokens"]}
    assert set(vocabulary) <= reachable | special


def test_size_and_count_limits() -> None:
    tokenizer = tokenizer_of("xlm-roberta")
    counts = count_pieces(tokenizer, [SOME])
    whole = trim_tokenizer(tokenizer, counts, {})
    cut = trim_tokenizer(tokenizer, counts, {}, vocab_size=len(whole.kept) - 50)
    assert len(cut.kept) == len(whole.kept) - 50
    dropped = set(whole.kept) - set(cut.kept)
    free = [i for i in cut.kept if len(tokenizer.convert_ids_to_tokens(i)) > 2 and counts[i]]
    assert max(counts[list(dropped)]) <= np.median(counts[free])
    rare = trim_tokenizer(tokenizer, counts, {}, min_count=3)
    assert all(counts[i] < 3 for i in set(whole.kept) - set(rare.kept))
    with pytest.raises(ShapeError, match="special tokens and single characters alone"):
        trim_tokenizer(tokenizer, counts, {}, vocab_size=5)


def test_held_out_cost_counts_tokens_and_unknowns() -> None:
    tokenizer = tokenizer_of("xlm-roberta")
    trimmed = trim_tokenizer(tokenizer, count_pieces(tokenizer, [SOME[:5]]), {})
    texts = {"xx": ["play jazz", "weather 中 today"]}
    cost = held_out_cost(tokenizer.backend_tokenizer, trimmed.backend(), "<unk>", texts)["xx"]
    before = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts["xx"]]
    assert cost.tokens_before == sum(map(len, before)) / 2
    assert cost.tokens_after >= cost.tokens_before
    assert (
        cost.unknown_before
        == sum(t.count(tokenizer.unk_token_id) for t in before) / sum(map(len, before))
        > 0
    )


def test_layers_width_and_vocabulary_together(tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    tokenizer_of("xlm-roberta").save_pretrained(teacher)
    make_model("xlm-roberta", "sequence", vocab_size=901).save_pretrained(teacher)
    text = tmp_path / "text.txt"
    text.write_text("\n".join(SOME))
    out = tmp_path / "out"
    shrink(
        ShrinkConfig(
            model=str(teacher), vocab_from=str(text), layers=2, hidden_size=12, output_dir=out
        )
    )
    model = AutoModelForSequenceClassification.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert model.get_input_embeddings().weight.shape == (len(tokenizer), 12)
    original = AutoModelForSequenceClassification.from_pretrained(teacher).get_input_embeddings()
    piece = tokenizer.tokenize("weather")[0]
    old_id = AutoTokenizer.from_pretrained(teacher).convert_tokens_to_ids(piece)
    row = model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(piece)]
    assert torch.equal(row, original.weight[old_id, ::2])
    record = json.loads((out / "kdshrink.json").read_text())
    assert record["results"]["vocabulary"]["after"] == len(tokenizer)
