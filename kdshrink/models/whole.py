"""Checks that a checkpoint is complete: has all tensors that its architecture needs, and no others.

transformers itself loads the shapes, on the meta device: this reads no weights, and applies its rules for
prefixes, old names and tied tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from ..data.registry import Task
from ..errors import ModelError
from .architectures import FAMILIES, config_keys
from .source import Source, require_plain
from .tensors import TensorReader, TensorSpec

Head = Task | Literal["lm"] | None
"""The head that a model is loaded with: for a task, for masked language modelling, or none."""

_AUTO = {
    None: AutoModel,
    "lm": AutoModelForMaskedLM,
    "sequence": AutoModelForSequenceClassification,
    "token": AutoModelForTokenClassification,
}
_LEFTOVERS = re.compile(
    r"(?:.*\.)?position_ids|(?:.*\.)?embeddings\.token_type_ids|(?:\w+\.)?pooler\..*"
    r"|(?:predictions|sop_classifier|pred_layer)\..*|"
    + "|".join(pattern for family in FAMILIES.values() for pattern in family.left_out)
)
"""Tensors of pretraining, and buffers, which classifiers do not use: of the families in the table, and of
others that transformers supports."""

_SHOWN = 3
_OF_ONE_CALL = {
    "return_dict": True,  # outputs are read by name
    "chunk_size_feed_forward": 0,  # it saves memory, but restricts lengths of texts
    "output_attentions": False,  # transformers refuses to save it beside sdpa
    "output_hidden_states": False,
}
"""Settings of a forward pass that some models have saved in config.json, and their values here."""


class MissingHeadError(ModelError):
    """The encoder is complete, but the head that config.json names is missing."""


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def read_config(source: Source) -> PreTrainedConfig:
    """The transformers configuration of a model.

    Raises:
        ModelError: config.json cannot be read, or names a type that transformers does not support.
    """
    kind = str(source.config.get("model_type"))
    remote = source.access.trust_remote_code and "auto_map" in source.config
    if not remote and kind not in CONFIG_MAPPING:
        raise ModelError(
            f"{source.name}: config.json names the model_type {kind!r:.80}, which this transformers "
            "does not know.\nFor a model with code of its own give --trust-remote-code."
        )
    try:
        if remote:
            config = AutoConfig.from_pretrained(source.directory, trust_remote_code=True)
        else:
            place = str(source.directory)
            config = CONFIG_MAPPING[kind].from_dict(dict(source.config), name_or_path=place)
    # Configuration classes may run code of their authors, so that any error is possible.
    except Exception as error:
        raise ModelError(
            f"{source.name}: config.json cannot be read.\n{' '.join(str(error).split())[:200]}"
        ) from error
    for name, usual in _OF_ONE_CALL.items():
        if getattr(config, name, usual) != usual:
            setattr(config, name, usual)
    return config


def make_shell(source: Source, head: Head, labels: Sequence[str] | None = None) -> PreTrainedModel:
    """A model without weights, on the meta device.

    Args:
        labels: Names of a new head's classes; None for the head that the model has.

    Raises:
        ModelError: config.json does not describe a model.
    """
    config = read_config(source)
    if labels is not None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {name: i for i, name in enumerate(labels)}
    auto: Any = _AUTO[head]
    try:
        with torch.device("meta"):
            return auto.from_config(config, trust_remote_code=source.access.trust_remote_code)
    except Exception as error:
        raise ModelError(
            f"{source.name}: config.json describes no model that can be made.\n{first_line(error)}"
        ) from error


def is_of_encoder(shell: PreTrainedModel, name: str) -> bool:
    """Whether a tensor of a file belongs to the encoder, by its prefix or first module."""
    modules = {module for module, _ in shell.base_model.named_children()}
    return name.startswith(f"{shell.base_model_prefix}.") or name.split(".")[0] in modules


def check_whole(source: Source, head: Head, labels: Sequence[str] | None = None) -> PreTrainedModel:
    """Check that the weights are exactly those that config.json describes; reads no tensor.

    Args:
        labels: As in `make_shell`. With labels, or for a bare encoder, a head in the files is ignored.

    Returns:
        The model without its weights, as `make_shell` makes it.

    Raises:
        MissingHeadError: Only the head is missing.
        ModelError: Tensors are missing, unexpected, or of other shapes or types.
    """
    require_plain(source)
    if head in ("sequence", "token") and labels is None:
        source.labels  # noqa: B018 (raises where they are unclear)
    with TensorReader(source.directory) as reader:
        specs = dict(reader.specs)
    layers = max(source.config.get(key, 0) for key in config_keys("num_hidden_layers"))
    if layers > len(specs):  # checked before a model of so many layers is made
        raise _not_whole(source, f"There are {len(specs)} tensors for {layers} layers.")
    shell = make_shell(source, head, labels)
    encoder_only = head is None or labels is not None
    given = {n: s for n, s in specs.items() if not encoder_only or is_of_encoder(shell, n)}
    _check_types(source, shell, given)
    found = _load_shapes(source, shell, given)
    missing = sorted(found["missing_keys"])
    if encoder_only:
        missing = [name for name in missing if not _may_be_new(shell, name)]
    # Missing tensors may be there under another name, which is shown; an ignored head is not one.
    strange = specs.keys() - given.keys() - shell.state_dict().keys() if missing else set()
    strange = {name for name in strange if not name.startswith("classifier.")}
    unexpected = sorted(
        name for name in {*found["unexpected_keys"], *strange} if not _is_leftover(shell, name)
    )
    shapes = sorted(found["mismatched_keys"])
    if not (missing or unexpected or shapes):
        return shell
    if not (unexpected or shapes) and not any(is_of_encoder(shell, name) for name in missing):
        raise MissingHeadError(
            f"{source.name}: its head for {type(shell).__name__} is not in the weights.\n"
            f"Missing: {_some(missing)}.\n"
            "Save the whole model with save_pretrained(), or make it a classifier with kdshrink finetune."
        )
    faults = [f"Missing: {_some(missing)}."] if missing else []
    faults += [f"Unexpected: {_some(unexpected)}."] if unexpected else []
    if shapes:
        name, stored, wanted = shapes[0]
        faults.append(f"{name} is {_shape(stored)}, and should be {_shape(wanted)}.")
    raise _not_whole(source, " ".join(faults))


def _not_whole(source: Source, fault: str) -> ModelError:
    return ModelError(
        f"{source.name}: the weights do not belong to config.json, or not all are there.\n{fault}\n"
        "Save the whole model with save_pretrained(), or fetch or copy it again."
    )


def _is_leftover(shell: PreTrainedModel, name: str) -> bool:
    return bool(_LEFTOVERS.fullmatch(name.removeprefix(f"{shell.base_model_prefix}.")))


def _may_be_new(shell: PreTrainedModel, name: str) -> bool:
    """Whether a missing tensor is of a head or pooler, on which hidden states do not depend."""
    inner = name.removeprefix(f"{shell.base_model_prefix}.")
    return not is_of_encoder(shell, name) or inner.startswith("pooler.")


def _target(state: Mapping[str, Any], prefix: str, name: str) -> str | None:
    """The model's name of a tensor of a file, where the encoder's prefix may be missing or added."""
    names = (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}")
    return next((one for one in names if one in state), None)


def _check_types(source: Source, shell: PreTrainedModel, given: Mapping[str, TensorSpec]) -> None:
    """Raise ModelError where two tensors have the same name in the model, or weights are integers."""
    state = shell.state_dict()
    stored: dict[str, str] = {}
    for name, spec in given.items():
        target = _target(state, shell.base_model_prefix, name)
        if target is None:
            continue
        if target in stored:
            raise _not_whole(source, f"{stored[target]} and {name} are both there.")
        stored[target] = name
        if state[target].is_floating_point() and not spec.is_floating_point:
            raise _not_whole(source, f"{name} holds integers ({spec.torch_type}), not weights.")


def _load_shapes(
    source: Source, shell: PreTrainedModel, given: Mapping[str, TensorSpec]
) -> dict[str, Any]:
    """transformers' report of missing, unexpected and mismatched keys for tensors of these shapes."""
    load: Any = type(shell).from_pretrained
    state = {
        name: torch.empty(s.shape, dtype=s.torch_type, device="meta") for name, s in given.items()
    }
    try:
        with _silent_transformers():
            _, found = load(
                None,
                config=shell.config,
                state_dict=state,
                dtype=torch.float32,
                device_map="meta",
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"{source.name}: it cannot be loaded.\n{first_line(error)}") from error
    return found


@contextmanager
def _silent_transformers() -> Iterator[None]:
    """Hide transformers' log and progress bar, since no model is really loaded."""
    verbosity = transformers_logging.get_verbosity()
    bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _shape(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape)) or "a single number"
