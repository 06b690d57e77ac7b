"""Loads models, in float32, and tokenizers."""

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
from .positions import cut_relative_positions
from .source import Source, tokenizer_files
from .tensors import TensorReader
from .whole import MissingHeadError, check_whole, first_line, is_of_encoder, read_config

logger = logging.getLogger(__name__)

_SHORTEST = 3
"""Tokens of the shortest text: one between the two special ones."""


@dataclass(frozen=True)
class Loaded:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def model_sizes(model: PreTrainedModel) -> dict[str, int]:
    """Layers, width, vocabulary, parameters, and bytes in float32; a compact embedding counts as whole."""
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
    """Load a model's tokenizer.

    Args:
        task: The task that it is for, if known: for "token", `prefix_words` is applied.

    Raises:
        ModelError: The tokenizer is missing, damaged, or does not fit the model.
    """
    tokenizer_files(source)
    # Read here first, so that its faults are not reported as the tokenizer's.
    config = read_config(source)
    with _tokenizer_errors(source):
        tokenizer = AutoTokenizer.from_pretrained(
            source.directory,
            config=config,
            trust_remote_code=source.access.trust_remote_code,
        )
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ModelError(
            f"{source.name}: tokenizer_config.json names a tokenizer_class that is not one: "
            f"{type(tokenizer).__name__}."
        )
    if tokenizer.pad_token_id is None:
        raise ModelError(f"{source.name}: its tokenizer has no padding token.")
    longest = tokenizer.model_max_length
    if not isinstance(longest, (int, float)) or not longest >= _SHORTEST:
        raise ModelError(
            f"{source.name}: tokenizer_config.json has no valid model_max_length: {longest!r:.80}."
        )
    # Classifiers do not use chat templates, whose names become file names when the tokenizer is saved.
    tokenizer.chat_template = None
    if len(tokenizer) > source.config.get("vocab_size", len(tokenizer)):
        raise ModelError(
            f"{source.name}: the tokenizer has {len(tokenizer)} tokens, the model only "
            f"{source.config['vocab_size']} embedding rows. They do not belong together."
        )
    with _tokenizer_errors(source):
        tokenizer("a b \U0010ffff")  # a character that no vocabulary has
    if task == "token":
        prefix_words(tokenizer)
    return tokenizer


@contextmanager
def _tokenizer_errors(source: Source) -> Iterator[None]:
    """Raise ModelError for any error of a damaged tokenizer, and for panics of its Rust code."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelError(
            f"{source.name}: its tokenizer cannot be loaded.\n{first_line(error)[:200]}"
        ) from error


def prefix_words(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a tokenizer split words given as a list as it does within a sentence.

    Byte-level tokenizers (RoBERTa's) treat the space before a word as part of it, and words of a list have
    none. transformers' `add_prefix_space` is meant for this, but not all classes of tokenizers obey it.
    """
    parts = [tokenizer.backend_tokenizer.pre_tokenizer]
    for part in parts:
        if isinstance(part, pre_tokenizers.Sequence):
            with suppress(IndexError):
                parts += (part[i] for i in count())
        if isinstance(part, pre_tokenizers.ByteLevel) and not part.add_prefix_space:
            part.add_prefix_space = True
            # Saved to tokenizer_config.json, which some tokenizer classes read it from.
            tokenizer.init_kwargs["add_prefix_space"] = True
            tokenizer.add_prefix_space = True


def fitting_length(
    max_length: int, tokenizer: PreTrainedTokenizerBase, config: Mapping[str, Any]
) -> int:
    """The length to truncate texts to, in tokens: `max_length`, or what the model supports if less.

    Args:
        max_length: As requested by --max-length.
        config: The model's config.json.

    Raises:
        ModelError: The model's positions leave no room for text.
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
            "Make it a classifier first, with kdshrink finetune, or distil it from a fine-tuned teacher."
        )


def load_classifier(source: Source, task: Task) -> Loaded:
    """Load a fine-tuned model and its tokenizer, in float32.

    Raises:
        ModelError: The model is damaged, or has no head for the task.
    """
    require_task(source, task)
    tokenizer = load_tokenizer(source, task)
    return Loaded(load_weights(source, task), tokenizer)


def load_weights(source: Source, task: Task | None, rows: Tensor | None = None) -> PreTrainedModel:
    """Load a model with its own head for the task, or as a bare encoder (None), in float32.

    Args:
        rows: Ids of the rows of its word embedding table to load, (n,); None loads all.

    Raises:
        ModelError: The weights are damaged, incomplete, or not finite.
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

    The model's own head is kept if it has the same labels; else, or if the weights lack it, a new one is
    drawn at random.

    Args:
        labels: Names of the classes, by id.
        seed: For a new head.
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
    """Load a model, one tensor at a time, with a new head for these labels or (None) its own."""
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
        model.pooler = None  # hidden states do not depend on it, and it would be random
    if rows is not None:
        compact(model)
        model.config.vocab_size = vocabulary
    cut_relative_positions(model)
    return model


def _check_finite(source: Source, model: PreTrainedModel, passed_over: Any) -> None:
    """Raise ModelError where a weight is not finite.

    Args:
        passed_over: A table that is not checked, since texts may not use its bad rows; the model's
            output shows whether they do.
    """
    for name, weight in model.named_parameters():
        whole = passed_over is not None and weight is passed_over.weight
        if not whole and not bool(weight.isfinite().all()):
            raise ModelError(
                f"{source.name}: {name} holds numbers that are not finite.\n"
                "Its training diverged, or its file is damaged. Take an earlier checkpoint."
            )
