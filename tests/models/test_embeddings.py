"""Training on the embedding rows that the data reaches against training on the whole table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast, set_seed

from kdshrink import DistillConfig
from kdshrink.commands.training import TrainingCommand
from kdshrink.config.fields import LOSS_TERMS
from kdshrink.data.encoding import Collator
from kdshrink.data.load import load_data
from kdshrink.data.request import DataRequest
from kdshrink.distillation.model import DistillationModel
from kdshrink.distillation.targets import GroupedTargets
from kdshrink.distillation.teacher import Teacher
from kdshrink.distillation.trainer import DistillationTrainer
from kdshrink.errors import TrainingError
from kdshrink.models.activations import Recorder
from kdshrink.models.embeddings import (
    CompactEmbedding,
    WholeTable,
    compact_ids,
    embedding_name,
    reachable_ids,
)
from kdshrink.models.loading import load_weights, load_with_head
from kdshrink.models.source import find_model
from kdshrink.progress import silent
from kdshrink.training.run import run_training
from kdshrink.training.setup import development_evaluator, encode_splits

from ..helpers.models import LABELS, make_model, make_tokenizer

STEPS = 20
ROWS = 520  # of the table: 20 more than the tokenizer has tokens


@dataclass(frozen=True)
class Trained:
    losses: list[dict[str, float]]
    weights: dict[str, Tensor]
    rows_held: int


@pytest.fixture(params=["xlm-roberta", "deberta-v2"])
def source_dir(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path / "model"
    model = make_model(request.param, "sequence", num_hidden_layers=2)
    model.save_pretrained(folder)
    tokenizer = make_tokenizer(request.param)
    assert tokenizer.pad_token_id == model.config.pad_token_id
    tokenizer.save_pretrained(folder)
    return folder


def train(source_dir: Path, text_data: Path, out: Path, *, compact: bool, decay: float) -> Trained:
    """Distil a model with dropout on into itself, for 20 steps, on some rows of its table or on all."""
    config = DistillConfig(
        teacher=str(source_dir),
        data=str(text_data),
        device="cpu",
        batch_size=4,
        max_steps=STEPS,
        logging_steps=1,
        eval_steps=STEPS,
        learning_rate=1e-3,
        weight_decay=decay,
        seed=3,
        cache_teacher="none",
    )
    source = find_model(str(source_dir))
    tokenizer = AutoTokenizer.from_pretrained(source_dir)
    data = load_data(DataRequest(data=str(text_data)), ("train", "validation"), purpose="train")
    encoded = encode_splits(data, ("train", "validation"), tokenizer, 64, LABELS)
    rows = torch.arange(ROWS)
    if compact:
        rows = reachable_ids(tokenizer, list(encoded.values()), ROWS)
    collate = Collator(int(tokenizer.pad_token_id), compact_ids(rows, ROWS))
    command = TrainingCommand("distill", config, out, torch.device("cpu"), None, silent)
    arguments = command.arguments()
    command.start(command.identify({"teacher": source}))
    student, master = (load_weights(source, "sequence", rows) for _ in range(2))
    table = WholeTable.keep(out / "checkpoints" / "table", source_dir, student, rows)
    reads: dict[str, Any] = {"hidden": True, "embedding": True, "attention": "scores"}
    teacher = Teacher(Recorder(master.eval(), (1, 2), **reads), torch.arange(3))
    batches = command.batches(arguments, encoded["train"])
    examples = command.examples(student, encoded["train"], collate)
    set_seed(config.seed)
    trainer = DistillationTrainer(
        targets=GroupedTargets(teacher, batches, examples),
        texts=data.splits["train"],
        weights=dict.fromkeys(LOSS_TERMS, 1.0),
        batches=batches,
        table=table,
        evaluator=development_evaluator(data, encoded, LABELS, collate, torch.device("cpu")),
        output_dir=out,
        progress=silent,
        what="distill",
        patience=None,
        scores_start=False,
        model=DistillationModel(
            student, Recorder(student, (1, 2), **reads), config, 24, "sequence"
        ),
        args=arguments,
        train_dataset=examples,
        eval_dataset=encoded["validation"],
    )
    run = run_training(trainer, None)
    history = [row for row in trainer.state.log_history if "task" in row]
    losses = [{term: row[term] for term in LOSS_TERMS} for row in history]
    return Trained(losses, load_file(run.best_dir / "model.safetensors"), len(rows))


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_compact_training_equals_training_on_the_whole_table(
    source_dir: Path, text_data: Path, tmp_path: Path, decay: float
) -> None:
    whole = train(source_dir, text_data, tmp_path / "whole", compact=False, decay=decay)
    small = train(source_dir, text_data, tmp_path / "small", compact=True, decay=decay)
    assert whole.rows_held == ROWS
    assert small.rows_held < 120
    assert len(small.losses) == STEPS
    assert small.losses[0] == whole.losses[0]
    assert small.losses[0]["task"] > 0
    for ours, theirs in zip(small.losses, whole.losses, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    assert small.weights.keys() == whole.weights.keys()
    for name, value in small.weights.items():
        # A key's bias adds the same to all scores of a query: its gradient is rounding alone.
        if not name.endswith("key.bias") and "key_proj.bias" not in name:
            torch.testing.assert_close(value, whole.weights[name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_rows_without_text_change_by_weight_decay_alone(
    source_dir: Path, text_data: Path, tmp_path: Path, decay: float
) -> None:
    whole = train(source_dir, text_data, tmp_path / "whole", compact=False, decay=decay)
    small = train(source_dir, text_data, tmp_path / "small", compact=True, decay=decay)
    before = load_file(source_dir / "model.safetensors")
    name = next(name for name in before if name.endswith("word_embeddings.weight"))
    untouched = slice(500, ROWS)  # no piece has these ids
    mine, theirs = small.weights[name][untouched], whole.weights[name][untouched]
    # A linear schedule from 1e-3 to 0 in 20 steps.
    factor = 1.0
    for step in range(STEPS):
        factor *= 1 - 1e-3 * (1 - step / STEPS) * decay
    expected = before[name][untouched].double() * factor
    if decay == 0:
        assert torch.equal(mine, theirs)
        assert torch.equal(mine, before[name][untouched])
    else:
        assert factor < 0.9995
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=0)
        torch.testing.assert_close(mine.double(), expected, rtol=1e-6, atol=0)


def test_special_tokens_and_the_ids_up_to_the_padding_are_kept(
    text_data: Path, xlmr_tokenizer: PreTrainedTokenizerFast
) -> None:
    data = load_data(DataRequest(data=str(text_data)), ("train", "validation"), purpose="train")
    encoded = encode_splits(data, ("train", "validation"), xlmr_tokenizer, 64, LABELS)
    kept = reachable_ids(xlmr_tokenizer, list(encoded.values()), ROWS)
    assert kept.tolist() == sorted(set(kept.tolist()))
    assert kept[:4].tolist() == [0, 1, 2, 3]
    assert xlmr_tokenizer.mask_token_id in kept
    ids = {i for table in encoded.values() for row in table["input_ids"] for i in row}
    assert ids <= set(kept.tolist())
    lookup = compact_ids(kept, ROWS)
    assert lookup[kept].tolist() == list(range(len(kept)))
    assert lookup[1] == 1
    assert (lookup == -1).sum() == ROWS - len(kept)


@pytest.mark.parametrize("family", ["xlm-roberta", "bert", "roberta", "deberta-v2"])
@pytest.mark.parametrize("new_head", [False, True])
def test_a_model_loaded_in_part_computes_the_same(
    family: str, new_head: bool, tmp_path: Path
) -> None:
    make_model(family, "sequence").save_pretrained(tmp_path)
    source = find_model(str(tmp_path))
    labels = ["a", "b", "c", "d"] if new_head else LABELS
    rows = torch.tensor([0, 1, 2, 3, 40, 77, 499])
    whole, part = (
        load_with_head(source, "sequence", labels, 5, kept).eval() for kept in (None, rows)
    )
    assert part.config.vocab_size == whole.config.vocab_size == ROWS
    assert isinstance(part.get_input_embeddings(), CompactEmbedding)
    name = embedding_name(part)
    assert len(part.base_model.get_parameter(name)) == len(rows)
    ids = torch.tensor([[0, 40, 77, 499, 2], [0, 77, 2, 1, 1]])
    mask = ids != 1
    small = compact_ids(rows, ROWS)[ids]
    states = [
        model.base_model(i, attention_mask=mask).last_hidden_state
        for model, i in ((whole, ids), (part, small))
    ]
    assert torch.equal(*states)
    assert [*part.config.id2label.values()] == labels
    if not new_head:
        logits = [m(i, attention_mask=mask).logits for m, i in ((whole, ids), (part, small))]
        assert torch.equal(*logits)


def test_a_table_of_half_precision_comes_back_in_single(tmp_path: Path) -> None:
    half = make_model("xlm-roberta", "sequence").half()
    half.save_pretrained(tmp_path / "m")
    rows = torch.tensor([0, 1, 2, 3, 50])
    source = find_model(str(tmp_path / "m"))
    model = load_weights(source, "sequence", rows)
    table: Any = model.get_input_embeddings()
    table.weight.data[4] = 0.25
    whole = WholeTable.keep(tmp_path / "table", source.directory, model, rows)
    (tmp_path / "out").mkdir()
    whole.save_whole(model, tmp_path / "out")
    saved = load_file(tmp_path / "out" / "model.safetensors")
    before = half.roberta.embeddings.word_embeddings.weight.detach().float().clone()
    before[50] = 0.25
    assert torch.equal(saved["roberta.embeddings.word_embeddings.weight"], before)


def test_other_data_cannot_resume_a_run(tmp_path: Path) -> None:
    make_model("xlm-roberta", "sequence").save_pretrained(tmp_path / "m")
    source = find_model(str(tmp_path / "m"))
    rows = torch.arange(100)
    model = load_weights(source, "sequence", rows)
    WholeTable.keep(tmp_path / "table", source.directory, model, rows)
    WholeTable.keep(tmp_path / "table", source.directory, model, rows)
    with pytest.raises(TrainingError, match="other data"):
        WholeTable.keep(tmp_path / "table", source.directory, model, torch.arange(101))
