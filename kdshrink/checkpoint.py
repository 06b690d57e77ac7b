"""Model directories: found here or on the Hub, and written whole or not at all."""

from __future__ import annotations

import fcntl
import glob
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from .config import SourceOptions, command_line
from .errors import KdshrinkError, ModelError, OutputError
from .languages import Task
from .pull import fetch_model

logger = logging.getLogger(__name__)

SAMPLES = ("sample", "sample-base")
RECORD = "kdshrink.json"
CHECKPOINTS = "checkpoints"
LOG = "train_log.jsonl"
_FULL = 2**20
"""A disk with fewer bytes free than this counts as full when writing fails."""
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
        with resources.as_file(
            resources.files(__package__) / "sample" / _sample_folder(name)
        ) as at:
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
    config = _read_json(directory / "config.json")
    if config is None:
        hint = ""
        if (directory / CHECKPOINTS).is_dir():
            hint = " It holds the checkpoints of a run that did not end: finish it with --resume."
        raise ModelError(f"{name}: there is no config.json, so this is not a model.{hint}")
    return Source(name, directory, config, _read_json(directory / RECORD), commit)


def _sample_folder(name: str) -> str:
    return {"sample": "teacher", "sample-base": "base"}[name]


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is damaged: it is not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is damaged: it holds no JSON object.")
    return content


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


def check_output(output_dir: Path, *, overwrite: bool, resume: bool = False) -> None:
    """Raise OutputError unless results may go here: it is new, empty, or --overwrite or --resume."""
    if output_dir.exists() and not output_dir.is_dir():
        raise OutputError(f"{output_dir} is a file. Give a directory with -o.")
    if output_dir.is_dir() and any(output_dir.iterdir()) and not (overwrite or resume):
        interrupted = (
            not (output_dir / "config.json").exists() and (output_dir / CHECKPOINTS).exists()
        )
        going_on = ", or --resume to go on with the run that it holds" if interrupted else ""
        raise OutputError(
            f"{output_dir} is not empty.\nGive another directory with -o, --overwrite{going_on}."
        )
    parent = next(
        folder for folder in (output_dir, *output_dir.absolute().parents) if folder.exists()
    )
    if not os.access(parent, os.W_OK):
        raise OutputError(f"{output_dir} cannot be written: no permission in {parent}.")


@contextmanager
def disk_errors(what: Path) -> Iterator[None]:
    """Turn a full disk into an OutputError that names what was being written."""
    try:
        yield
    except KdshrinkError:
        raise
    except Exception as error:
        free = shutil.disk_usage(_existing(what)).free
        told = "No space left on device" in str(error)
        # torch.save tells of a full disk by errors of its own, which do not name it.
        if told or free < _FULL:
            raise OutputError(
                f"{what}: the disk is full ({free / 2**20:.0f} MiB free).\n"
                "Make room and run the command again; what was complete before is still there."
            ) from error
        raise


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


@contextmanager
def whole_directory(output_dir: Path) -> Iterator[Path]:
    """Give an empty directory to fill, and put it in output_dir's place when that went well.

    It stands beside output_dir, under a hidden name, so that the last step is one rename; if anything
    fails it is removed, and what stood at output_dir stays. What a killed process left is removed too.
    """
    parent = output_dir.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(parent, output_dir.name)
    staging = Path(tempfile.mkdtemp(prefix=f".{output_dir.name}.", suffix=".part", dir=parent))
    staging.chmod(0o777 & ~_umask())
    try:
        with _locked(staging), disk_errors(output_dir):
            yield staging
        old = None
        if output_dir.exists():
            old = staging.with_suffix(".old")
            output_dir.rename(old)
        staging.rename(output_dir)
        if old is not None:
            shutil.rmtree(old)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


@contextmanager
def _locked(directory: Path, flags: int = 0) -> Iterator[None]:
    """Hold a lock that ends with the process, if not before."""
    opened = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | flags)
        yield
    finally:
        os.close(opened)


def _remove_abandoned(parent: Path, name: str) -> None:
    for staging in parent.glob(f".{glob.escape(name)}.*.part"):
        try:
            with _locked(staging, fcntl.LOCK_NB):
                shutil.rmtree(staging)
        except OSError as error:  # another process is filling it, or it may not be touched
            logger.debug("%s stays: %s", staging, error)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def final_files(output_dir: Path) -> Iterator[Path]:
    """Give an empty directory to fill, and move its files into output_dir when that went well.

    For a directory that holds checkpoints already. config.json is moved last, and an old one removed
    first, so that it is there only in a whole result.
    """
    staging = output_dir / CHECKPOINTS / "final"
    shutil.rmtree(staging, ignore_errors=True)
    with disk_errors(output_dir):
        staging.mkdir(parents=True)
        yield staging
    (output_dir / "config.json").unlink(missing_ok=True)
    for path in sorted(staging.iterdir(), key=lambda path: path.name == "config.json"):
        target = output_dir / path.name
        if target.is_dir():
            shutil.rmtree(target)
        path.replace(target)
    staging.rmdir()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False, default=str)
    path.write_text(text + "\n", encoding="utf-8")


def make_record(
    command: str,
    config: Any,
    device: object,
    sources: Sequence[Source],
    read: Mapping[str, Any] | None,
    **facts: Any,
) -> dict[str, Any]:
    """What kdshrink.json says of how a directory was made. The token is left out.

    Args:
        command: The subcommand, such as "distill".
        config: Its config.
        sources: The models that it started from; their chains of commands are taken over.
        read: The data that this command read, if any.
        facts: What else is known, such as training languages and results.
    """
    packages = ("torch", "transformers", "datasets", "tokenizers", "safetensors", "huggingface-hub")
    secret = {item.name for item in fields(config) if item.metadata["secret"]}
    options = {name: value for name, value in asdict(config).items() if name not in secret}
    version = metadata.version("kdshrink")
    step = {
        "command": command_line(command, config),
        "kdshrink_version": version,
        "models": [source.describe() for source in sources],
        "data": _identity(read),
    }
    former = [one for source in sources for one in (source.record or {}).get("chain", [])]
    return {
        "kdshrink_version": version,
        "command": command,
        "config": options,
        "seed": getattr(config, "seed", None),
        "versions": {
            "python": sys.version.split()[0],
            **{name: metadata.version(name) for name in packages},
        },
        "device": None if device is None else str(device),
        "chain": [*(one for i, one in enumerate(former) if one not in former[:i]), step],
        "licences": licences(sources),
        **facts,
    }


def _identity(data: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What tells which data it was, of a data set's description."""
    if data is None:
        return None
    return {
        name: data[name]
        for name in ("name", "hub_id", "revision", "fingerprint", "languages")
        if data.get(name) is not None
    }


def licences(sources: Sequence[Source]) -> list[dict[str, str]]:
    """The licences that the sources name, each once: `license`, and its name and link if it has them."""
    found = []
    for source in sources:
        for licence in (source.record or {}).get("licences") or _licence_of_card(source.directory):
            if licence not in found:
                found.append(licence)
    return found


def _licence_of_card(directory: Path) -> list[dict[str, str]]:
    """What the metadata of a directory's model card says of its licence."""
    from huggingface_hub import metadata_load

    card = directory / "README.md"
    if not card.is_file():
        return []
    try:
        said = metadata_load(card) or {}
    except ValueError as error:
        logger.warning("%s: its metadata cannot be read: %s", card, str(error).splitlines()[0])
        return []
    kept = ("license", "license_name", "license_link")
    licence = {name: str(said[name]) for name in kept if isinstance(said.get(name), str)}
    return [licence] if "license" in licence else []
