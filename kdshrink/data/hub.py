"""Data on the Hub."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, get_dataset_config_names, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from ..config import DataOptions
from ..connection import is_hub_fault, is_network_fault, reason, use_timeouts
from ..errors import DataError, HubError
from .registry import NAMED, NamedData
from .shard import SPLIT_NAMES, SPLITS, Shard

logger = logging.getLogger(__name__)


def named_hub_shards(named: NamedData, token: str | None) -> list[Shard]:
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


def hub_shards(hub_id: str, config: DataOptions, token: str | None) -> list[Shard]:
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
        for split, names in SPLIT_NAMES.items():
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
