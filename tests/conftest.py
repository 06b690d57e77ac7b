"""Small real models and tokenizers, made from configs and from the sample's own text."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
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

from kdshrink.data.registry import MASSIVE

from .hub import Desk, Hub

SAMPLE_DATA = Path(__file__).parent.parent / "kdshrink" / "sample" / "data"
SHARED = Path(__file__).parent.parent.parent / "shared"
LABELS = ["cold", "mild", "warm"]
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
AUTO = {
    None: AutoModel,
    "lm": AutoModelForMaskedLM,
    "sequence": AutoModelForSequenceClassification,
    "token": AutoModelForTokenClassification,
}
FAMILIES = ("xlm-roberta", "roberta", "bert", "deberta-v2", "deberta-conv")


@pytest.fixture(scope="session", autouse=True)
def _one_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Arrow files of the tests go to their own place; torch keeps to one thread, for equal sums."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("arrow")
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """What a command line in this process makes of the log ends with its test."""
    log = logging.getLogger("kdshrink")
    level, handlers, propagate = log.level, list(log.handlers), log.propagate
    yield
    log.setLevel(level)
    log.handlers[:], log.propagate = handlers, propagate


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
    return DebertaV2Config(**{**sizes, **mdeberta})


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


@pytest.fixture(scope="session")
def xlmr_tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer("xlm-roberta")


@pytest.fixture
def encoder_dir(tmp_path: Path, xlmr_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A bare XLM-R encoder on disk."""
    folder = tmp_path / "encoder"
    make_model("xlm-roberta", None).save_pretrained(folder)
    xlmr_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def text_data(tmp_path: Path) -> Path:
    """Own data in two languages: which word a text has says its label."""
    words = {"de": ["wetter", "musik", "email"], "es": ["tiempo", "música", "correo"]}
    folder = tmp_path / "weather"
    for language, names in words.items():
        for split, count in (("train", 24), ("validation", 9), ("test", 12)):
            rows = [
                {"text": f"{names[i % 3]} {i} {language} tag", "label": LABELS[i % 3]}
                for i in range(count)
            ]
            path = folder / language / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    return folder


@pytest.fixture
def word_data(tmp_path: Path) -> Path:
    """Own data for token classification, as IOB2 files."""
    folder = tmp_path / "names"
    for language in ("da", "pt"):
        for split, count in (("train", 16), ("validation", 6), ("test", 8)):
            path = folder / language / f"{split}.iob2"
            path.parent.mkdir(parents=True, exist_ok=True)
            sentences = [
                f"# sentence {i}\n1\tAnna\tB-PER\n2\tWeber\tI-PER\n3\ti\tO\n4\tLisboa\tB-LOC\n5\t{i}\tO\n"
                for i in range(count)
            ]
            path.write_text("\n".join(sentences))
    return folder


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as running:
        yield running


@pytest.fixture
def desk(hub: Hub, tmp_path: Path) -> Desk:
    return Desk(hub, tmp_path)


@pytest.fixture(scope="session")
def massive_teacher(
    tmp_path_factory: pytest.TempPathFactory, xlmr_tokenizer: PreTrainedTokenizerFast
) -> Path:
    """A classifier of massive's 60 intents, with random weights and a card of its own."""
    folder = tmp_path_factory.mktemp("teachers") / "teacher"
    names = dict(enumerate(MASSIVE.labels))
    ids = {name: i for i, name in names.items()}
    config = make_config("xlm-roberta", id2label=names, label2id=ids)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    xlmr_tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(
        "---\nlicense: other\nlicense_name: tea-licence\nlicense_link: https://example.org/tea\n---\n# Teacher\n"
    )
    return folder


@pytest.fixture
def model_dir(tmp_path: Path, massive_teacher: Path) -> Path:
    shutil.copytree(massive_teacher, tmp_path / "model")
    return tmp_path / "model"
