"""Reads data sets from the Hub."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import ClassLabel, Dataset, get_dataset_config_names, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from huggingface_hub import HfApi, snapshot_download

from ..errors import DataError, HubError, KdshrinkError, listed
from ..hub.client import use_timeouts
from ..hub.errors import Fault, fault_of, hub_errors, is_hub_fault, reason
from . import arrow
from .local import FileTable
from .registry import NAMED, NamedData
from .request import Reading
from .shard import SPLIT_NAMES, SPLITS, Columns, Kind, Shard, Table

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HubTable:
    """A table of a data set on the Hub, loaded by datasets."""

    dataset: Dataset
    origin: str
    unit: str = "row"
    sha256: None = None

    def digest(self) -> str:
        # datasets derives it from the builder's files, which name the commit.
        return str(self.dataset._fingerprint)

    def is_unchanged(self) -> bool:
        return True

    def columns(self) -> dict[str, Kind]:
        schema = self.dataset.features.arrow_schema
        return {field.name: arrow.kind_of(field.type) for field in schema}

    def class_names(self, column: str) -> tuple[str, ...] | None:
        feature = self.dataset.features[column]
        feature = getattr(feature, "feature", feature)
        return tuple(feature.names) if isinstance(feature, ClassLabel) else None

    def read(self, columns: Columns) -> Iterator[pa.RecordBatch]:
        names = self.class_names(columns.label) if columns.label else None
        return arrow.to_rows(self._batches(columns), columns, names, self.origin)

    def _batches(self, columns: Columns) -> Iterator[pa.RecordBatch]:
        wanted = [n for n in (columns.text, columns.label, columns.language) if n is not None]
        for part in self.dataset.select_columns(wanted).with_format("arrow").iter(10_000):
            yield from part.combine_chunks().to_batches()


def named_hub_shards(named: NamedData, option: str, token: str | None) -> list[Shard]:
    """Shards of a named data set; `option` is the option that names it, for messages."""
    said = f"{option} {named.hub_id}"
    if named.hub_note:
        logger.warning("%s", named.hub_note)
    if named.hub_selector == "data_dir":
        commit: str | None = _fetch(named, named.hub_revision, [".gitattributes"], token, said).name
    else:
        commit = _commit(named.hub_id, named.hub_revision, token, said)

    def load(unit: str, split: str) -> Sequence[Table]:
        if named.hub_selector == "data_dir":
            return _fetch_parquet(named, commit, unit, split, token, said)
        revision = commit or named.hub_revision
        options = {"name": unit, "split": split, "revision": revision, "token": token}
        return (HubTable(_from_hub(named.hub_id, said, **options), f"{named.hub_id} {unit}"),)

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


def _fetch(
    named: NamedData, revision: str | None, patterns: list[str], token: str | None, said: str
) -> Path:
    """Download files of a data set to the Hub's cache; returns the directory, named by the commit."""
    use_timeouts()
    with hub_errors(_error_for(said)):
        folder = snapshot_download(
            named.hub_id,
            repo_type="dataset",
            revision=revision,
            token=token,
            allow_patterns=patterns,
        )
    return Path(folder)


def _fetch_parquet(
    named: NamedData, commit: str | None, unit: str, split: str, token: str | None, said: str
) -> tuple[FileTable, ...]:
    """A language and split of a refs/convert/parquet branch: <unit>/<split>/0000.parquet and so on.

    The files are downloaded here, since load_dataset sends about twenty requests for each of them and
    does not find them in its cache without a connection.
    """
    folder = _fetch(named, commit, [f"{unit}/{split}/*.parquet"], token, said) / unit / split
    tables = tuple(FileTable(path, Reading()) for path in sorted(folder.glob("*.parquet")))
    if not tables:
        raise DataError(f"{named.hub_id} has no {split} data of {unit} on the Hub.")
    return tables


def hub_shards(
    hub_id: str, option: str, languages: Collection[str], token: str | None
) -> list[Shard]:
    """Shards of a Hub data set: its only configuration, or those with the names of the wanted languages.

    Args:
        option: The option that names it, for messages.
    """
    said = f"{option} {hub_id}"
    commit = _commit(hub_id, None, token, said)
    with hub_errors(_error_for(said)):
        configurations = get_dataset_config_names(hub_id, token=token, revision=commit)
    wanted = [name for name in configurations if name in languages]
    if len(configurations) == 1:
        chosen: list[tuple[str | None, str]] = [(None, configurations[0])]
    elif wanted:
        chosen = [(name, name) for name in wanted]
    else:
        raise DataError(
            f"{said} has several configurations: {listed(configurations)}.\n"
            f"Choose some with --languages, as in --languages {configurations[0]}."
        )
    shards = []
    for language, configuration in chosen:
        whole = _from_hub(hub_id, said, name=configuration, token=token, revision=commit)
        for split, names in SPLIT_NAMES.items():
            if found := next((name for name in names if name in whole), None):
                part = whole[found]
                opened = partial(_opened, HubTable(part, f"{hub_id} {found}"))
                shards.append(Shard(language, split, hub_id, opened, commit=commit))
    if not shards:
        raise DataError(f"{said}: it has none of the splits {', '.join(SPLITS)}.")
    return shards


def _opened(table: Table) -> tuple[Table, ...]:
    return (table,)


def _commit(hub_id: str, revision: str | None, token: str | None, said: str) -> str | None:
    """The current commit of a revision of a data set; None without a connection."""
    use_timeouts()
    try:
        return HfApi(token=token).dataset_info(hub_id, revision=revision).sha
    except Exception as error:
        fault = fault_of(error)
        if fault is Fault.OFFLINE:
            return None
        if fault is Fault.NETWORK:
            logger.warning("%s: %s; using the cache", hub_id, reason(error, token))
            return None
        if fault is Fault.BAD_NAME:
            raise DataError(
                f"{said}: neither a file or directory here nor a possible Hub id.\n"
                f"Give an existing path, a Hub id, or one of {', '.join(NAMED)}."
            ) from error
        if fault in (Fault.MISSING, Fault.GATED):
            raise _no_such_data(said) from error
        if is_hub_fault(error):
            raise HubError(
                f"{said}: {reason(error, token)}.\nRun the command again later."
            ) from error
        raise


def _error_for(said: str) -> Callable[[Fault, Exception], KdshrinkError | None]:
    """Makes the error for data that could not be read; `said` is the option and the name."""

    def error_for(fault: Fault, error: Exception) -> KdshrinkError | None:
        if isinstance(error, (DataError, HubError)):
            return None
        if fault in (Fault.MISSING, Fault.GATED) or isinstance(error, DatasetNotFoundError):
            return _no_such_data(said)
        if is_hub_fault(error):
            return HubError(
                f"{said}: {reason(error, None)}.\n"
                "Check the network and HF_ENDPOINT, or read the data from files: --data-dir DIR for a "
                "named data set, a local path for custom data."
            )
        if isinstance(error, (DatasetGenerationError, ValueError, RuntimeError, FileNotFoundError)):
            return DataError(f"{said}: it could not be read from the Hub.\n{error}")
        return None

    return error_for


def _no_such_data(said: str) -> DataError:
    return DataError(
        f"{said}: no such data set on the Hub, or no access to it.\n"
        f"Check the name, pass --token if it is private or gated, or give a local path."
    )


def _from_hub(hub_id: str, said: str, **arguments: Any) -> Any:
    with hub_errors(_error_for(said)):
        return load_dataset(hub_id, **arguments)
