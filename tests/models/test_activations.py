"""What is recorded against eager models of the same weights, and what recording leaves behind."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from kdshrink.distillation.losses import (
    attention_mse,
    counted_pairs,
    counted_tokens,
    hidden_mse,
)
from kdshrink.errors import ModelError
from kdshrink.models.activations import Activations, Recorder, centre
from kdshrink.models.architectures import Head
from kdshrink.models.devices import ON_CPU, ON_GPU

LAYERS = 4
CHOSEN = (1, 3, 4)

SHAPE = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
    "num_labels": 3,
    # Scores far enough apart to tell layers and heads from one another.
    "initializer_range": 0.3,
}
DEBERTA = {
    "position_biased_input": False,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "type_vocab_size": 0,
    "pooler_hidden_size": 16,
}

INTERFACE = {
    "xlm-roberta": {},
    "roberta": {},
    "bert": {},
    "camembert": {},
    "electra": {"embedding_size": 8},
    "distilbert": {"dim": 16, "n_layers": LAYERS, "n_heads": 4, "hidden_dim": 24},
}
DEBERTAS = {
    "deberta-v2": DEBERTA,
    "deberta-v2 with a convolution": DEBERTA
    | {"conv_kernel_size": 3, "share_att_key": False, "conv_act": "gelu"},
}
FAMILIES = INTERFACE | DEBERTAS
HEADS = {
    "bare": transformers.AutoModel,
    "sequence": transformers.AutoModelForSequenceClassification,
    "token": transformers.AutoModelForTokenClassification,
}


def make_config(family: str, **changes: Any) -> PretrainedConfig:
    own = SHAPE | FAMILIES[family] | changes
    if family == "distilbert":
        own = {key: value for key, value in own.items() if not key.startswith("num_")}
        own = {key: value for key, value in own.items() if key != "hidden_size"}
        own["num_labels"] = SHAPE["num_labels"]
    return AutoConfig.for_model(family.split()[0], **own)


def make_model(family: str, head: str = "sequence", **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return HEADS[head].from_config(make_config(family, **changes)).eval()


def eager_twin(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same weights that shows its attention."""
    twin = type(model)._from_config(model.config, attn_implementation="eager")
    twin.load_state_dict(model.state_dict())
    return twin.train(model.training)


def make_batch(padding: bool = True) -> dict[str, Tensor]:
    torch.manual_seed(1)
    lengths = torch.tensor([9, 3, 6] if padding else [9, 9, 9])
    mask = torch.arange(9) < lengths[:, None]
    ids = torch.randint(5, 50, (3, 9)).masked_fill(~mask, 1)
    return {"input_ids": ids, "attention_mask": mask.long()}


def recorder(model: PreTrainedModel, attention: str | None = "scores", **changes: Any) -> Recorder:
    options = {"layers": CHOSEN, "hidden": True, "embedding": True} | changes
    return Recorder(model, attention=attention, **options)


def assert_close_on_real(found: Tensor, expected: Tensor, mask: Tensor) -> None:
    """Equal at real tokens (B, T, H), or at pairs of them (B, heads, T, T)."""
    real = mask.bool()
    where = real[..., None] if found.ndim == 3 else real[:, None, :, None] & real[:, None, None]
    zeroed = [values.masked_fill(~where, 0.0) for values in (found, expected)]
    torch.testing.assert_close(*zeroed, rtol=1e-4, atol=1e-5)


def layer_attentions(model: PreTrainedModel) -> list[Any]:
    """The attention modules by the layer, found by what they are called."""
    names = ("SelfAttention", "DisentangledSelfAttention")
    return [module for module in model.modules() if type(module).__name__.endswith(names)]


@pytest.mark.parametrize("padding", [True, False], ids=["padded", "full"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_record_equals_what_an_eager_model_shows(family: str, head: str, padding: bool) -> None:
    model, batch = make_model(family, head), make_batch(padding)
    with torch.no_grad():
        eager = eager_twin(model)(**batch, output_hidden_states=True, output_attentions=True)
        output, activations = recorder(model, "probabilities")(**batch)
    mask = batch["attention_mask"]
    assert activations.embedding is not None
    assert_close_on_real(activations.embedding, eager.hidden_states[0], mask)
    assert len(activations.hidden) == len(activations.attention) == len(CHOSEN)
    for number, hidden, attention in zip(
        CHOSEN, activations.hidden, activations.attention, strict=True
    ):
        assert_close_on_real(hidden, eager.hidden_states[number], mask)
        assert_close_on_real(attention, eager.attentions[number - 1], mask)
    name = "last_hidden_state" if head == "bare" else "logits"
    found, expected = getattr(output, name), getattr(eager, name)
    if head == "sequence":
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    else:
        assert_close_on_real(found, expected, mask)


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_are_the_same_without_a_recorder(family: str) -> None:
    model, batch = make_model(family), make_batch()
    with torch.no_grad():
        before = model(**batch).logits
        while_recorded = recorder(model)(**batch)[0].logits
        after = model(**batch).logits
    torch.testing.assert_close(while_recorded, before, rtol=1e-4, atol=1e-5)
    assert torch.equal(after, before)


@pytest.mark.parametrize("family", INTERFACE)
def test_scores_are_scaled_products_of_queries_and_keys(family: str) -> None:
    model, batch = make_model(family), make_batch()
    with torch.no_grad():
        states = eager_twin(model)(**batch, output_hidden_states=True).hidden_states
        reading = recorder(model)
        _, activations = reading(**batch)
        assert not reading.centred
        for number, found in zip(CHOSEN, activations.attention, strict=True):
            module = layer_attentions(model)[number - 1]
            projections = (
                (module.q_lin, module.k_lin)
                if family == "distilbert"
                else (module.query, module.key)
            )
            query, key = (
                projection(states[number - 1]).unflatten(-1, (4, 4)) for projection in projections
            )
            expected = torch.einsum("bqhd,bkhd->bhqk", query, key) / 2
            assert_close_on_real(found, expected, batch["attention_mask"])


@pytest.mark.parametrize("family", DEBERTAS)
def test_deberta_log_probabilities_are_its_true_scores_centred(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The true scores are what the model itself hands to its softmax."""
    model, batch = make_model(family), make_batch()
    scores: list[Tensor] = []
    softmax = torch.nn.functional.softmax

    def watched(values: Tensor, *arguments: Any, **options: Any) -> Tensor:
        scores.append(values)
        return softmax(values, *arguments, **options)

    reading = recorder(model)
    assert reading.centred
    monkeypatch.setattr(torch.nn.functional, "softmax", watched)
    with torch.no_grad():
        _, activations = reading(**batch)
    assert len(scores) == LAYERS
    mask = batch["attention_mask"].bool()
    for number, found in zip(CHOSEN, activations.attention, strict=True):
        for example, length in enumerate(mask.sum(1).tolist()):
            true = scores[number - 1][example, :, :length, :length]
            expected = true - true.mean(-1, keepdim=True)
            assert expected.std() > 0.1
            torch.testing.assert_close(
                found[example, :, :length, :length], expected, rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_moves_nothing(family: str) -> None:
    model, batch = make_model(family), make_batch()
    longer = {
        "input_ids": torch.nn.functional.pad(batch["input_ids"], (0, 4), value=1),
        "attention_mask": torch.nn.functional.pad(batch["attention_mask"], (0, 4)),
    }
    with torch.no_grad():
        _, short = recorder(model)(**batch)
        _, long = recorder(model)(**longer)
    mask = batch["attention_mask"]
    assert short.embedding is not None
    assert long.embedding is not None
    assert_close_on_real(long.embedding[:, :9], short.embedding, mask)
    for one, other in zip(long.hidden, short.hidden, strict=True):
        assert_close_on_real(one[:, :9], other, mask)
    for one, other in zip(long.attention, short.attention, strict=True):
        assert_close_on_real(one[:, :, :9, :9], other, mask)


@pytest.mark.parametrize("attention", ["scores", "probabilities"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_trains_on_what_is_recorded(family: str, attention: str) -> None:
    """Gradients reach the queries of every layer, and are finite."""
    model, batch = make_model(family).train(), make_batch()
    with torch.inference_mode():
        _, targets = recorder(make_model(family, initializer_range=0.2), attention)(**batch)
    _, activations = recorder(model, attention)(**batch)
    mask = batch["attention_mask"].bool()
    pairs = zip(activations.attention, targets.attention, strict=True)
    torch.stack(
        [attention_mse(student, teacher, counted_pairs(mask)).mean for student, teacher in pairs]
    ).sum().backward()
    queries = ".query.weight", ".q_lin.weight", ".query_proj.weight"
    reached = [p.grad for name, p in model.named_parameters() if name.endswith(queries)]
    assert len(reached) == LAYERS
    assert all(grad is not None and grad.isfinite().all() and grad.any() for grad in reached)
    for student, teacher in zip(activations.hidden, targets.hidden, strict=True):
        assert student.requires_grad
        assert not teacher.requires_grad
        assert hidden_mse(student, teacher, counted_tokens(mask)).mean > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_is_the_models_own_and_comes_after_the_record(family: str) -> None:
    rates = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.5}
    if family == "distilbert":
        rates = {"dropout": 0.1, "attention_dropout": 0.5}
    model, batch = make_model(family, **rates).train(), make_batch()
    every = tuple(range(1, LAYERS + 1))
    twin = eager_twin(model)
    torch.manual_seed(2)
    expected = twin(**batch).logits
    torch.manual_seed(2)
    output, activations = recorder(model, "probabilities", layers=every)(**batch)
    torch.testing.assert_close(output.logits, expected, rtol=1e-4, atol=1e-5)
    mask = batch["attention_mask"].bool()
    for attention in activations.attention:
        sums = attention.sum(-1).transpose(1, 2)[mask]
        torch.testing.assert_close(sums, torch.ones_like(sums))


@pytest.mark.parametrize("family", ["xlm-roberta", "deberta-v2"])
def test_a_model_matches_itself_exactly(family: str) -> None:
    model, batch = make_model(family), make_batch()
    with torch.inference_mode():
        _, teacher = recorder(model)(**batch)
    _, student = recorder(model)(**batch)
    mask = batch["attention_mask"].bool()
    assert student.embedding is not None
    assert teacher.embedding is not None
    assert hidden_mse(student.embedding, teacher.embedding, counted_tokens(mask)).mean == 0
    for one, other in zip(student.hidden, teacher.hidden, strict=True):
        assert hidden_mse(one, other, counted_tokens(mask)).mean == 0
    for one, other in zip(student.attention, teacher.attention, strict=True):
        assert attention_mse(one, other, counted_pairs(mask)).mean == 0


@pytest.mark.parametrize("family", ["xlm-roberta", "deberta-v2"])
def test_recorders_of_two_models_do_not_meet(family: str) -> None:
    """The teacher runs in the midst of the student's forward pass."""
    student, teacher = make_model(family), make_model(family, initializer_range=0.2)
    batch = make_batch()
    with torch.no_grad():
        expected = recorder(student)(**batch)[1], recorder(teacher)(**batch)[1]
        during: list[Activations] = []
        layer = student.base_model.encoder.layer[2]
        layer.register_forward_pre_hook(lambda *_: during.append(recorder(teacher)(**batch)[1]))
        found = recorder(student)(**batch)[1], during[0]
    for one, other in zip(found, expected, strict=True):
        pairs = zip(one.hidden + one.attention, other.hidden + other.attention, strict=True)
        assert all(torch.equal(*pair) for pair in pairs)


def test_only_what_is_asked_for_is_read() -> None:
    model, batch = make_model("xlm-roberta"), make_batch()
    _, nothing = recorder(model, None, hidden=False, embedding=False)(**batch)
    assert nothing == Activations(None, (), ())
    _, hidden = recorder(model, None, embedding=False)(**batch)
    assert (len(hidden.hidden), hidden.attention, hidden.embedding) == (3, (), None)
    _, attention = recorder(model, hidden=False)(**batch)
    assert (len(attention.attention), attention.hidden) == (3, ())


@pytest.mark.parametrize("attention", [None, "scores"])
def test_layers_that_are_not_read_run_sdpa(
    attention: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = make_model("xlm-roberta"), make_batch()
    calls = 0
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def counted(*arguments: Any, **options: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return sdpa(*arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    recorder(model, attention, layers=(2,))(**batch)
    assert calls == (LAYERS if attention is None else LAYERS - 1)


@pytest.mark.parametrize("family", ["xlm-roberta", "deberta-v2"])
def test_layers_come_in_the_order_asked_for(family: str) -> None:
    model, batch = make_model(family), make_batch()
    with torch.no_grad():
        _, sorted_activations = recorder(model, layers=(2, 4))(**batch)
        _, activations = recorder(model, layers=(4, 2, 4))(**batch)
    for name in ("hidden", "attention"):
        second, fourth = getattr(sorted_activations, name)
        for one, other in zip(getattr(activations, name), (fourth, second, fourth), strict=True):
            assert torch.equal(one, other)


def hooks(model: PreTrainedModel) -> int:
    """The hooks on a model's modules."""
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_of_any_layers_come_side_by_side(family: str) -> None:
    model, batch = make_model(family), make_batch()
    layers = {number: recorder(model, layers=[number])(**batch)[1] for number in (1, 2, 4)}
    heads = [[Head(1, 2), Head(2, 4)], [Head(4, 1), Head(4, 3)]]
    found = recorder(model, layers=[2, 4], heads=heads)(**batch)[1]
    for attention, wanted in zip(found.attention, heads, strict=True):
        expected = [layers[at].attention[0][:, head - 1] for at, head in wanted]
        torch.testing.assert_close(attention, torch.stack(expected, 1))
    for hidden, at in zip(found.hidden, (2, 4), strict=True):
        torch.testing.assert_close(hidden, layers[at].hidden[0])


@pytest.mark.parametrize("family", ["xlm-roberta", "deberta-v2"])
def test_the_model_is_left_as_it_was(family: str, tmp_path: Path) -> None:
    model, batch = make_model(family), make_batch()
    names, own = set(model.state_dict()), model.config._attn_implementation
    reading = recorder(model)
    reading(**batch)
    with pytest.raises(IndexError):
        reading(batch["input_ids"] + 1000, batch["attention_mask"])
    assert hooks(model) == 0
    assert model.config._attn_implementation == own
    assert set(model.state_dict()) == names
    model.save_pretrained(tmp_path)
    assert "kdshrink" not in json.dumps(model.config.to_dict())
    assert "kdshrink" not in (tmp_path / "config.json").read_text()
    loaded = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_the_model_saved_in_a_forward_pass_names_no_foreign_attention() -> None:
    model, batch = make_model("xlm-roberta"), make_batch()
    written: list[str] = []
    model.roberta.encoder.register_forward_pre_hook(
        lambda *_: written.append(model.config.to_json_string(use_diff=False))
    )
    recorder(model)(**batch)
    assert "kdshrink" not in written[0]


@pytest.mark.parametrize("family", ["xlm-roberta", "deberta-v2"])
def test_nothing_is_held_between_calls(family: str) -> None:
    model, batch = make_model(family).train(), make_batch()
    reading = recorder(model)
    output, activations = reading(**batch)
    held = [weakref.ref(tensor) for tensor in activations.hidden + activations.attention]
    del output, activations
    gc.collect()
    assert [reference() for reference in held] == [None] * 6


def test_an_unknown_family_is_named() -> None:
    config = AutoConfig.for_model("albert", vocab_size=50, hidden_size=16, num_attention_heads=4)
    model = transformers.AutoModel.from_config(config)
    with pytest.raises(ModelError, match=r"'albert'(?s:.*)xlm-roberta(?s:.*)deberta-v2"):
        recorder(model)


@pytest.mark.parametrize("number", [0, LAYERS + 1])
def test_a_layer_that_is_not_there_is_named(number: int) -> None:
    with pytest.raises(ModelError, match=f"no layer {number}: it has {LAYERS}"):
        recorder(make_model("bert"), layers=(2, number))


def test_raw_scores_and_deberta_scores_compare_once_centred() -> None:
    """Raw scores, once centred, equal the centred logarithms of its probabilities."""
    model, batch = make_model("xlm-roberta"), make_batch()
    mask = batch["attention_mask"].bool()
    with torch.no_grad():
        _, scores = recorder(model)(**batch)
        _, probabilities = recorder(model, "probabilities")(**batch)
    for raw, shares in zip(scores.attention, probabilities.attention, strict=True):
        logarithms = centre(shares.clamp_min(torch.finfo(torch.float32).tiny).log(), mask)
        assert_close_on_real(logarithms, centre(raw, mask), mask)


@pytest.mark.parametrize("family", ["xlm-roberta", "bert", "deberta-v2"])
@pytest.mark.parametrize("attention", ["scores", "probabilities", None])
def test_the_accelerators_way_gives_the_same(family: str, attention: Any) -> None:
    model = make_model(family, "sequence")
    ids = torch.randint(5, model.config.vocab_size, (3, 12))
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    reads: dict[str, Any] = {"hidden": True, "embedding": True, "attention": attention}
    with torch.no_grad():
        (usual, expected), (fused, found) = (
            Recorder(model, (1, 3), execution=execution, **reads)(
                input_ids=ids, attention_mask=mask
            )
            for execution in (ON_CPU, ON_GPU)
        )
    torch.testing.assert_close(fused.logits, usual.logits)
    real, pairs = mask.bool(), (mask[:, :, None] * mask[:, None, :]).bool()[:, None]
    for one, other in zip(found.hidden, expected.hidden, strict=True):
        torch.testing.assert_close(one[real], other[real])
    for one, other in zip(found.attention, expected.attention, strict=True):
        torch.testing.assert_close(one[pairs.expand_as(one)], other[pairs.expand_as(one)])
