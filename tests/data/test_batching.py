"""Batches: what they hold, in which order, and how much of them is padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, List, Value

from kdshrink.data.batching import Batches, cut_by_tokens, steps_per_epoch
from kdshrink.data.encoding import Collator, EncodedArrays

LENGTHS = np.random.default_rng(0).integers(3, 60, 501)


def rows_of(batches: Batches, epoch: int) -> list[list[int]]:
    return [rows.tolist() for rows in batches.of_epoch(epoch)]


@pytest.mark.parametrize("options", [{}, {"by_length": False}, {"tokens": 400}])
def test_every_example_comes_once_an_epoch(options: dict[str, object]) -> None:
    batches = Batches(LENGTHS, size=16, **options)  # type: ignore[arg-type]
    epochs = [rows_of(batches, epoch) for epoch in range(3)]
    for epoch in epochs:
        assert sorted(row for rows in epoch for row in rows) == list(range(501))
        assert len(epoch) == len(batches)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs == [rows_of(Batches(LENGTHS, size=16, **options), e) for e in range(3)]  # type: ignore[arg-type]
    assert rows_of(Batches(LENGTHS, size=16, seed=1, **options), 0) != epochs[0]  # type: ignore[arg-type]


def test_like_lengths_go_together_and_batches_come_in_any_order() -> None:
    batches = rows_of(Batches(LENGTHS, size=16), 0)
    spans = [LENGTHS[rows].max() - LENGTHS[rows].min() for rows in batches]
    assert max(spans) <= 4
    means = [LENGTHS[rows].mean() for rows in batches]
    assert means != sorted(means)
    # Which examples of one length share a batch differs from epoch to epoch.
    assert {frozenset(b) for b in batches} != {
        frozenset(b) for b in rows_of(Batches(LENGTHS, size=16), 1)
    }


def test_padding_is_what_the_batches_hold_beyond_their_tokens() -> None:
    for by_length in (True, False):
        batches = Batches(LENGTHS, size=16, by_length=by_length)
        positions = sum(len(rows) * max(LENGTHS[rows]) for rows in rows_of(batches, 0))
        padding = batches.padding()
        assert padding.positions == positions
        assert padding.padding == positions - LENGTHS.sum()
    assert Batches(LENGTHS, size=16).padding().share < 0.05
    assert Batches(LENGTHS, size=16, by_length=False).padding().share > 0.3


def test_token_budgets_are_kept() -> None:
    batches = rows_of(Batches(LENGTHS, size=1, tokens=400), 0)
    assert all(len(rows) * max(LENGTHS[rows]) <= 400 for rows in batches)
    assert any(len(rows) * max(LENGTHS[rows]) > 340 for rows in batches)
    # A text longer than the budget is a batch alone.
    assert cut_by_tokens(np.array([2, 3, 50, 60]), 20) == [0, 2, 3]
    assert cut_by_tokens(np.array([], dtype=int), 20) == []


@pytest.mark.parametrize("count", [501, 512, 513])
def test_processes_share_the_batches_of_one(count: int) -> None:
    lengths = np.resize(LENGTHS, count)
    alone = rows_of(Batches(lengths, size=16), 2)
    parts = [rows_of(Batches(lengths, size=8, rank=rank, world=2), 2) for rank in range(2)]
    joined = [sorted(a + b) for a, b in zip(*parts, strict=True)]
    if count == 513:  # one example over: the last batch takes it, so that no process is without
        assert len(joined) == len(alone) - 1
        assert sorted(map(len, joined))[-1] == 17
    else:
        assert joined == [sorted(rows) for rows in alone]


def test_an_epoch_ends_with_a_step_of_fewer_batches() -> None:
    batches = Batches(LENGTHS, size=16)
    assert len(batches) == 32
    assert steps_per_epoch(batches, 5) == 7


def test_batches_of_so_many_positions_and_examples() -> None:
    lengths = np.array([1, 1, 1, 1, 1, 4, 5, 5, 30, 40])
    assert cut_by_tokens(lengths, 15, 3) == [0, 3, 6, 8, 9]
    assert cut_by_tokens(lengths, 15) == [0, 5, 8, 9]


@pytest.mark.parametrize("labels", ["none", "text", "token"])
@pytest.mark.parametrize("buckets", [(), (8, 16, 24, 60)])
def test_arrays_give_the_collators_batches(labels: str, buckets: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    columns = {"input_ids": [rng.integers(2, 90, length).tolist() for length in LENGTHS]}
    features = {"input_ids": List(Value("int32"))}
    if labels == "text":
        columns["labels"] = rng.integers(0, 3, len(LENGTHS)).tolist()
        features["labels"] = Value("int32")
    elif labels == "token":
        columns["labels"] = [rng.integers(-1, 3, length).tolist() for length in LENGTHS]
        features["labels"] = List(Value("int32"))
    # A selection is stored as indices into a table of several chunks.
    table = Dataset.from_dict(columns, Features(features)).select(range(400, 0, -1))
    compact = torch.randperm(90)
    compact[1] = 1
    collate = Collator(1, compact, buckets)
    arrays = EncodedArrays(table, collate)
    assert len(arrays) == 400
    for rows in (np.arange(7), np.array([399, 0, 200]), np.array([5])):
        expected = collate([table[int(row)] for row in rows])
        found = arrays.__getitems__(rows.tolist())
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor)
            assert found[name].dtype == tensor.dtype
