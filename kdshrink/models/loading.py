"""Models and tokenizers loaded into memory, safely and in float32."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from ..data.registry import Task
from ..errors import ModelError
from .architectures import find_family
from .embeddings import compact, embedding_name
from .source import Source, tokenizer_files
from .tensors import TensorReader
from .whole import MissingHeadError, check_whole, first_line, is_of_encoder, read_config

logger = logging.getLogger(__name__)

_SHORTEST = 3
"""Tokens of the shortest text that is one: a piece between the two special ones."""


@dataclass(frozen=True)
class Loaded:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def model_sizes(model: PreTrainedModel) -> dict[str, int]:
    """Layers, widths, vocabulary, parameters, and their bytes in float32; of the whole table, if cut."""
    config: Any = model.config
    table: Any = model.get_input_embeddings()
    rows, width = table.weight.shape
    parameters = model.num_parameters() + (config.vocab_size - rows) * width
    return {
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "vocabulary": config.vocab_size,
        "parameters": parameters,
        "bytes": parameters * torch.float32.itemsize,
    }


def load_tokenizer(source: Source, task: Task | None = None) -> PreTrainedTokenizerBase:
    """Load a model's own tokenizer.

    Args:
        task: What it is for, where that is known: words of token tasks are tokenised by
            `prefix_words`.

    Raises:
        ModelError: It has none, or a damaged one.
    """
    tokenizer_files(source)
    # Else the tokenizer would read it, and its faults would be told as the tokenizer's.
    config = read_config(source)
    with _tokenizer_errors(source):
        tokenizer = AutoTokenizer.from_pretrained(
            source.directory,
            config=config,
            trust_remote_code=source.access.trust_remote_code,
        )
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ModelError(
            f"{source.name}: tokenizer_config.json names a tokenizer_class that is none: "
            f"{type(tokenizer).__name__}."
        )
    if tokenizer.pad_token_id is None:
        raise ModelError(f"{source.name}: its tokenizer has no padding token.")
    longest = tokenizer.model_max_length
    if not isinstance(longest, (int, float)) or not longest >= _SHORTEST:
        raise ModelError(
            f"{source.name}: tokenizer_config.json has no sensible model_max_length: {longest!r:.80}."
        )
    # No classifier has a use for these, and their names become names of files when it is saved.
    tokenizer.chat_template = None
    if len(tokenizer) > source.config.get("vocab_size", len(tokenizer)):
        raise ModelError(
            f"{source.name}: the tokenizer has {len(tokenizer)} pieces, the model only "
            f"{source.config['vocab_size']} embedding rows. They do not belong together."
        )
    with _tokenizer_errors(source):
        tokenizer("a b \U0010ffff")  # a character that no vocabulary has
    if task == "token":
        prefix_words(tokenizer)
    return tokenizer


@contextmanager
def _tokenizer_errors(source: Source) -> Iterator[None]:
    """Tell of whatever a damaged tokenizer does, a panic of its Rust code too, which is no Exception."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelError(
            f"{source.name}: its tokenizer cannot be loaded.\n{first_line(error)[:200]}"
        ) from error


def prefix_words(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let words given as a list be cut as they are within a sentence.

    A byte-level tokenizer (RoBERTa's) knows the space before a word as a part of it, and words of a list
    have none. transformers' `add_prefix_space` means this, and works for some classes of tokenizers only.
    """
    parts = [tokenizer.backend_tokenizer.pre_tokenizer]
    for part in parts:
        if isinstance(part, pre_tokenizers.Sequence):
            with suppress(IndexError):
                parts += (part[i] for i in count())
        if isinstance(part, pre_tokenizers.ByteLevel) and not part.add_prefix_space:
            part.add_prefix_space = True
            # As it was loaded from, and is saved to, tokenizer_config.json: the class may go by it.
            tokenizer.init_kwargs["add_prefix_space"] = True
            tokenizer.add_prefix_space = True


def fitting_length(
    max_length: int, tokenizer: PreTrainedTokenizerBase, config: Mapping[str, Any]
) -> int:
    """--max-length, or what the model's positions allow if that is less.

    Args:
        config: The model's config.json.

    Raises:
        ModelError: They allow no text.
    """
    positions = config.get("max_position_embeddings", max_length)
    family = find_family(config)
    if family is not None and family.counts_behind_padding:
        positions -= config.get("pad_token_id", 1) + 1
    if positions < _SHORTEST:
        raise ModelError(
            f"config.json: max_position_embeddings {config['max_position_embeddings']} leaves no room for "
            f"text, with a pad_token_id of {config.get('pad_token_id', 1)}."
        )
    return int(min(max_length, tokenizer.model_max_length, positions))


def require_task(source: Source, task: Task) -> None:
    """Raise ModelError unless the model has a head for the task."""
    if source.task != task:
        kind = {"sequence": "sequence", "token": "token"}[task]
        found = (source.config.get("architectures") or ["no architecture"])[0]
        raise ModelError(
            f"{source.name}: the data is for {kind} classification, and this model is {found}.\n"
            "Make a classifier of it first: kdshrink finetune, or distill with a fine-tuned teacher."
        )


def load_classifier(source: Source, task: Task) -> Loaded:
    """Load a fine-tuned model and its tokenizer, in float32.

    Raises:
        ModelError: It is damaged, or has no head for the task.
    """
    require_task(source, task)
    tokenizer = load_tokenizer(source, task)
    return Loaded(load_weights(source, task), tokenizer)


def load_weights(source: Source, task: Task | None, rows: Tensor | None = None) -> PreTrainedModel:
    """Load a model with the head that it has for the task (None: the bare encoder), in float32.

    Args:
        rows: The rows of its word embedding table to load, and no others; None loads it whole.

    Raises:
        ModelError: The weights are damaged, not whole, or not finite.
    """
    model = _assemble(source, task, None, rows)
    _check_finite(source, model, None if rows is not None else model.get_input_embeddings())
    return model


def load_with_head(
    source: Source,
    task: Task,
    labels: Sequence[str],
    seed: int,
    rows: Tensor | None = None,
) -> PreTrainedModel:
    """Load an encoder with a classification head for these labels.

    A head that the model has for the very same labels is kept; else a new one is drawn from the seed,
    where config.json alone has one too.

    Args:
        rows: As in `load_weights`.

    Raises:
        ModelError: The model is damaged or not supported.
    """
    if source.task == task and sorted(source.labels) == sorted(labels):
        try:
            return _assemble(source, task, None, rows)
        except MissingHeadError:
            logger.warning("%s: its head is not in its weights, so a new one is drawn", source.name)
            labels = source.labels
    set_seed(seed)
    return _assemble(source, task, labels, rows)


def _assemble(
    source: Source,
    task: Task | None,
    labels: Sequence[str] | None,
    rows: Tensor | None,
) -> PreTrainedModel:
    """A model of a source's tensors, read one at a time: with a new head for labels, or its own."""
    shell = check_whole(source, task, labels)
    config: Any = shell.config
    vocabulary = config.vocab_size
    table = embedding_name(shell)
    tensors = {}
    with TensorReader(source.directory) as reader:
        for name in reader.specs:
            if (task is None or labels is not None) and not is_of_encoder(shell, name):
                continue
            inner = name.removeprefix(f"{shell.base_model_prefix}.")
            tensor = reader.read(name)
            tensors[name] = tensor[rows] if rows is not None and inner == table else tensor
    if rows is not None:
        config.vocab_size = len(rows)
    load: Any = type(shell).from_pretrained
    try:
        model, found = load(
            None, config=config, state_dict=tensors, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"{source.name}: it cannot be loaded.\n{first_line(error)}") from error
    if task is None and any(name.startswith("pooler.") for name in found["missing_keys"]):
        model.pooler = None  # no hidden state depends on it, and drawn at random it means nothing
    if rows is not None:
        compact(model)
        model.config.vocab_size = vocabulary
    return model


def _check_finite(source: Source, model: PreTrainedModel, passed_over: Any) -> None:
    """Raise ModelError where a weight is not finite.

    Args:
        passed_over: A table of which texts may reach none of the bad rows: what it makes of them tells.
    """
    for name, weight in model.named_parameters():
        whole = passed_over is not None and weight is passed_over.weight
        if not whole and not bool(weight.isfinite().all()):
            raise ModelError(
                f"{source.name}: {name} holds numbers that are not finite.\n"
                "Its training failed, or its file is damaged. Take an earlier checkpoint."
            )
