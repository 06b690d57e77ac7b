"""Where examples come from: files and the Hub, each language and split as one Arrow table on disk."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value, get_dataset_config_names, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from .config import DataOptions
from .connection import is_hub_fault, is_network_fault, reason, use_timeouts
from .errors import DataError, HubError
from .languages import NAMED, NamedData
from .pull import sha256_of

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
_SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development"),
    "test": ("test",),
}
_FORMATS = ("jsonl", "json", "csv", "tsv", "parquet", "iob2", "conll", "txt")
UNDETERMINED = "und"
"""BCP 47's code for a language that is not known: own data that names none."""


@dataclass(frozen=True)
class Shard:
    """The examples of one language (None: the file's own column tells) and split, not read yet.

    Attributes:
        path: The file that they are in, if it is a local one.
        commit: The commit that they are read at, if they are on the Hub and it is known.
    """

    language: str | None
    split: str
    origin: str
    load: Callable[[], Dataset]
    path: Path | None = None
    commit: str | None = None


def describe_shards(shards: Sequence[Shard]) -> dict[str, Any]:
    """What tells which data was read: a commit, or the SHA-256 of each file and of that list."""
    described: dict[str, Any] = {}
    if commits := {shard.commit for shard in shards if shard.commit}:
        described["revision"] = ", ".join(sorted(commits))
    files = {}
    for shard in shards:
        if shard.path is not None:
            folder = f"{shard.language}/" if shard.language else ""
            files[folder + shard.path.name] = sha256_of(shard.path)
    if files:
        listing = "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))
        described["fingerprint"] = hashlib.sha256(listing.encode()).hexdigest()
        described["files"] = files
    return described


def find_shards(config: DataOptions, token: str | None = None) -> list[Shard]:
    """List what there is of `config.data`, reading nothing but names where that is possible.

    Raises:
        DataError: No such data, or a directory without any.
        HubError: The Hub cannot be reached, or refuses.
    """
    name = str(config.data)
    named = NAMED.get(name)
    if named is not None:
        if config.data_dir is not None:
            return _directory_shards(config.data_dir, named)
        if not named.hub_id:
            with resources.as_file(resources.files(__package__) / named.name / "data") as folder:
                return _directory_shards(folder, named)
        return _named_hub_shards(named, token)
    if config.data_dir is not None:
        raise DataError(
            f"--data-dir goes with a named data set, and --data is {name!r}.\n"
            f"Name one of {', '.join(NAMED)}, or give the directory itself to --data."
        )
    path = Path(name).expanduser()
    if path.is_file():
        return [Shard(None, "train", str(path), partial(read_file, path), path)]
    if path.is_dir():
        return _directory_shards(path, None)
    if (
        path.suffix.lstrip(".") in _FORMATS
        or name.count("/") > 1
        or name.startswith((".", "/", "~"))
    ):
        raise DataError(
            f"--data {name}: there is no such file or directory.\n"
            f"Give an existing path, a Hub id, or one of {', '.join(NAMED)}."
        )
    return _hub_shards(name, config, token)


def _split_file(folder: Path, split: str) -> Path | None:
    for stem in _SPLIT_NAMES[split]:
        for ending in _FORMATS:
            if (path := folder / f"{stem}.{ending}").is_file():
                return path
    return None


def _directory_shards(folder: Path, named: NamedData | None) -> list[Shard]:
    """Shards of DIR/<language>/<split>.<ending>, or, for own data, DIR/<split>.<ending>."""
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such directory.\nGive the one that holds the data.")
    known = {unit.name for unit in named.units} if named else None
    shards = []
    subfolders = sorted(path for path in folder.iterdir() if path.is_dir())
    places: list[tuple[str | None, Path]] = [(path.name, path) for path in subfolders]
    if named is None:
        places.insert(0, (None, folder))
    for language, place in places:
        if known is not None and language not in known:
            continue
        for split in SPLITS:
            if path := _split_file(place, split):
                shards.append(Shard(language, split, str(path), partial(read_file, path), path))
    if not shards:
        what = f" of {named.name}" if named else ""
        raise DataError(
            f"{folder}: no data{what} found.\n"
            f"Expected <language>/<split>.<ending>, split one of {', '.join(SPLITS)}, "
            f"ending one of {', '.join(_FORMATS)}."
        )
    return shards


def _named_hub_shards(named: NamedData, token: str | None) -> list[Shard]:
    if named.hub_note:
        logger.warning("%s", named.hub_note)
    if named.hub_selector == "data_dir":
        commit: str | None = _fetch(named, named.hub_revision, [".gitattributes"], token).name
    else:
        commit = _commit(named.hub_id, named.hub_revision, token)

    def load(unit: str, split: str) -> Dataset:
        if named.hub_selector == "data_dir":
            return _load_parquet(named, commit, unit, split, token)
        revision = commit or named.hub_revision
        return _from_hub(named.hub_id, name=unit, split=split, revision=revision, token=token)

    return [
        Shard(
            unit.name,
            split,
            f"{named.hub_id} {unit.name}",
            partial(load, unit.name, split),
            commit=commit,
        )
        for unit in named.units
        for split in (SPLITS if unit.trains else ("test",))
    ]


def _fetch(named: NamedData, revision: str | None, patterns: list[str], token: str | None) -> Path:
    """Files of a data set in the Hub's cache; the directory is named by the commit."""
    use_timeouts()
    with _hub_errors(named.hub_id):
        folder = snapshot_download(
            named.hub_id,
            repo_type="dataset",
            revision=revision,
            token=token,
            allow_patterns=patterns,
        )
    return Path(folder)


def _load_parquet(
    named: NamedData, commit: str | None, unit: str, split: str, token: str | None
) -> Dataset:
    """A language and split of a refs/convert/parquet branch: <unit>/<split>/0000.parquet and on.

    The files are fetched by themselves, since load_dataset asks some twenty questions for each of them
    and does not find them again in its cache without a connection.
    """
    folder = _fetch(named, commit, [f"{unit}/{split}/*.parquet"], token) / unit / split
    files = sorted(str(path) for path in folder.glob("*.parquet"))
    if not files:
        raise DataError(f"{named.hub_id} has no {split} data of {unit} on the Hub.")
    return _from_hub("parquet", data_files=files, split="train")


def _hub_shards(hub_id: str, config: DataOptions, token: str | None) -> list[Shard]:
    """Shards of a Hub data set: its only configuration, or those named like the languages asked for."""
    commit = _commit(hub_id, None, token)
    with _hub_errors(hub_id):
        configurations = get_dataset_config_names(hub_id, token=token, revision=commit)
    wanted = [name for name in configurations if name in (config.languages or ())]
    if len(configurations) == 1:
        chosen: list[tuple[str | None, str]] = [(None, configurations[0])]
    elif wanted:
        chosen = [(name, name) for name in wanted]
    else:
        raise DataError(
            f"--data {hub_id} has several configurations: {', '.join(configurations)}.\n"
            f"Say which with --languages, as in --languages {configurations[0]}."
        )
    shards = []
    for language, configuration in chosen:
        whole = _from_hub(hub_id, name=configuration, token=token, revision=commit)
        for split, names in _SPLIT_NAMES.items():
            if found := next((name for name in names if name in whole), None):
                part = whole[found]
                load = partial(_itself, part)
                shards.append(Shard(language, split, hub_id, load, commit=commit))
    if not shards:
        raise DataError(f"--data {hub_id}: it has none of the splits {', '.join(SPLITS)}.")
    return shards


def _itself(table: Dataset) -> Dataset:
    return table


def _commit(hub_id: str, revision: str | None, token: str | None) -> str | None:
    """The commit that a revision of a data set names now; None without a connection."""
    use_timeouts()
    try:
        return HfApi(token=token).dataset_info(hub_id, revision=revision).sha
    except OfflineModeIsEnabled:
        return None
    except RepositoryNotFoundError as error:
        raise _no_such_data(hub_id) from error
    except HFValidationError as error:
        raise DataError(
            f"--data {hub_id}: neither a file or directory here nor a possible Hub id.\n"
            f"Give an existing path, a Hub id, or one of {', '.join(NAMED)}."
        ) from error
    except Exception as error:
        if is_network_fault(error):
            logger.warning("%s: %s; looking into the cache", hub_id, reason(error, token))
            return None
        if is_hub_fault(error):
            raise HubError(
                f"--data {hub_id}: {reason(error, token)}.\nRun the command again later."
            ) from error
        raise


@contextmanager
def _hub_errors(hub_id: str) -> Iterator[None]:
    """Turn what datasets and huggingface_hub raise into errors that say what to do."""
    try:
        yield
    except (DataError, HubError):
        raise
    except (DatasetNotFoundError, RepositoryNotFoundError) as error:
        raise _no_such_data(hub_id) from error
    except Exception as error:
        if is_hub_fault(error):
            raise HubError(
                f"--data {hub_id}: {reason(error, None)}.\n"
                "Check the network and HF_ENDPOINT, or read the data from files: --data-dir DIR for a "
                "named data set, --data PATH for your own."
            ) from error
        if isinstance(error, (DatasetGenerationError, ValueError, RuntimeError, FileNotFoundError)):
            raise DataError(
                f"--data {hub_id}: it could not be read from the Hub.\n{error}"
            ) from error
        raise


def _no_such_data(hub_id: str) -> DataError:
    return DataError(
        f"--data {hub_id}: no such data set on the Hub, or no access to it.\n"
        f"Check the name, pass --token if it is private or gated, or give a local path."
    )


def _from_hub(hub_id: str, **arguments: Any) -> Any:
    with _hub_errors(hub_id):
        return load_dataset(hub_id, **arguments)


def read_file(path: Path) -> Dataset:
    """Read a file of examples into an Arrow table on disk, by its ending.

    .jsonl, .json, .csv, .tsv and .parquet keep their columns; .txt gives `text`, a line an example;
    .iob2 and .conll give `tokens` and `ner_tags`.

    Raises:
        DataError: The file cannot be read, or is empty.
    """
    ending = path.suffix.lstrip(".").lower()
    if ending not in _FORMATS:
        raise DataError(f"{path}: files of this kind are not read. Endings: {', '.join(_FORMATS)}.")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty.")
    try:
        if ending in ("iob2", "conll"):
            features = Features(
                {"tokens": List(Value("string")), "ner_tags": List(Value("string"))}
            )
            table = Dataset.from_generator(
                _sentences, gen_kwargs={"path": str(path)}, features=features, split="train"
            )
        elif ending == "txt":
            table = load_dataset("text", data_files=str(path), split="train")
            table = table.filter(
                lambda batch: [bool(t.strip()) for t in batch["text"]], batched=True
            )
        elif ending in ("csv", "tsv"):
            separator = "\t" if ending == "tsv" else ","
            table = load_dataset("csv", data_files=str(path), split="train", sep=separator)
        else:
            builder = "parquet" if ending == "parquet" else "json"
            table = load_dataset(builder, data_files=str(path), split="train")
    except DatasetGenerationError as error:
        cause = error.__cause__ or error
        raise DataError(
            f"{path} cannot be read as {ending}.\n{str(cause).splitlines()[0]}"
        ) from error
    if len(table) == 0:
        raise DataError(f"{path} holds no example.")
    return table


def _sentences(path: str) -> Iterator[dict[str, list[str]]]:
    """Sentences of a file with a word a line and empty lines between.

    With a number first, as in the .iob2 files of universal-ner, the columns are number, word, tag;
    else the word is the first column and the tag the last, as in CoNLL's.
    """
    words: list[str] = []
    tags: list[str] = []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            line = line.rstrip("\n\r")
            if not line.strip():
                if words:
                    yield {"tokens": words, "ner_tags": tags}
                words, tags = [], []
                continue
            if line.startswith("# ") or line.startswith("-DOCSTART-"):
                continue
            columns = line.split("\t") if "\t" in line else line.split()
            if len(columns) < 2:
                raise ValueError(f"line {number} has one column; a word and its tag were expected")
            numbered = columns[0].isdigit() and len(columns) > 2
            words.append(columns[1] if numbered else columns[0])
            tags.append(columns[2] if numbered else columns[-1])
    if words:
        yield {"tokens": words, "ner_tags": tags}
