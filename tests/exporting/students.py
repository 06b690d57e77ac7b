"""Small classifiers that int8 breaks in ways that are known, with data that they answer right in float32."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ..evaluation.test_evaluation import classifier
from ..helpers.models import LABELS

WORDS = 40
"""Words of each language; no word is in both."""
_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of whole words: `a0`, `a1`, … of the language `aa`, and `b0`, `b1`, … of `bb`."""
    words = [*_SPECIAL, *(f"{letter}{i}" for letter in "ab" for i in range(WORDS))]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=64,
    )


def make_student(layers: int = 2) -> PreTrainedModel:
    """A classifier whose answers differ from text to text, and do not depend on the words' places."""
    model: Any = classifier("sequence", LABELS, layers=layers)
    with torch.no_grad():
        model.roberta.embeddings.position_embeddings.weight.zero_()
        model.roberta.embeddings.token_type_embeddings.weight.zero_()
    return model


@torch.no_grad()
def shrink_embeddings_of_b(model: Any) -> None:
    """Make the embeddings of `bb` a thousandth of the others': a scale that all share rounds them to 0.

    In float32 the normalisation after them makes up for it.
    """
    first = len(_SPECIAL) + WORDS
    model.roberta.embeddings.word_embeddings.weight[first : first + WORDS] *= 1e-3


@torch.no_grad()
def add_dead_unit(layer: Any) -> None:
    """Give a unit of the FFN that never fires weights that are far larger than the others'."""
    layer.intermediate.dense.weight[0] *= 1e4
    layer.intermediate.dense.bias[0] = -1e9
    layer.output.dense.weight[:, 0] = 0


@torch.no_grad()
def add_dead_weights(layer: Any) -> None:
    """Let each output of the FFN read a unit that never fires, with a weight far larger than its others."""
    layer.intermediate.dense.bias[0] = -1e9
    layer.output.dense.weight[:, 0] = 1e4


@torch.no_grad()
def add_dead_attention(layer: Any) -> None:
    """Let each output of the attention read a channel that is always 0, with a weight far larger than its others."""
    layer.attention.self.value.weight[0] = 0
    layer.attention.self.value.bias[0] = 0
    layer.attention.output.dense.weight[:, 0] = 1e4


@torch.no_grad()
def add_outlier_channel(layer: Any, factor: float = 1e4) -> None:
    """Scale a channel of the attention's values up, and what reads it down: float32 computes as before."""
    layer.attention.self.value.weight[0] *= factor
    layer.attention.self.value.bias[0] *= factor
    layer.attention.output.dense.weight[:, 0] /= factor


@torch.inference_mode()
def write_student(model: PreTrainedModel, folder: Path, texts: int = 60) -> tuple[Path, Path]:
    """Write a model, and data whose labels are its own answers, those that it is surest of.

    Returns:
        The directories of the model and of the data.
    """
    tokenizer = make_tokenizer()
    model.save_pretrained(folder / "student")
    tokenizer.save_pretrained(folder / "student")
    rng = random.Random(0)
    for language, letter in (("aa", "a"), ("bb", "b")):
        lines = [
            " ".join(f"{letter}{rng.randrange(WORDS)}" for _ in range(rng.randint(2, 9)))
            for _ in range(20 * texts)
        ]
        batch = tokenizer(lines, padding=True, return_tensors="pt")
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        best = logits.topk(2).values
        sure = (best[:, 0] - best[:, 1]).argsort(descending=True)[: 2 * texts].tolist()
        for split, rows in (("train", sure[::2]), ("validation", sure[1::2])):
            path = folder / "data" / language / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            examples = [{"text": lines[i], "label": LABELS[int(logits[i].argmax())]} for i in rows]
            path.write_text("".join(json.dumps(one) + "\n" for one in examples))
    return folder / "student", folder / "data"
