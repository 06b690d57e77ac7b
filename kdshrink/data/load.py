"""Labelled examples by split: found, chosen by language, sampled, their columns known by name.

Everything stays in Arrow's memory maps; what is held per example is an index.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import numpy as np
from datasets import Dataset, concatenate_datasets

from ..config import DataOptions
from ..errors import DataError
from .columns import Columns, find_columns, label_union, normalise
from .hub import hub_shards, named_hub_shards
from .languages import select_languages
from .local import FORMATS, directory_shards, read_file
from .registry import NAMED, NamedData, Task, Unit
from .sampling import language_codes, sample_languages, stratified_rows
from .shard import SPLITS, Shard, describe_shards

"""Labelled examples by split: found, chosen by language, sampled, their columns known by name.

Everything stays in Arrow's memory maps; what is held per example is an index.
"""


logger = logging.getLogger(__name__)


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
            return directory_shards(config.data_dir, named)
        if not named.hub_id:
            with resources.as_file(resources.files("kdshrink.sample") / "data") as folder:
                return directory_shards(folder, named)
        return named_hub_shards(named, token)
    if config.data_dir is not None:
        raise DataError(
            f"--data-dir goes with a named data set, and --data is {name!r}.\n"
            f"Name one of {', '.join(NAMED)}, or give the directory itself to --data."
        )
    path = Path(name).expanduser()
    if path.is_file():
        return [Shard(None, "train", str(path), partial(read_file, path), path)]
    if path.is_dir():
        return directory_shards(path, None)
    if (
        path.suffix.lstrip(".") in FORMATS
        or name.count("/") > 1
        or name.startswith((".", "/", "~"))
    ):
        raise DataError(
            f"--data {name}: there is no such file or directory.\n"
            f"Give an existing path, a Hub id, or one of {', '.join(NAMED)}."
        )
    return hub_shards(name, config, token)


_HELD_OUT = 0.1


@dataclass(frozen=True)
class TaskData:
    """Labelled examples by split.

    Attributes:
        labels: Names of the labels, or None where the data has none.
        splits: Tables of `text` (str, or list[str] of words), `label` (int or list[int], an index
            into labels; absent without labels) and `language` (str).
        languages: The languages that were asked for, in order.
        seen, unseen: The languages that count as such, whether asked for or not.
        source: What was read, for the record.
    """

    name: str
    task: Task
    labels: tuple[str, ...] | None
    splits: Mapping[str, Dataset]
    languages: tuple[str, ...]
    seen: tuple[str, ...]
    unseen: tuple[str, ...]
    source: dict[str, Any] = field(default_factory=dict)


def load_data(
    config: DataOptions,
    splits: Sequence[str] | None,
    *,
    purpose: Literal["train", "evaluate"],
    labels_required: bool = True,
    token: str | None = None,
) -> TaskData:
    """Read what `config` asks for.

    Args:
        splits: Of train, validation and test; None takes those that there are. For training, a tenth
            of the training data is held out as validation where there is none.
        purpose: "train" leaves out the languages without training data, unless they are named.
        labels_required: Whether data without a label column is an error.

    Raises:
        DataError: Unknown data, language, split, column or label, or nothing left.
        HubError: The Hub cannot be reached, or refuses.
    """
    named = NAMED.get(str(config.data))
    shards = find_shards(config, token)
    if splits is None:
        splits = [split for split in SPLITS if any(shard.split == split for shard in shards)]
    if named is not None:
        return _load_named(config, named, shards, splits, purpose)
    return _load_own(config, shards, splits, purpose, labels_required)


def _groups(
    config: DataOptions, units: Sequence[Unit], seen: Collection[str], unseen: Collection[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The seen and the unseen languages, after --seen-languages and --unseen-languages."""
    names = [unit.name for unit in units]
    if config.seen_languages is not None:
        seen = select_languages(config.seen_languages, units, seen, unseen)
        unseen = [name for name in names if name not in seen]
    if config.unseen_languages is not None:
        unseen = select_languages(config.unseen_languages, units, seen, unseen)
        if config.seen_languages is None:
            seen = [name for name in names if name not in unseen]
    if both := sorted(set(seen) & set(unseen)):
        raise DataError(f"{', '.join(both)}: named in --seen-languages and in --unseen-languages.")
    return tuple(seen), tuple(unseen)


def _load_named(
    config: DataOptions,
    named: NamedData,
    shards: list[Shard],
    splits: Sequence[str],
    purpose: str,
) -> TaskData:
    seen, unseen = _groups(config, named.units, named.seen, named.unseen)
    spec = config.languages or ("all",)
    languages = select_languages(spec, named.units, seen, unseen)
    present = {shard.language for shard in shards}
    missing = [name for name in languages if name not in present]
    grouped = set(spec) <= {"all", "seen", "unseen"}
    if missing and (not grouped or len(missing) == len(languages)):
        raise DataError(
            f"{named.name}: {config.data_dir} has no data of {', '.join(missing)}.\n"
            f"It has: {', '.join(sorted(filter(None, present)))}."
        )
    if missing:
        logger.info("%s: not in %s: %s", named.name, config.data_dir, ", ".join(missing))
    languages = tuple(name for name in languages if name not in missing)
    if purpose == "train":
        trained = {shard.language for shard in shards if shard.split == "train"}
        without = [name for name in languages if name not in trained]
        if without and (not grouped or len(without) == len(languages)):
            raise DataError(
                f"{named.name}: no training data in {', '.join(without)}.\n"
                f"These have some: {', '.join(n for n in seen if n in trained) or 'none'}."
            )
        languages = tuple(name for name in languages if name not in without)

    columns = Columns(named.text_column, named.label_column, None, named.task)
    other = "O" if named.task == "token" else None
    loaded = {}
    chosen = [shard for shard in shards if shard.split in splits and shard.language in languages]
    for split in splits:
        parts = [
            normalise(shard.load(), shard, columns, named.labels, other)
            for shard in chosen
            if shard.split == split
        ]
        if parts:
            loaded[split] = sample_languages(parts, split, config)
    if not config.data_dir and named.hub_id:
        origin = {"hub_id": named.hub_id, "requested_revision": named.hub_revision}
    else:
        origin = {"data_dir": str(config.data_dir)} if config.data_dir else {}
    origin |= describe_shards(chosen)
    return _finish(
        config,
        named.name,
        named.task,
        named.labels,
        loaded,
        splits,
        languages,
        (seen, unseen),
        purpose,
        origin,
    )


def _load_own(
    config: DataOptions,
    shards: list[Shard],
    splits: Sequence[str],
    purpose: str,
    labels_required: bool,
) -> TaskData:
    single_file = len(shards) == 1 and shards[0].language is None
    tables = [shard.load() for shard in shards]
    columns = find_columns(config, tables[0], labels_required)
    labels = label_union(tables, shards, columns.label) if columns.label else None
    wholes: dict[str, list[Dataset]] = {}
    for shard, table in zip(shards, tables, strict=True):
        normal = normalise(table, shard, columns, labels, None)
        wholes.setdefault(shard.split, []).append(normal)
    if single_file and purpose == "evaluate":
        wholes = {split: next(iter(wholes.values())) for split in splits}
    joined = {split: concatenate_datasets(parts) for split, parts in wholes.items()}

    names = sorted({name for whole in joined.values() for name in language_codes(whole)[1]})
    units = tuple(Unit(name, name.replace("_", "-").split("-")[0].lower()) for name in names)
    seen, unseen = _groups(config, units, (), ())
    languages = select_languages(config.languages or ("all",), units, seen, unseen)
    loaded = {}
    for split in splits:
        if split not in joined:
            continue
        codes, split_names = language_codes(joined[split])
        parts = [
            joined[split].select(np.flatnonzero(codes == split_names.index(language)))
            for language in languages
            if language in split_names
        ]
        if parts:
            loaded[split] = sample_languages(parts, split, config)
    on_hub = all(shard.path is None for shard in shards)
    origin = {"hub_id" if on_hub else "path": str(config.data)}
    origin |= describe_shards(shards)
    return _finish(
        config,
        str(config.data),
        columns.task,
        labels,
        loaded,
        splits,
        languages,
        (seen, unseen),
        purpose,
        origin,
    )


def _finish(
    config: DataOptions,
    name: str,
    task: Task,
    labels: tuple[str, ...] | None,
    loaded: dict[str, Dataset],
    splits: Sequence[str],
    languages: tuple[str, ...],
    groups: tuple[tuple[str, ...], tuple[str, ...]],
    purpose: str,
    origin: dict[str, Any],
) -> TaskData:
    """Hold out a development set where there is none, and check that nothing asked for is missing."""
    if (
        purpose == "train"
        and "validation" in splits
        and "train" in loaded
        and "validation" not in loaded
    ):
        rows = len(loaded["train"])
        order = np.random.default_rng(crc32(b"validation")).permutation(rows)
        held = max(1, round(rows * _HELD_OUT))
        if rows < 2:
            raise DataError(
                f"{name}: one training example is too few to hold one out for validation."
            )
        loaded["validation"] = loaded["train"].select(np.sort(order[:held]))
        loaded["train"] = loaded["train"].select(np.sort(order[held:]))
        logger.info("%s has no validation split: %d of %d examples are held out", name, held, rows)
    for split in splits:
        if split not in loaded:
            raise DataError(
                f"{name}: there is no {split} split in {', '.join(languages)}.\n"
                f"Splits found: {', '.join(loaded) or 'none'}."
            )
    if "train" in loaded and config.train_fraction < 1:
        chosen = stratified_rows(loaded["train"], config.train_fraction, labels is not None)
        loaded["train"] = loaded["train"].select(chosen)
    source = {
        "name": name,
        **origin,
        "languages": list(languages),
        "examples": {split: len(table) for split, table in loaded.items()},
    }
    return TaskData(name, task, labels, loaded, languages, *groups, source)
