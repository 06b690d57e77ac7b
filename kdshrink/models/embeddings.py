"""Embedding tables cut, during training, to the rows of tokens that the data contains.

An encoder with 250,000 tokens spends most of its memory, and of its optimizer's time, on rows of tokens
that are not in the data. AdamW changes such a row by weight decay only, since its gradient and so both
its moments are 0: each step multiplies it by 1 − learning rate × weight decay. So only the other rows are
in memory; the whole table is restored from a file of the initial one, times the product of those factors.
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
from .tensors import TensorReader, TensorSpec, to_array, write_tensors

TABLE = "embeddings.safetensors"
_BLOCK = 16384
"""Rows of a table that are restored at once."""


def reachable_ids(
    tokenizer: PreTrainedTokenizerBase, tables: list[Dataset], vocabulary: int
) -> Tensor:
    """The ids that batches of the data can contain, ascending, (n,) int64.

    Special tokens are included, and all ids up to the padding's, so that its id stays the same: XLM-R
    counts positions from it.

    Args:
        tables: Tokenised data, as `encoding.encode` makes it.
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
    """The compact id of each id, (vocabulary,); -1 for one that is not kept."""
    ids = torch.full((vocabulary,), -1)
    ids[kept] = torch.arange(len(kept))
    return ids


class CompactEmbedding(nn.Embedding):
    """A word embedding table with a subset of its rows.

    Attributes:
        decay: The factor by which weight decay has shrunk the rows that are left out, a scalar.
    """

    decay: Tensor

    def __init__(self, rows: Tensor, padding_idx: int | None) -> None:
        # On the meta device, so that no random rows are drawn first.
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
    """Make a model's word embedding table, which holds a subset of the rows, a `CompactEmbedding`."""
    table: Any = model.get_input_embeddings()
    model.set_input_embeddings(CompactEmbedding(table.weight.detach(), table.padding_idx))


def table_bytes(model: PreTrainedModel) -> int:
    """Bytes of a model's whole embedding table."""
    weight: Any = model.get_input_embeddings().weight
    return int(model.config.vocab_size * weight.shape[1] * weight.itemsize)


class DecayCounter:
    """Counts the weight decay of the rows that a model's compact embeddings leave out.

    Args:
        model: The model, in which the embeddings are looked for once.
        optimizer: It has their weights, and the state that it begins with.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        groups = {id(one): group for group in optimizer.param_groups for one in group["params"]}
        self._tables = [
            (module, groups[id(module.weight)])
            for module in model.modules()
            if isinstance(module, CompactEmbedding)
        ]

    def count(self) -> None:
        """Add a step of the optimizer: call it after the step, and before the learning rate changes."""
        for table, group in self._tables:
            table.decay.mul_(1.0 - group["lr"] * group["weight_decay"])


@dataclass(frozen=True)
class WholeTable:
    """The initial embedding table of a model, kept in a file while a subset of its rows is trained.

    Attributes:
        path: A safetensors file of `table` (V, H) and `kept`, the ids of the rows that are trained.
    """

    path: Path

    @classmethod
    def keep(cls, path: Path, origin: Path, model: PreTrainedModel, kept: Tensor) -> WholeTable:
        """Copy the table of the directory that a model was loaded from.

        When a run resumes, the file exists, and is checked to be of the same rows. A damaged one is
        written again from the same model.

        Args:
            path: The file.
            origin: The directory.
            kept: The ids of the rows that are trained.

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
            specs = {"table": reader.specs[name], "kept": TensorSpec.of(kept)}
            with atomic_file(path) as partial:
                write_tensors(
                    partial,
                    specs,
                    lambda key: to_array(kept) if key == "kept" else reader.blocks(name),
                )
        return cls(path)

    def save_whole(self, model: PreTrainedModel, folder: Path) -> None:
        """Save a model as `save_pretrained` does, but with its whole embedding table."""
        small: Any = model.get_input_embeddings()
        with tempfile.TemporaryDirectory(dir=folder) as compacted:
            model.save_pretrained(compacted)
            with TensorReader(Path(compacted)) as reader:
                name = _stored_name(reader, model)
                specs = {
                    key: TensorSpec((model.config.vocab_size, spec.shape[1]), spec.code)
                    if key == name
                    else spec
                    for key, spec in reader.specs.items()
                    if key != f"{name.removesuffix('weight')}decay"
                }
                write_tensors(
                    folder / "model.safetensors",
                    specs,
                    lambda key: self._restored(small) if key == name else reader.blocks(key),
                )
            shutil.copy2(Path(compacted, "config.json"), folder)

    def _restored(self, small: CompactEmbedding) -> Iterator[np.ndarray]:
        """The current whole table in blocks of rows, since it may be most of the model's size."""
        rows, decay = small.weight.detach().cpu(), float(small.decay)
        with safe_open(self.path, framework="pt") as file:
            kept = file.get_tensor("kept")
            count = file.get_slice("table").get_shape()[0]
        for begin in range(0, count, _BLOCK):
            # Opened anew each time, since mapped pages count as memory until the file is closed.
            with safe_open(self.path, framework="pt") as file:
                block = file.get_slice("table")[begin : begin + _BLOCK].to(rows.dtype, copy=True)
            if decay != 1.0:
                block *= decay
            first, last = torch.searchsorted(kept, torch.tensor([begin, begin + len(block)]))
            block[kept[first:last] - begin] = rows[first:last]
            yield to_array(block)


def _kept_rows(path: Path) -> Tensor | None:
    """The ids of the trained rows that a file names; None if it is missing or damaged."""
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
