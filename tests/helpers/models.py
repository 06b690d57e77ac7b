"""Small real models, tokenizers and texts, made in the test from a config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    DebertaV2Config,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    XLMRobertaConfig,
)

from kdshrink.models.architectures import FAMILIES as TABLE

SAMPLE_DATA = Path(__file__).parents[2] / "kdshrink" / "sample" / "data"
SHARED = Path(__file__).parents[3] / "shared"
LABELS = ["cold", "mild", "warm"]
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
AUTO = {
    None: AutoModel,
    "lm": AutoModelForMaskedLM,
    "sequence": AutoModelForSequenceClassification,
    "token": AutoModelForTokenClassification,
}
FAMILIES = ("xlm-roberta", "roberta", "bert", "deberta-v2", "deberta-conv")


def sample_texts() -> list[str]:
    paths = sorted(SAMPLE_DATA.glob("*/test.jsonl"))
    return [json.loads(line)["utt"] for path in paths for line in path.read_text().splitlines()]


def make_tokenizer(kind: str, size: int = 500) -> PreTrainedTokenizerFast:
    """A tokenizer built as the family's, trained on the sample's text."""
    texts = sample_texts()
    if kind in ("xlm-roberta", "deberta-v2"):
        mdeberta = kind == "deberta-v2"
        special = (
            ["[PAD]", "[CLS]", "[SEP]", "[UNK]"] if mdeberta else ["<s>", "<pad>", "</s>", "<unk>"]
        )
        cls, sep = ("[CLS]", "[SEP]") if mdeberta else ("<s>", "</s>")
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer: Any = trainers.UnigramTrainer(
            vocab_size=size, special_tokens=special, unk_token=special[3], show_progress=False
        )
    elif kind == "bert":
        special, cls, sep = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], "[CLS]", "[SEP]"
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(
            vocab_size=size, special_tokens=special, show_progress=False
        )
    else:
        special, cls, sep = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], "<s>", "</s>"
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    tokenizer.train_from_iterator(texts, trainer)
    mask = "[MASK]" if cls == "[CLS]" else "<mask>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B {sep}",
        special_tokens=[(t, tokenizer.token_to_id(t)) for t in (cls, sep)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token=cls,
        sep_token=sep,
        bos_token=cls,
        eos_token=sep,
        pad_token=next(t for t in special if "pad" in t.lower()),
        unk_token=next(t for t in special if "unk" in t.lower()),
        mask_token=mask,
        model_max_length=64,
    )


def make_config(family: str, **changes: Any) -> Any:
    """A configuration of 4 layers, 4 heads and a width of 24."""
    sizes: dict[str, Any] = {
        "vocab_size": 520,
        "hidden_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 70,
        **changes,
    }
    if family == "bert":
        return BertConfig(**sizes)
    if family in ("xlm-roberta", "roberta"):
        kind = XLMRobertaConfig if family == "xlm-roberta" else RobertaConfig
        return kind(**sizes, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2)
    if not family.startswith("deberta"):
        named = {TABLE[family].key(name): size for name, size in sizes.items()}
        own = {"embedding_size": sizes["hidden_size"]} if family == "electra" else {}
        return AutoConfig.for_model(family, **own, **named)
    mdeberta = {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 8,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
        "type_vocab_size": 0,
        "pooler_hidden_size": sizes["hidden_size"],
        "pad_token_id": 0,
    }
    if family == "deberta-conv":
        mdeberta |= {"conv_kernel_size": 3, "conv_act": "gelu", "share_att_key": False}
    return DebertaV2Config(**{**mdeberta, **sizes})


def make_model(family: str, task: str | None, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A model with random weights, biases and norms too, so that nothing is trivially equal."""
    config = make_config(family, **changes)
    names = {"sequence": LABELS, "token": TAGS}.get(task or "")
    if names:
        config.id2label = dict(enumerate(names))
        config.label2id = {name: i for i, name in enumerate(names)}
    torch.manual_seed(seed)
    model = AUTO[task].from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model
