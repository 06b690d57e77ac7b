"""Prepares a training loop: dropout, tokenised splits, the compiled model's collator, the evaluator."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..data.encoding import Collator, cut_off, encode, in_scheme_of, needs_own_scheme
from ..data.labels import match_labels
from ..data.load import TaskData
from ..evaluation.evaluator import Evaluator

logger = logging.getLogger(__name__)


def set_dropout(model: nn.Module, rate: float | None, *, calibrated: bool) -> None:
    """Set the rate of all dropout layers of a model; its config is not changed.

    A calibrated model was fitted to activations without dropout, and loses what it gained by that in the
    first steps with dropout.

    Args:
        rate: None keeps the model's own rates, or sets 0 if the model is `calibrated`.
    """
    if rate is None and not calibrated:
        return
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate or 0.0


def development_evaluator(
    data: TaskData,
    encoded: Mapping[str, Any],
    model_labels: Sequence[str],
    collate: Collator,
    device: torch.device,
) -> Evaluator:
    """The evaluator of the development set."""
    assert data.labels is not None
    return Evaluator(
        data.splits["validation"],
        encoded["validation"],
        labels=data.labels,
        model_labels=model_labels,
        task=data.task,
        collate=collate,
        batch_size=None,
        device=device,
        tag_scheme=data.tag_scheme,
    )


def encode_splits(
    data: TaskData,
    splits: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    model_labels: Sequence[str],
) -> dict[str, Any]:
    """Tokenise splits, with labels as the model's class ids, in its tag scheme."""
    tables = {split: data.splits[split] for split in splits}
    ids = None
    if data.labels is not None and needs_own_scheme(data.labels, model_labels):
        tables = {
            split: in_scheme_of(table, data.labels, model_labels) for split, table in tables.items()
        }
        ids = list(range(len(model_labels)))
    elif data.labels is not None:
        ids = match_labels(data.labels, model_labels)
    encoded = {
        split: encode(table, tokenizer, task=data.task, max_length=max_length, label_ids=ids)
        for split, table in tables.items()
    }
    for split, table in encoded.items():
        if cut := int((cut_off(table) > 0).sum()):
            logger.info(
                "%s: %d of %d examples are longer than %d tokens and are cut",
                *(split, cut, len(table), max_length),
            )
    return encoded
