"""A model's files: found here or on the Hub."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ..config import SourceOptions
from ..data.registry import Task
from ..errors import ModelError
from ..files import read_json
from ..output import CHECKPOINTS, RECORD
from ..pull import fetch_model

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


@dataclass(frozen=True)
class Source:
    """A model's files on this machine.

    Attributes:
        name: What the user called it.
        directory: Where its files are.
        config: Its config.json.
        record: Its kdshrink.json, if kdshrink made it.
        commit: The commit on the Hub, if it came from there.
    """

    name: str
    directory: Path
    config: Mapping[str, Any]
    record: Mapping[str, Any] | None = None
    commit: str | None = None

    @property
    def task(self) -> Task | None:
        """What its classification head is for; None without one."""
        architecture = (self.config.get("architectures") or [""])[0]
        return next((task for end, task in _HEADS.items() if architecture.endswith(end)), None)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of its classes, by id."""
        names = self.config.get("id2label") or {}
        return tuple(names[key] for key in sorted(names, key=int))

    @property
    def training_languages(self) -> list[str]:
        return list((self.record or {}).get("training_languages", []))

    @property
    def is_calibrated(self) -> bool:
        """Whether its weights are as calibrating made them, not trained since."""
        record = self.record or {}
        return record.get("command") == "shrink" and bool(record.get("calibration"))

    def describe(self) -> dict[str, Any]:
        """What a record says of it."""
        return {"model": self.name, "revision": self.commit}


def find_model(name: str, options: SourceOptions, *, weights: bool = True) -> Source:
    """Find a model: `sample`, `sample-base`, a local directory, or a Hub id (ID@REVISION too).

    Args:
        weights: Whether a model on the Hub is fetched with its weights.

    Raises:
        ModelError: It is not there, or is no model.
        HubError: The Hub cannot be reached, or refuses.
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
            revision or options.revision,
            options.token,
            weights=weights,
            code=options.trust_remote_code,
        )
    config = read_json(directory / "config.json")
    if config is None:
        hint = ""
        if (directory / CHECKPOINTS).is_dir():
            hint = " It holds the checkpoints of a run that did not end: finish it with --resume."
        raise ModelError(f"{name}: there is no config.json, so this is not a model.{hint}")
    return Source(name, directory, config, read_json(directory / RECORD), commit)


def _sample_folder(name: str) -> str:
    return {"sample": "teacher", "sample-base": "base"}[name]


def tokenizer_files(source: Source) -> list[Path]:
    """The files of a model's tokenizer.

    Raises:
        ModelError: It has none: transformers would silently make one that knows no word.
    """
    found = [source.directory / name for name in _TOKENIZER_FILES]
    if not any(path.is_file() for path in found):
        raise ModelError(
            f"{source.name}: there is no tokenizer beside the model.\n"
            f"Looked for {', '.join(_TOKENIZER_FILES)}. Save the tokenizer into the same directory."
        )
    found += [source.directory / name for name in _TOKENIZER_SETTINGS]
    return [path for path in found if path.is_file()]
