"""Trimming a vocabulary: nothing changes for the text it was trimmed for."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from kdshrink import ShrinkConfig, shrink
from kdshrink.errors import ModelError, ShapeError
from kdshrink.shrinking.vocabulary import Text, count_tokens, script, trim_tokenizer
from kdshrink.shrinking.vocabulary_cost import held_out_cost

from ..helpers.models import make_model, make_tokenizer, sample_texts

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
    # More rows than tokens, as in XLM-R checkpoints whose table was padded.
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
    counts = count_tokens(tokenizer, [SOME[:40]])
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
    trimmed = trim_tokenizer(tokenizer, count_tokens(tokenizer, [SOME]), {})
    vocabulary = trimmed.content["model"]["vocab"]
    reachable = {token for token in vocabulary if len(token) == 1}
    for left, right in trimmed.content["model"]["merges"]:
        assert {left, right, left + right} <= set(vocabulary)
        reachable.add(left + right)
    special = {token["content"] for token in trimmed.content["added_tokens"]}
    assert set(vocabulary) <= reachable | special


def test_size_and_count_limits() -> None:
    tokenizer = tokenizer_of("xlm-roberta")
    counts = count_tokens(tokenizer, [SOME])
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
    trimmed = trim_tokenizer(tokenizer, count_tokens(tokenizer, [SOME[:5]]), {})
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
    token = tokenizer.tokenize("weather")[0]
    old_id = AutoTokenizer.from_pretrained(teacher).convert_tokens_to_ids(token)
    row = model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(token)]
    assert torch.equal(row, original.weight[old_id, ::2])
    record = json.loads((out / "kdshrink.json").read_text())
    assert record["results"]["vocabulary"]["after"] == len(tokenizer)


def old_ids(tokenizer: Tokenizer, texts: list[Text]) -> list[list[int]]:
    pretokenized = isinstance(texts[0], list)
    encoded = tokenizer.encode_batch(texts, is_pretokenized=pretokenized, add_special_tokens=False)
    return [one.ids for one in encoded]


ODD = [
    "naïve 中文 ☃ зима",
    "xyzzy\u0301 <unk> 12€",
    "Ω≈ç √∫ [MASK]x",
    "",
    "   ",
    "a" * 150,
    "日本語のテキスト",
]


@pytest.mark.parametrize("kind", KINDS)
def test_any_part_of_the_text_is_split_as_before(kind: str) -> None:
    """Random parts, long words, words that are unknown in the whole vocabulary, words apart."""
    tokenizer = tokenizer_of(kind)
    drawn = random.Random(0)
    for count in (1, 3, 10, 40):
        texts = drawn.sample(sample_texts(), count) + ODD
        for own in (texts, [text.split() for text in texts if text.strip()]):
            trimmed = trim_tokenizer(tokenizer, count_tokens(tokenizer, [own[:2], own[2:]]), {})
            new = [[trimmed.kept[i] for i in ids] for ids in old_ids(trimmed.backend(), own)]
            assert new == old_ids(tokenizer.backend_tokenizer, own)


def plain_tokenizer(model: Any, **special: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(model)
    wordpiece = isinstance(model, models.WordPiece)
    backend.pre_tokenizer = (
        pre_tokenizers.BertPreTokenizer() if wordpiece else pre_tokenizers.Metaspace()
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def test_a_word_that_was_unknown_stays_so() -> None:
    """WordPiece takes "abc" of "abcx" and gives up at x; without "abc" it would go by "ab", "##cx"."""
    tokens = ["[PAD]", "[UNK]", "abc", "ab", "##cx", "y"]
    model = models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]")
    tokenizer = plain_tokenizer(model, unk_token="[UNK]", pad_token="[PAD]")
    texts = ["abcx", "ab ycx"]
    assert tokenizer.tokenize(" ".join(texts)) == ["[UNK]", "ab", "y", "##cx"]
    trimmed = trim_tokenizer(tokenizer, count_tokens(tokenizer, [texts]), {})
    assert trimmed.backend().encode(" ".join(texts)).tokens == ["[UNK]", "ab", "y", "##cx"]


def test_an_unknown_character_costs_as_much_as_before() -> None:
    """Unigram's is 10 below the least likely token: "xy", "z" cost 60, unknown x and "yz" 66."""
    tokens = [("<pad>", 0.0), ("<unk>", 0.0), ("▁", -1.0), ("xy", -30.0), ("z", -30.0)]
    tokens += [("yz", -1.0), ("qqq", -55.0)]
    tokenizer = plain_tokenizer(
        models.Unigram(tokens, unk_id=1), unk_token="<unk>", pad_token="<pad>"
    )
    texts = ["xyz", "yz"]
    assert [tokenizer.tokenize(text) for text in texts] == [["▁", "xy", "z"], ["▁", "yz"]]
    trimmed = trim_tokenizer(tokenizer, count_tokens(tokenizer, [texts]), {}).backend()
    assert [trimmed.encode(text).tokens for text in texts] == [["▁", "xy", "z"], ["▁", "yz"]]


def with_special_tokens_in_the_middle(kind: str) -> PreTrainedTokenizerFast:
    """Four tokens come before the padding, two hundred before others, as in BERT's own vocabulary."""
    original = tokenizer_of(kind)
    pad, unk, cls, sep, mask = (
        getattr(original, f"{name}_token") for name in ("pad", "unk", "cls", "sep", "mask")
    )
    content = json.loads(original.backend_tokenizer.to_str())["model"]
    scores = dict(content["vocab"])
    plain = [token for token in scores if token not in (pad, unk, cls, sep, mask)]
    order = [*plain[-4:], pad, *plain[:200], unk, cls, *plain[200:-4], sep, mask]
    ids = {token: i for i, token in enumerate(order)}
    model: Any
    if kind == "bert":
        model = models.WordPiece(ids, unk_token=unk)
    elif kind == "roberta":
        model = models.BPE(ids, [tuple(merge) for merge in content["merges"]])
    else:
        order = order[:-1]  # the mask is added behind
        model = models.Unigram([(p, scores[p]) for p in order], unk_id=order.index(unk))
    backend = Tokenizer(model)
    old = original.backend_tokenizer
    backend.pre_tokenizer = old.pre_tokenizer
    if old.normalizer:
        backend.normalizer = old.normalizer
    backend.add_special_tokens([pad, unk, cls, sep, mask])
    ends = [(sep, backend.token_to_id(sep)), (cls, backend.token_to_id(cls))]
    if kind == "bert":
        backend.post_processor = processors.BertProcessing(*ends)
    elif kind == "roberta":
        backend.post_processor = processors.RobertaProcessing(*ends)
    else:
        template = processors.TemplateProcessing(single=f"{cls} $A {sep}", special_tokens=ends)
        backend.post_processor = processors.Sequence([template])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        unk_token=unk,
        cls_token=cls,
        sep_token=sep,
        mask_token=mask,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_renumbered_everywhere(tmp_path: Path, kind: str) -> None:
    tokenizer = with_special_tokens_in_the_middle(kind)
    assert tokenizer.pad_token_id == 4
    teacher, out = tmp_path / "teacher", tmp_path / "out"
    tokenizer.save_pretrained(teacher)
    names = ("pad", "cls", "sep", "mask", "unk")
    make_model(kind, None, vocab_size=len(tokenizer)).save_pretrained(teacher)
    path = teacher / "config.json"
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in names}
    lists = {"eos_token_id": [tokenizer.sep_token_id], "bos_token_id": None}
    path.write_text(json.dumps({**json.loads(path.read_text()), **ids, **lists}))
    text = tmp_path / "text.txt"
    text.write_text("\n".join(SOME[:30]))
    shrink(ShrinkConfig(model=str(teacher), vocab_from=str(text), output_dir=out))

    kept = trim_tokenizer(tokenizer, count_tokens(tokenizer, [SOME[:30]]), {}).kept
    after = AutoTokenizer.from_pretrained(out)
    config = json.loads((out / "config.json").read_text())
    assert after.pad_token_id == 4
    for name in names:
        old, new = (getattr(t, f"{name}_token_id") for t in (tokenizer, after))
        assert kept[new] == old
        assert config[f"{name}_token_id"] == new
    assert after.sep_token_id < tokenizer.sep_token_id
    assert config["eos_token_id"] == [after.sep_token_id]
    assert config["bos_token_id"] is None
    for line in [*SOME[:30], f"a {tokenizer.mask_token} b ☃"]:
        assert [kept[i] for i in after(line)["input_ids"]] == tokenizer(line)["input_ids"]
    written = json.loads((out / "tokenizer.json").read_text())
    assert {t["id"]: t["content"] for t in written["added_tokens"]} == {
        getattr(after, f"{name}_token_id"): getattr(after, f"{name}_token") for name in names
    }
    rows = [AutoModel.from_pretrained(d).get_input_embeddings().weight for d in (teacher, out)]
    assert torch.equal(rows[0][kept], rows[1])


def test_ids_in_settings_are_renumbered() -> None:
    """transformers 4 wrote the ids of added tokens, and DeBERTa's class writes that of the unknown."""
    tokenizer = with_special_tokens_in_the_middle("deberta-v2")
    mask, unk = tokenizer.mask_token_id, tokenizer.unk_token_id
    decoder = {str(mask): {"content": "[MASK]"}, "4": {"content": "[PAD]"}}
    config = {"added_tokens_decoder": decoder, "unk_id": unk, "model_max_length": unk}
    settings = {"tokenizer_config.json": config, "special_tokens_map.json": {"unk_token": "[UNK]"}}
    trimmed = trim_tokenizer(tokenizer, count_tokens(tokenizer, [SOME[:9]]), settings)
    new = {old: i for i, old in enumerate(trimmed.kept)}
    assert new[mask] < mask
    assert new[unk] < unk
    assert trimmed.settings["tokenizer_config.json"] == {
        "added_tokens_decoder": {str(new[mask]): {"content": "[MASK]"}, "4": {"content": "[PAD]"}},
        "unk_id": new[unk],
        "model_max_length": unk,
    }
    assert trimmed.settings["special_tokens_map.json"] == {"unk_token": "[UNK]"}


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizers_of_the_families_own_classes(tmp_path: Path, kind: str) -> None:
    """As on the Hub: the family's own files alone, whose class builds the tokenizer anew."""
    teacher, out = tmp_path / "teacher", tmp_path / "out"
    teacher.mkdir()
    if kind in ("bert", "roberta"):
        tokenizer_of(kind).backend_tokenizer.model.save(str(teacher))
    else:
        names = dict(
            zip(("pad", "bos", "eos", "unk"), ("[PAD]", "[CLS]", "[SEP]", "[UNK]"), strict=True)
        )
        tokens = {f"{name}_piece": token for name, token in names.items()}
        ids = {f"{name}_id": i for i, name in enumerate(names)}
        written = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sample_texts()),
            model_writer=written,
            vocab_size=600,
            minloglevel=2,
            **({**tokens, **ids} if kind == "deberta-v2" else {}),
        )
        name = "spm.model" if kind == "deberta-v2" else "sentencepiece.bpe.model"
        (teacher / name).write_bytes(written.getvalue())
    make_model(kind, "sequence", vocab_size=1000).save_pretrained(teacher)
    text = tmp_path / "text.txt"
    text.write_text("\n".join(SOME))
    shrink(ShrinkConfig(model=str(teacher), vocab_from=str(text), output_dir=out))

    before, after = AutoTokenizer.from_pretrained(teacher), AutoTokenizer.from_pretrained(out)
    assert type(before) is type(after) is not PreTrainedTokenizerFast
    assert len(after) < len(before)
    assert after.all_special_tokens == before.all_special_tokens
    assert after.pad_token_id == before.pad_token_id
    assert not [
        p.name for p in out.iterdir() if p.suffix in (".model", ".txt") or "merges" in p.name
    ]
    vocabulary = after.get_vocab()
    assert sorted(vocabulary.values()) == list(range(len(after)))
    if kind == "deberta-v2":
        assert before.mask_token_id == len(before) - 1
        assert after.mask_token_id == len(after) - 1
    models_of = [
        AutoModelForSequenceClassification.from_pretrained(d).eval() for d in (teacher, out)
    ]
    for line in [*SOME[::5], "☃ " + (before.mask_token or "")]:
        assert before.tokenize(line) == after.tokenize(line)
        with torch.no_grad():
            logits = [
                model(**tok([line], **AS_TENSORS)).logits
                for model, tok in zip(models_of, (before, after), strict=True)
            ]
        torch.testing.assert_close(*logits, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_masked_language_model_keeps_its_head(tmp_path: Path, kind: str) -> None:
    """Its logits are those of the tokens that are kept."""
    tokenizer = tokenizer_of(kind)
    teacher, out = tmp_path / "teacher", tmp_path / "out"
    tokenizer.save_pretrained(teacher)
    make_model(kind, "lm", vocab_size=len(tokenizer)).save_pretrained(teacher)
    text = tmp_path / "text.txt"
    text.write_text("\n".join(SOME))
    shrink(ShrinkConfig(model=str(teacher), vocab_from=str(text), output_dir=out))
    kept = trim_tokenizer(tokenizer, count_tokens(tokenizer, [SOME]), {}).kept
    logits = []
    for folder in (teacher, out):
        model = AutoModelForMaskedLM.from_pretrained(folder).eval()
        with torch.no_grad():
            batch = AutoTokenizer.from_pretrained(folder)(SOME[:8], **AS_TENSORS)
            logits.append(model(**batch).logits)
    torch.testing.assert_close(logits[0][..., kept], logits[1], atol=1e-6, rtol=1e-6)


def test_a_limit_holds_for_bpe_too() -> None:
    """A token goes in with all that it is merged from, or not at all."""
    tokenizer = tokenizer_of("roberta")
    counts = count_tokens(tokenizer, [SOME])
    least = len(trim_tokenizer(tokenizer, counts, {}, min_count=10**6).kept)
    whole = set(trim_tokenizer(tokenizer, counts, {}).content["model"]["vocab"])
    for size in (least, least + 1, least + 50, least + 200):
        trimmed = trim_tokenizer(tokenizer, counts, {}, vocab_size=size)
        assert size - 3 <= len(trimmed.kept) <= size
        vocabulary = set(trimmed.content["model"]["vocab"])
        merged = {left + right for left, right in trimmed.content["model"]["merges"]}
        special = {token["content"] for token in trimmed.content["added_tokens"]}
        assert {p for p in vocabulary - special if len(p) > 1} == merged
        assert vocabulary <= whole


def test_bytes_of_a_fallback_are_kept() -> None:
    tokens = [("<pad>", 0.0), ("<unk>", 0.0), *((f"<0x{i:02X}>", -9.0) for i in range(256))]
    tokens += [("▁", -2.0), ("a", -3.0), ("ab", -3.5), ("b", -3.0)]
    model = models.Unigram(tokens, unk_id=1, byte_fallback=True)
    tokenizer = plain_tokenizer(model, unk_token="<unk>", pad_token="<pad>")
    trimmed = trim_tokenizer(tokenizer, count_tokens(tokenizer, [["a b"]]), {})
    assert len(trimmed.kept) == len(tokens) - 1  # "ab"
    assert trimmed.backend().encode("ж").tokens == tokenizer.tokenize("ж")


def test_gaps_between_ids_are_told() -> None:
    model = models.WordPiece({"[UNK]": 0, "a": 1, "b": 7}, unk_token="[UNK]")
    tokenizer = plain_tokenizer(model, unk_token="[UNK]")
    with pytest.raises(ModelError, match="gaps"):
        count_tokens(tokenizer, [["a b"]])
    with pytest.raises(ModelError, match="gaps"):
        trim_tokenizer(tokenizer, np.zeros(len(tokenizer), dtype=np.int64), {})


@pytest.mark.parametrize(
    ("characters", "expected"),
    [
        ("azßœŁ\u1e9e", "LATIN"),
        ("жЁ", "CYRILLIC"),
        ("中々。「？〇", "CJK"),
        ("ش،؟٣۳", "ARABIC"),
        ("हि।३", "DEVANAGARI"),
        ("かー"[:1], "HIRAGANA"),
        ("カー", "KATAKANA"),
        ("한", "HANGUL"),
        ("7?!- \u00a0“—\u0301", "common"),
    ],
)
def test_scripts(characters: str, expected: str) -> None:
    assert {script(character) for character in characters} == {expected}


def test_symbols_are_no_script() -> None:
    assert script("☃") != script("😀")
