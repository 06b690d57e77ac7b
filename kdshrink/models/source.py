"""Finds a model's files, locally or on the Hub, and reads its config.json."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from ..data.registry import Task
from ..errors import ModelError, listed, short
from ..files import read_json
from ..hub.download import fetch_model
from ..output import CHECKPOINTS
from ..record import Record, read_record
from .architectures import config_keys
from .labels import class_names

logger = logging.getLogger(__name__)

SAMPLES = ("sample", "sample-base")
_HEADS: dict[str, Task] = {
    "ForSequenceClassification": "sequence",
    "ForTokenClassification": "token",
}
_TOKENIZER_FILES = (
    "tokenizer.json",
    "sentencepiece.bpe.model",
    "spm.model",
    "vocab.txt",
    "vocab.json",
)
_TOKENIZER_SETTINGS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
)
_ADAPTER = "adapter_config.json"
MERGE = (
    "Merge it into its model: load both with PEFT, merge_and_unload(), then save_pretrained() with the\n"
    "tokenizer, and give that directory."
)
"""The advice to users who give an adapter."""
_OF_PAIRS = {"entailment", "neutral", "contradiction", "not_entailment"}
"""Classes of natural language inference, which classifies pairs of texts; config.json does not say so."""
_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)
_LEAST = {key: 1 for size in _SIZES for key in config_keys(size)} | {"type_vocab_size": 0}
"""The minimum of each size in config.json that commands read."""


@dataclass(frozen=True)
class Access:
    """How to access a model on the Hub, and whether to trust its code.

    Attributes:
        revision: Branch, tag or commit, unless the model's name contains one (ID@REVISION).
        token: Of the Hub.
        trust_remote_code: Whether code that comes with the model may run.
    """

    revision: str | None = None
    token: str | None = field(default=None, repr=False)
    trust_remote_code: bool = False


PUBLIC = Access()


@dataclass(frozen=True)
class Source:
    """A model's files on this machine.

    Attributes:
        name: As the user gave it.
        directory: Where its files are.
        config: Its config.json.
        record: Its kdshrink.json; empty if kdshrink did not make it.
        commit: The commit, if it came from the Hub.
        access: How it was accessed, which applies when it is loaded too.
    """

    name: str
    directory: Path
    config: Mapping[str, Any]
    record: Record = field(default_factory=Record)
    commit: str | None = None
    access: Access = PUBLIC

    @property
    def task(self) -> Task | None:
        """The task of its classification head; None without one."""
        return _task_of(self.config)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of its classes, by id.

        Raises:
            ModelError: config.json names them ambiguously.
        """
        try:
            return class_names(self.config)
        except ModelError as error:
            raise ModelError(f"{self.name}: {error}") from error

    @property
    def depth(self) -> int:
        """The number of its layers.

        Raises:
            ModelError: config.json does not have it.
        """
        return self._size("num_hidden_layers")

    @property
    def width(self) -> int:
        """The size of its hidden states (`ModelError` as `depth`)."""
        return self._size("hidden_size")

    @property
    def vocabulary(self) -> int:
        """The rows of its word embedding table (`ModelError` as `depth`)."""
        return self._size("vocab_size")

    def find_size(self, name: str) -> int | None:
        """A size in config.json, such as "hidden_size", by any family's key; None without it."""
        return next((self.config[key] for key in config_keys(name) if key in self.config), None)

    def _size(self, name: str) -> int:
        size = self.find_size(name)
        if size is None:
            raise ModelError(f"{self.name}: config.json has no {name}.")
        return size

    @property
    def training_languages(self) -> list[str]:
        return list(self.record.training_languages)

    @property
    def is_calibrated(self) -> bool:
        """Whether its weights come from a calibration, without training since."""
        return self.record.command == "shrink" and self.record.calibration is not None

    def renamed(self, names: Mapping[str, str]) -> Source:
        """The source with its classes renamed, where `names` maps them (--label-map).

        Raises:
            ModelError: Two classes would have the same name.
        """
        if self.task is None or not {*names} & {*self.labels}:
            return self
        labels = [names.get(label, label) for label in self.labels]
        if twice := next((label for label in labels if labels.count(label) > 1), None):
            raise ModelError(
                f"{self.name}: --label-map names two classes of the model {short(twice)!r}.\n"
                "Classes of the data may be joined so, those of a model may not."
            )
        ids = {name: i for i, name in enumerate(labels)}
        named = {"id2label": {str(i): name for name, i in ids.items()}, "label2id": ids}
        return replace(self, config={**self.config, **named})

    def describe(self) -> dict[str, Any]:
        """Its name and commit, for kdshrink.json."""
        return {"model": self.name, "revision": self.commit}


def _task_of(config: Mapping[str, Any]) -> Task | None:
    architecture = (config.get("architectures") or [""])[0]
    return next((task for end, task in _HEADS.items() if architecture.endswith(end)), None)


def find_model(name: str, access: Access = PUBLIC, *, weights: bool = True) -> Source:
    """Find a model: `sample`, `sample-base`, a local directory, or a Hub id (or ID@REVISION).

    Args:
        weights: Whether to download the weights of a model on the Hub, too.

    Raises:
        ModelError: It does not exist, or is not a model.
        HubError: The Hub cannot be reached, or denies access.
    """
    commit = None
    if name in SAMPLES:
        with resources.as_file(resources.files("kdshrink") / "sample" / _sample_folder(name)) as at:
            directory = at
    elif (local := Path(name).expanduser()).is_dir():
        directory = local
    elif local.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(
            f"{name}: there is no such model directory.\n"
            f"Give a directory with a config.json, a Hub id, or {' or '.join(SAMPLES)}."
        )
    else:
        hub_id, _, revision = name.partition("@")
        directory, commit = fetch_model(
            hub_id,
            revision or access.revision,
            access.token,
            weights=weights,
            code=access.trust_remote_code,
        )
    config = read_json(directory / "config.json")
    if config is None:
        hint = ""
        if (directory / CHECKPOINTS).is_dir():
            hint = " It holds the checkpoints of a run that did not end: finish it with --resume."
        if (directory / _ADAPTER).is_file():
            hint = f" It is a PEFT adapter.\n{MERGE}"
        raise ModelError(f"{name}: there is no config.json, so this is not a model.{hint}")
    _check_config(name, config)
    record = read_record(directory) or Record()
    return Source(name, directory, _plain(config), record, commit, access)


def _check_config(name: str, config: Mapping[str, Any]) -> None:
    """Raise ModelError where a field of config.json that is read has an invalid value."""
    faults = []
    names = config.get("architectures")
    if names is not None and not (
        isinstance(names, list) and all(isinstance(n, str) for n in names)
    ):
        faults.append(("architectures", "a list of names"))
    if not isinstance(config.get("model_type", ""), str):
        faults.append(("model_type", "a name"))
    for key, least in _LEAST.items():
        value = config.get(key, least)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            faults.append((key, f"a whole number from {least}"))
    padding = config.get("pad_token_id")
    if padding is not None and (not isinstance(padding, int) or padding < 0):
        faults.append(("pad_token_id", "an id"))
    if faults:
        field, wanted = faults[0]
        raise ModelError(
            f"{name}: config.json has no {field}, or no valid one: {config[field]!r:.80}.\n"
            f"It must be {wanted}. Fetch or copy config.json again, or correct it."
        )


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """A config.json with its class names in the form that transformers reads.

    Names that cannot be read are kept if there is a head, for `Source.labels` to raise; else removed.
    """
    named = {"id2label", "label2id"} & config.keys()
    if not named:
        return config
    try:
        names = class_names(config)
    except ModelError:
        if _task_of(config) is not None:
            return config
        return {key: value for key, value in config.items() if key not in (*named, "num_labels")}
    by_id = {str(i): name for i, name in enumerate(names)}
    if config.get("id2label") == by_id:
        return config
    return {**config, "id2label": by_id, "label2id": {name: i for i, name in enumerate(names)}}


def find_classifier(name: str, access: Access, renamed: Mapping[str, str]) -> Source:
    """Find a model that scores single texts, or their words, or that has no head.

    Args:
        renamed: New names of its classes, by the old ones.

    Raises:
        ModelError: It is not there, or is another kind of model.
        HubError: The Hub cannot be reached, or refuses.
    """
    source = find_model(name, access).renamed(renamed)
    require_plain(source)
    require_classes(source)
    require_single_texts(source)
    return source


def require_plain(source: Source) -> None:
    """Raise ModelError if its weights are quantised or an adapter's."""
    if (source.directory / _ADAPTER).is_file():
        raise ModelError(f"{source.name} is a PEFT adapter: there is an {_ADAPTER}.\n{MERGE}")
    settings = source.config.get("quantization_config")
    if settings is not None:
        how = settings.get("quant_method") if isinstance(settings, Mapping) else None
        method = f" ({how!s:.40})" if how else ""
        raise ModelError(
            f"{source.name}: its weights are quantised{method}, as quantization_config in config.json "
            "says, and cannot be cut or trained.\n"
            "Give the model that was quantised, or load it with dequantize() and save_pretrained()."
        )


def require_classes(source: Source) -> None:
    """Raise ModelError if its head is for anything but single-label classification."""
    if source.task is None:
        return
    kind = source.config.get("problem_type")
    if kind not in (None, "single_label_classification"):
        what = {"multi_label_classification": "several labels", "regression": "numbers"}.get(
            str(kind)
        )
        found = f"it predicts {what}" if what else "its head is of another kind"
        raise ModelError(
            f"{source.name}: {found} (problem_type {kind!r:.80} in config.json).\n"
            "Only classifiers whose classes exclude each other are supported yet."
        )
    if len(source.labels) == 1:
        raise ModelError(
            f"{source.name}: its head predicts one number, as for regression.\n"
            "Only classifiers with two or more classes are supported yet."
        )


def require_single_texts(source: Source) -> None:
    """Raise ModelError if it classifies pairs of texts, by its classes."""
    if source.task == "sequence" and {label.lower() for label in source.labels} <= _OF_PAIRS:
        raise ModelError(
            f"{source.name}: it classifies pairs of texts, as its classes say: "
            f"{listed(source.labels)}.\nOnly classifiers of single texts, or of words, are supported yet."
        )


def _sample_folder(name: str) -> str:
    return {"sample": "teacher", "sample-base": "base"}[name]


def tokenizer_files(source: Source) -> list[Path]:
    """The files of a model's tokenizer.

    Raises:
        ModelError: There are none. transformers would silently make a tokenizer without words.
    """
    found = [source.directory / name for name in _TOKENIZER_FILES]
    if not any(path.is_file() for path in found):
        raise ModelError(
            f"{source.name}: there is no tokenizer beside the model.\n"
            f"Looked for {', '.join(_TOKENIZER_FILES)}. Save the tokenizer into the same directory."
        )
    found += [source.directory / name for name in _TOKENIZER_SETTINGS]
    return [path for path in found if path.is_file()]


def fingerprint(path: Path) -> str:
    """The BLAKE2 hash of the weights files in a model directory, in hexadecimal."""
    digest = hashlib.blake2b(digest_size=16)
    files = [file for kind in ("*.safetensors", "*.bin") for file in sorted(path.glob(kind))]
    for file in files:
        with file.open("rb") as content:
            hashlib.file_digest(content, lambda: digest)
    return digest.hexdigest()
