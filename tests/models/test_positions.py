"""DeBERTa with only the relative positions that its texts have, against transformers' own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from kdshrink.models.positions import cut_relative_positions, present_positions

from ..helpers.models import make_model

VARIANTS: dict[str, dict[str, Any]] = {
    "buckets": {"position_buckets": 32},
    "few buckets": {"position_buckets": 8},
    "no buckets": {"position_buckets": -1, "max_relative_positions": 20},
    "one direction": {"position_buckets": 32, "pos_att_type": ["c2p"]},
    "own keys of positions": {"position_buckets": 32, "share_att_key": False},
    "no norm": {"position_buckets": 32, "norm_rel_ebd": "none"},
}


def spans(model: Any) -> set[int]:
    return {layer.attention.self.pos_ebd_size for layer in model.base_model.encoder.layer}


def width_of_scores(model: Any) -> list[int]:
    """How many positions each layer reads in each forward pass, as they come."""
    found: list[int] = []
    for layer in model.base_model.encoder.layer:
        layer.register_forward_pre_hook(
            lambda _, __, given: found.append(len(given["rel_embeddings"])), with_kwargs=True
        )
    return found


@pytest.mark.parametrize("length", [1, 2, 9, 16, 17, 21, 40])
@pytest.mark.parametrize("variant", VARIANTS)
def test_output_and_gradients_are_those_of_all_positions(variant: str, length: int) -> None:
    whole = make_model("deberta-v2", "token", num_hidden_layers=2, **VARIANTS[variant])
    cut = copy.deepcopy(whole)
    cut_relative_positions(cut)
    span, found = spans(whole), width_of_scores(cut)
    ids = torch.arange(3 * length).reshape(3, length) % 7 + 5
    mask = torch.ones_like(ids)
    mask[1, length // 2 + 1 :] = 0
    for model in (whole, copy.deepcopy(cut), cut):
        logits = model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
        logits.square().sum().backward()
        if model is whole:
            expected = logits
        torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-5)
        for (name, one), other in zip(model.named_parameters(), whole.parameters(), strict=True):
            torch.testing.assert_close(
                one.grad, other.grad, atol=1e-4, rtol=1e-4, msg=f"gradient of {name}"
            )
    assert spans(cut) == span
    assert len(found) == 4  # of two layers, in the copy too
    assert 2 <= max(found) <= 2 * min(length, *span)


@pytest.mark.parametrize(("tokens", "rows"), [(1, 2), (5, 10), (60, 64)])
def test_layers_alone_are_given_the_positions_of_their_texts(tokens: int, rows: int) -> None:
    model: Any = make_model("deberta-v2", "token", position_buckets=32)
    encoder = model.base_model.encoder
    with present_positions(encoder, tokens) as positions:
        assert positions is not None
        assert len(positions) == 2 * next(iter(spans(model))) <= rows
    assert spans(model) == {32}


def test_after_an_error_the_model_is_whole() -> None:
    model: Any = make_model("deberta-v2", "token", position_buckets=32)
    cut_relative_positions(model)
    model.base_model.encoder.layer[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(input_ids=torch.tensor([[5, 6, 7]]))
    assert spans(model) == {32}


def test_models_without_relative_positions_are_left_alone() -> None:
    for model in (
        make_model("xlm-roberta", "token"),
        make_model("deberta-v2", "token", relative_attention=False),
    ):
        cut_relative_positions(model)
        assert not [one for one in model.modules() if one._forward_pre_hooks]
