"""The parts of export by themselves: the gate's rule, names of nodes, tokenizers for other runtimes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, normalizers

from kdshrink.errors import ModelError
from kdshrink.evaluation.results import EvalResult, LanguageScore
from kdshrink.exporting.gate import Gate
from kdshrink.exporting.graph import difference, unit_of
from kdshrink.exporting.layout import check_tokenizer, without_nmt, write_tokenizer
from kdshrink.exporting.quantization import SCHEMES
from kdshrink.exporting.runtimes import unread

from ..helpers.models import make_tokenizer


def scores(pooled: float, **languages: tuple[float, int]) -> EvalResult:
    rows = {name: LanguageScore(*row) for name, row in languages.items()}
    return EvalResult("macro_f1", pooled, {}, pooled, rows, 600, 1.0)


@pytest.mark.parametrize(
    ("max_drop", "pooled", "de", "yo", "passed"),
    [
        (0.5, 0.800, 0.800, 0.800, True),
        (0.5, 0.796, 0.800, 0.796, True),
        (0.5, 0.794, 0.800, 0.796, False),  # pooled
        (0.5, 0.799, 0.810, 0.780, False),  # one language, while another gains
        (2.0, 0.799, 0.810, 0.780, True),
        (0.0, 0.800, 0.799, 0.801, False),
        (0.0, 0.800, 0.800, 0.800, True),
    ],
)
def test_the_gate_looks_at_each_language(
    max_drop: float, pooled: float, de: float, yo: float, passed: bool
) -> None:
    gate = Gate(scores(0.8, de=(0.8, 300), yo=(0.8, 300)), max_drop)
    verdict = gate.judge(SCHEMES[0], scores(pooled, de=(de, 300), yo=(yo, 300)), 1)
    assert verdict.passed is passed
    assert verdict.per_language["yo"].drop == pytest.approx(80 - 100 * yo)


def test_a_language_in_which_one_text_outweighs_the_drop_is_told_and_not_judged() -> None:
    gate = Gate(scores(0.8, de=(0.8, 200), yo=(0.8, 199)), 0.5)
    assert gate.too_small == ["yo"]
    verdict = gate.judge(SCHEMES[0], scores(0.8, de=(0.8, 200), yo=(0.1, 199)), 1)
    assert verdict.passed
    assert not verdict.per_language["yo"].judged
    assert verdict.loss == 0


def test_logits_that_are_not_numbers_do_not_pass() -> None:
    gate = Gate(scores(0.8, de=(0.8, 300)), 100)
    assert gate.judge(SCHEMES[0], gate.reference, 1, 0.5).passed
    verdict = gate.judge(SCHEMES[0], gate.reference, 1, float("inf"))
    assert (verdict.passed, verdict.difference) == (False, None)


@pytest.mark.parametrize(
    ("node", "unit"),
    [
        (
            "roberta.encoder.layer.10.attention.self.query/MatMul_3",
            "roberta.encoder.layer.10.attention",
        ),
        ("roberta.encoder.layer.1.output.dense/MatMul_3", "roberta.encoder.layer.1.output"),
        ("distilbert.transformer.layer.0/Add_1", "distilbert.transformer.layer.0"),
        ("bert.embeddings.word_embeddings/Gather_0", "bert.embeddings"),
        ("classifier.out_proj/Gemm_9", "classifier.out_proj"),
        ("classifier/Gemm_9", "classifier"),
    ],
)
def test_nodes_tell_their_part(node: str, unit: str) -> None:
    assert unit_of(node) == unit


def test_logits_of_padding_are_not_compared() -> None:
    expected = torch.zeros(1, 2, 3)
    found = expected.clone()
    found[0, 1] = 9
    assert difference(expected, found, torch.tensor([[1, 0]])) == 0
    assert difference(expected, found, torch.tensor([[1, 1]])) == 9
    found[0, 1, 0] = float("nan")
    assert difference(expected, found, torch.tensor([[1, 1]])) == float("inf")


def test_nmt_spelt_out_does_the_same_to_every_character() -> None:
    nmt = {"type": "Sequence", "normalizers": [{"type": "Nmt"}, {"type": "NFKC"}]}
    content = json.loads(make_tokenizer("xlm-roberta").backend_tokenizer.to_str())
    written = Tokenizer.from_str(json.dumps({**content, "normalizer": without_nmt(nmt)}))
    itself = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    spelt: Any = written.normalizer
    for first in range(1, 0x110000, 64):
        codes = [
            code for code in range(first, min(first + 64, 0x110000)) if not 0xD800 <= code < 0xE000
        ]
        text = "x".join(map(chr, codes))
        assert spelt.normalize_str(text) == itself.normalize_str(text)


def test_runtimes_that_do_not_read_a_tokenizer_are_told(tmp_path: Path) -> None:
    tokenizer = make_tokenizer("xlm-roberta")
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC()]
    )
    tokenizer.save_pretrained(tmp_path)
    config = {"model_type": "xlm-roberta"}
    told = unread(tmp_path, config, "token")
    assert told["transformers.js"] == ["It does not know the tokenizer's normalizer Nmt."]
    assert "text-embeddings-inference" in told
    write_tokenizer(tokenizer, tmp_path, token_types=False)
    assert "transformers.js" not in unread(tmp_path, config, "sequence")
    assert unread(tmp_path, {"model_type": "rembert"}, "sequence")["transformers.js"] == [
        "It has no rembert for text classification."
    ]
    check_tokenizer(tokenizer, tmp_path, ["a\u200bb c", "wetter"], 9)
    make_tokenizer("xlm-roberta", size=90).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="does not tokenise as the model's"):
        check_tokenizer(tokenizer, tmp_path, ["wetter morgen in Lisboa"], 9)
