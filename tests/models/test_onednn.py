"""Linear layers with weights packed once, against PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdshrink.models.onednn import PackedLinears, packed_linears

from ..helpers.models import FAMILIES, make_model

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", ["sequence", "token"])
def test_a_model_answers_as_it_did(family: str, task: str) -> None:
    model = make_model(family, task)
    ids = torch.randint(3, 500, (5, 11), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1:, 7:] = 0
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    packing = PackedLinears()
    with torch.inference_mode():
        usual = model(input_ids=ids, attention_mask=mask).logits
        with packing:
            found = model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(found, usual, rtol=1e-5, atol=1e-5)
    assert {id(linear.weight) for linear in linears} >= {id(w) for w in packing._packed}
    assert len(packing._packed) > 4 * model.config.num_hidden_layers


@pytest.mark.parametrize("rows", [(), (1,), (3, 5), (2, 3, 700)])
@pytest.mark.parametrize("bias", [True, False])
def test_shapes_of_inputs(rows: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    linear, inputs = nn.Linear(17, 9, bias=bias), torch.randn(*rows, 17)
    with torch.inference_mode(), packed_linears(CPU):
        found = linear(inputs)
    torch.testing.assert_close(found, linear(inputs), rtol=1e-5, atol=1e-6)


def test_other_types_are_left_alone() -> None:
    linear = nn.Linear(4, 4, dtype=torch.float64)
    inputs = torch.randn(2, 4, dtype=torch.float64)
    with torch.inference_mode(), packed_linears(CPU):
        found = linear(inputs)
    assert torch.equal(found, linear(inputs))
