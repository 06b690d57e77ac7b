"""Embedding tables cut, while training, to the rows that the data can reach.

An encoder of 250,000 pieces spends most of its memory, and of its optimizer's time, on rows that no
text of the data touches. AdamW leaves such a row alone but for weight decay, since its gradient and so
both its moments are 0: after each step it is (1 − learning rate × weight decay) times what it was. So
only the others are held, and the whole table is put together again from the file that keeps the first
one, times the product of those factors.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import TrainingError
from ..files import atomic_file
from .tensors import TensorReader, TensorSpec, write_tensors

TABLE = "embeddings.safetensors"
_BLOCK = 16384
"""Rows of a table that are restored at a time."""


def reachable_ids(
    tokenizer: PreTrainedTokenizerBase, tables: list[Dataset], vocabulary: int
) -> Tensor:
    """The ids that encoded data can hold, ascending (int64).

    All special tokens are among them, and all ids up to the padding's, so that its own stays: XLM-R
    counts positions from it.

    Args:
        tables: As `encoding.encode` makes them.
        vocabulary: Rows of the embedding table.
    """
    used = np.zeros(vocabulary, dtype=bool)
    used[: int(tokenizer.pad_token_id) + 1] = True
    used[list(tokenizer.all_special_ids)] = True
    for table in tables:
        for batch in table.select_columns(["input_ids"]).with_format("arrow").iter(10_000):
            used[batch["input_ids"].combine_chunks().flatten().to_numpy()] = True
    return torch.from_numpy(np.flatnonzero(used))


def compact_ids(kept: Tensor, vocabulary: int) -> Tensor:
    """(vocabulary,) the compact id of each id; -1 for one that is not kept."""
    ids = torch.full((vocabulary,), -1)
    ids[kept] = torch.arange(len(kept))
    return ids


class CompactEmbedding(nn.Embedding):
    """Some rows of a word embedding table.

    Attributes:
        decay: By how much weight decay has shrunk the rows that are not here.
    """

    decay: Tensor

    def __init__(self, rows: Tensor, padding_idx: int | None) -> None:
        # On no device, so that no other rows are drawn first.
        super().__init__(len(rows), rows.shape[1], padding_idx=padding_idx, device="meta")
        self.weight = nn.Parameter(rows)
        self.register_buffer("decay", torch.ones((), dtype=torch.float64))


def embedding_name(model: PreTrainedModel) -> str:
    """The name of a model's word embedding table within its encoder."""
    table: Any = model.get_input_embeddings()
    return next(
        name for name, value in model.base_model.named_parameters() if value is table.weight
    )


def compact(model: PreTrainedModel) -> None:
    """Let a model know that its word embedding table is a part of a larger one."""
    table: Any = model.get_input_embeddings()
    model.set_input_embeddings(CompactEmbedding(table.weight.detach(), table.padding_idx))


def count_decay(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Count a step of the optimizer in the decay of the model's compact embedding.

    To be called after the step, and before the schedule changes the learning rate.
    """
    for module in model.modules():
        if isinstance(module, CompactEmbedding):
            group = next(
                group
                for group in optimizer.param_groups
                if any(parameter is module.weight for parameter in group["params"])
            )
            module.decay.mul_(1.0 - group["lr"] * group["weight_decay"])


@dataclass(frozen=True)
class WholeTable:
    """The embedding table that a model began with, kept in a file while it trains on some rows of it.

    Attributes:
        path: A safetensors file of `table` (V, H) and `kept`, the ids of the rows that are trained.
    """

    path: Path

    @classmethod
    def keep(cls, path: Path, origin: Path, model: PreTrainedModel, kept: Tensor) -> WholeTable:
        """Copy the table of the directory that a model was loaded from.

        Where a run resumes, the file is there; then check that the same rows are trained. A damaged one
        is made anew, from the same model.

        Raises:
            TrainingError: The run to resume had other data.
        """
        former = _kept_rows(path)
        if former is not None:
            if not torch.equal(former, kept):
                raise TrainingError(
                    f"{path.parent}: the checkpoints there are of a run on other data.\n"
                    "Resume with the data, languages and samples of that run, or --overwrite it."
                )
            return cls(path)
        with TensorReader(origin) as reader:
            name = _stored_name(reader, model)
            specs = {
                "table": reader.specs[name],
                "kept": TensorSpec(tuple(kept.shape), kept.dtype),
            }
            with atomic_file(path) as partial:
                write_tensors(
                    partial, specs, lambda key: kept if key == "kept" else reader.read(name)
                )
        return cls(path)

    def save_whole(self, model: PreTrainedModel, folder: Path) -> None:
        """Save a model as `save_pretrained` does, with its whole table."""
        small: Any = model.get_input_embeddings()
        with tempfile.TemporaryDirectory(dir=folder) as compacted:
            model.save_pretrained(compacted)
            with TensorReader(Path(compacted)) as reader:
                name = _stored_name(reader, model)
                specs = {
                    key: TensorSpec((model.config.vocab_size, spec.shape[1]), spec.dtype)
                    if key == name
                    else spec
                    for key, spec in reader.specs.items()
                    if key != f"{name.removesuffix('weight')}decay"
                }
                write_tensors(
                    folder / "model.safetensors",
                    specs,
                    lambda key: self._restored(small) if key == name else reader.read(key),
                )
            shutil.copy2(Path(compacted, "config.json"), folder)

    def _restored(self, small: CompactEmbedding) -> Iterator[Tensor]:
        """The whole table as it is now, in blocks of rows, since it may be most of the model."""
        rows, decay = small.weight.detach().cpu(), float(small.decay)
        with safe_open(self.path, framework="pt") as file:
            kept = file.get_tensor("kept")
            count = file.get_slice("table").get_shape()[0]
        for begin in range(0, count, _BLOCK):
            # Opened anew each time, since the pages of a mapping count as memory until it is closed.
            with safe_open(self.path, framework="pt") as file:
                block = file.get_slice("table")[begin : begin + _BLOCK].to(rows.dtype, copy=True)
            if decay != 1.0:
                block *= decay
            first, last = torch.searchsorted(kept, torch.tensor([begin, begin + len(block)]))
            block[kept[first:last] - begin] = rows[first:last]
            yield block


def _kept_rows(path: Path) -> Tensor | None:
    """The rows that a file of a table says are trained; None without it, or if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor("kept")
    except (OSError, SafetensorError):
        return None


def _stored_name(reader: TensorReader, model: PreTrainedModel) -> str:
    """The name of a model's word embedding table in files, with or without the encoder's prefix."""
    inner = embedding_name(model)
    return next(
        name for name in reader.specs if name.removeprefix(f"{model.base_model_prefix}.") == inner
    )
