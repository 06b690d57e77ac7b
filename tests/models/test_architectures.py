"""The table of architectures against models: what it names is there, and what it claims works."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from kdshrink import ShrinkConfig, shrink
from kdshrink.calibration.batch import make_batches
from kdshrink.calibration.encoder_view import view
from kdshrink.errors import ModelError
from kdshrink.models.activations import Recorder
from kdshrink.models.architectures import FAMILIES, Ability, find_module
from kdshrink.shrinking.plan import Shape, plan_student
from kdshrink.shrinking.weights import copy_weights

from ..helpers.models import AUTO, make_model

IDS = torch.tensor([[5, 9, 44, 17, 2], [8, 6, 2, 1, 1]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def config_of(model: PreTrainedModel) -> dict[str, Any]:
    """Its config.json."""
    return {
        **json.loads(model.config.to_json_string()),
        "architectures": [type(model).__name__],
    }


@pytest.mark.parametrize("task", ["sequence", "token", None])
@pytest.mark.parametrize("kind", FAMILIES)
def test_the_modules_that_an_entry_names_are_there(kind: str, task: str | None) -> None:
    model, modules = make_model(kind, task), FAMILIES[kind].modules
    layer_names = modules.layer
    layers = find_module(model.base_model, modules.layers)
    assert isinstance(layers, nn.ModuleList)
    assert len(layers) == 4
    for layer in layers:
        assert isinstance(find_module(layer, layer_names.attention), nn.Module)
        for name in ("query", "key", "value", "attention_output", "ffn_up", "ffn_down"):
            assert isinstance(find_module(layer, getattr(layer_names, name)), nn.Linear), name
        for name in ("attention_norm", "ffn_norm"):
            assert isinstance(find_module(layer, getattr(layer_names, name)), nn.LayerNorm), name
        assert callable(find_module(layer, layer_names.activation))
    assert isinstance(find_module(model.base_model, *modules.hidden_0), nn.Module)
    assert isinstance(find_module(model.base_model, modules.embeddings), nn.Module)
    assert isinstance(find_module(model.base_model, modules.embeddings_norm), nn.LayerNorm)
    assert find_module(model.base_model, modules.tables[0]) is model.get_input_embeddings()
    for name in (modules.positions, modules.positions_norm):
        assert name is None or find_module(model.base_model, name) is not None
    dense, output = (
        find_module(model, *names) for names in (modules.head.dense, modules.head.output)
    )
    assert isinstance(dense, nn.Linear) or task != "sequence"
    assert (output is None) == (task is None)
    if task is not None:
        assert output.out_features == model.config.num_labels


def attempt(model: PreTrainedModel, ability: Ability) -> Any:
    """What refuses a model with which it cannot be done."""
    if ability == "shrunk":
        return plan_student(config_of(model), Shape(layers=2))
    if ability == "distilled":
        return Recorder(model, [1], hidden=True, embedding=False, attention=None)
    return view(model)


def shrunk(model: PreTrainedModel, folder: Path) -> None:
    """Layers, width and vocabulary cut at once."""
    model.save_pretrained(folder / "t")
    config = config_of(model)
    kept = [0, 1, 2, *range(5, 50)]
    plan = plan_student(config, Shape(layers=2, hidden_size=12), kept)
    (folder / "s").mkdir()
    copy_weights(folder / "t", folder / "s" / "model.safetensors", plan)
    (folder / "s" / "config.json").write_text(json.dumps(plan.config))
    student, report = AUTO["sequence"].from_pretrained(folder / "s", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert student.get_input_embeddings().weight.shape == (len(kept), 12)
    assert len(find_module(student.base_model, plan.family.modules.layers)) == 2
    assert student(input_ids=IDS.clamp_max(2), attention_mask=MASK).logits.isfinite().all()


def recorded(model: PreTrainedModel) -> None:
    options: Any = {"hidden": True, "embedding": True, "attention": "probabilities"}
    output, record = Recorder(model, [1, 4], **options)(IDS, MASK)
    expected = model(input_ids=IDS, attention_mask=MASK, output_hidden_states=True)
    real = MASK.bool()
    found = [record.embedding, *record.hidden]
    for states, number in zip(found, (0, 1, 4), strict=True):
        assert states is not None
        torch.testing.assert_close(
            states[real], expected.hidden_states[number][real], rtol=1e-4, atol=1e-5
        )
    torch.testing.assert_close(output.logits, expected.logits, rtol=1e-4, atol=1e-5)
    assert all(attention.shape == (2, 4, 5, 5) for attention in record.attention)


def calibrated(model: PreTrainedModel, tokenizer: Any, data: Path, folder: Path) -> None:
    """Its view computes what the model does, and a calibrated student loads whole."""
    seen, (batch,) = view(model), make_batches([5, 3], 100)
    expected = model(input_ids=IDS, attention_mask=MASK, output_hidden_states=True)
    x = seen.embeddings(IDS)[MASK.bool()]
    for layer in seen.layers:
        x = layer(x, batch)
    torch.testing.assert_close(x, expected.hidden_states[-1][MASK.bool()])
    assert seen.head is not None
    torch.testing.assert_close(seen.head.logits(x[batch.firsts(x.device)]), expected.logits)
    model.save_pretrained(folder / "t")
    tokenizer.save_pretrained(folder / "t")
    options: Any = {"init": "calibrated", "data": str(data), "layers": 2, "hidden_size": 12}
    shrink(ShrinkConfig(model=str(folder / "t"), output_dir=folder / "s", **options))
    _, report = AUTO["sequence"].from_pretrained(folder / "s", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@torch.no_grad()
@pytest.mark.parametrize("ability", get_args(Ability))
@pytest.mark.parametrize("kind", FAMILIES)
def test_what_an_entry_claims_works_and_the_rest_is_refused_by_name(
    tmp_path: Path,
    text_data: Path,
    xlmr_tokenizer: PreTrainedTokenizerFast,
    kind: str,
    ability: Ability,
) -> None:
    model = make_model(kind, "sequence")
    if not FAMILIES[kind].can_be(ability):
        with pytest.raises(ModelError, match=rf"odels of type '{kind}' cannot be {ability} yet"):
            attempt(model, ability)
    elif ability == "shrunk":
        shrunk(model, tmp_path)
    elif ability == "distilled":
        recorded(model)
    else:
        calibrated(model, xlmr_tokenizer, text_data, tmp_path)


@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        ("with a convolution", {"conv_kernel_size": 3}),
        ("with narrow embedding tables", {"embedding_size": 12}),
    ],
)
def test_variants_that_cannot_be_calibrated_are_refused_by_name(
    variant: str, changes: dict[str, Any]
) -> None:
    named = {one.name for one in FAMILIES["deberta-v2"].uncalibrated}
    assert variant in named
    with pytest.raises(ModelError, match=f"type 'deberta-v2' {variant} cannot be calibrated yet"):
        view(make_model("deberta-v2", "sequence", **changes))


def test_the_table_is_read_without_torch() -> None:
    script = (
        "import sys, kdshrink.models.architectures; "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
