"""Loads labelled examples by split: finds the files, selects languages, samples, and matches labels.

The examples stay in memory-mapped Arrow files; only an index per example is in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset

from ..errors import DataError, UsageError, listed
from .columns import Labels, columns_of, find_columns, joint_kinds
from .examples import (
    Labelling,
    Part,
    all_labelled,
    check_no_written_lists,
    custom_labels,
    examples,
    languages_of,
    named_labels,
)
from .hub import hub_shards, named_hub_shards
from .labels import read_label_map
from .languages import language_of, select_languages
from .local import directory_shards, file_shard, is_data_file
from .registry import NAMED, NamedData, Task, Unit
from .request import DataRequest, LanguageChoice
from .sampling import choose_rows, held_out_rows, stratified_rows
from .shard import SPLIT_OF, SPLITS, Columns, Shard, describe_shards
from .store import read_table

logger = logging.getLogger(__name__)

_HELD_OUT = 0.1
WHOLE_FILE = "all"
"""The name of the split of a single file, which has no splits."""


def find_shards(request: DataRequest, token: str | None = None) -> list[Shard]:
    """List the shards of `request.data`, if possible without reading any content.

    Raises:
        DataError: There is no such data, or a directory has none.
        HubError: The Hub cannot be reached, or refuses.
    """
    name, option, reading = request.data, request.option, request.reading
    named = NAMED.get(name)
    if named is not None:
        if request.data_dir is not None:
            return directory_shards(request.data_dir, named, reading)
        if not named.hub_id:
            with resources.as_file(resources.files("kdshrink.sample") / "data") as folder:
                return directory_shards(folder, named, reading)
        return named_hub_shards(named, option, token)
    if request.data_dir is not None:
        raise DataError(
            f"--data-dir goes with a named data set, and {option} is {name!r}.\n"
            f"Name one of {', '.join(NAMED)}, or give the directory itself to {option}."
        )
    path = Path(name).expanduser()
    if path.is_file():
        return [file_shard(path, reading)]
    if path.is_dir():
        return directory_shards(path, None, reading)
    if path.exists():
        raise DataError(
            f"{option} {name}: this is not a regular file.\nGive a file or a directory."
        )
    if is_data_file(path) or name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise DataError(
            f"{option} {name}: there is no such file or directory.\n"
            f"Give an existing path, a Hub id, or one of {', '.join(NAMED)}."
        )
    return hub_shards(name, option, request.languages.wanted or (), token)


@dataclass(frozen=True)
class TaskData:
    """Labelled examples by split.

    Attributes:
        labels: The names of the labels; None if the data has none.
        splits: Tables of `text` (str, or list[str] of words), `label` (int or list[int], an index
            into labels; absent without labels) and `language` (str).
        languages: The languages that were read, in order.
        seen, unseen: The languages that count as seen and unseen, whether read or not.
        reference: A description of what was read, for the record.
        tag_scheme: The scheme that entity tags were written in; None for other labels.
        whole_file: Whether the data is a single file, which has no splits.
    """

    name: str
    task: Task
    labels: tuple[str, ...] | None
    splits: Mapping[str, Dataset]
    languages: tuple[str, ...]
    seen: tuple[str, ...]
    unseen: tuple[str, ...]
    reference: dict[str, Any] = field(default_factory=dict)
    tag_scheme: str | None = None
    whole_file: bool = False


def split_named(typed: str) -> str:
    """The split with this name or alias: `validation` for `dev`.

    Raises:
        UsageError: There is none.
    """
    if typed.lower() not in SPLIT_OF:
        raise UsageError(f"--split {typed}: the splits are {', '.join(SPLITS)} (or dev).")
    return SPLIT_OF[typed.lower()]


def load_data(
    request: DataRequest,
    splits: Sequence[str] | None,
    *,
    purpose: Literal["train", "evaluate"],
    labels: Labels = "required",
    token: str | None = None,
) -> TaskData:
    """Load the examples that a request selects.

    Args:
        splits: Of train, validation and test; None for all that exist. For training, a tenth of the
            training data is held out as validation if there is no such split.
        purpose: "train" leaves out languages without training data, unless they are named.
        labels: Whether data without labels is an error.

    Raises:
        DataError: The data, a language, split, column or label is unknown, or no example is left.
        HubError: The Hub cannot be reached, or refuses.
    """
    shards = find_shards(request, token)
    renamed = read_label_map(request.label_map)
    named = NAMED.get(request.data)
    if named is not None:
        return _load_named(request, named, shards, splits, purpose, labels, renamed)
    return _load_custom(request, shards, splits, purpose, labels, renamed)


def _there(shards: Sequence[Shard]) -> list[str]:
    """The splits that exist."""
    return [split for split in SPLITS if any(shard.split == split for shard in shards)]


def _groups(
    choice: LanguageChoice, units: Sequence[Unit], seen: Collection[str], unseen: Collection[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The seen and the unseen languages, by --seen-languages and --unseen-languages."""
    names = [unit.name for unit in units]
    if choice.seen is not None:
        seen = set(select_languages(choice.seen, units, seen, unseen))
        unseen = [name for name in names if name not in seen]
    if choice.unseen is not None:
        unseen = set(select_languages(choice.unseen, units, seen, unseen))
        if choice.seen is None:
            seen = [name for name in names if name not in unseen]
    if both := sorted(set(seen) & set(unseen)):
        raise DataError(f"{listed(both)}: named in --seen-languages and in --unseen-languages.")
    seen, unseen = set(seen), set(unseen)
    return tuple(n for n in names if n in seen), tuple(n for n in names if n in unseen)


def _read(shard: Shard, columns: Columns) -> list[Part]:
    return [
        Part(shard.language, table, read_table(table, columns_of(table, columns)))
        for table in shard.tables
    ]


def _load_named(
    request: DataRequest,
    named: NamedData,
    shards: list[Shard],
    splits: Sequence[str] | None,
    purpose: str,
    labels: Labels,
    renamed: Mapping[str, str],
) -> TaskData:
    choice = request.languages
    seen, unseen = _groups(choice, named.units, named.seen, named.unseen)
    languages = select_languages(choice.wanted or ("all",), named.units, seen, unseen)
    for having, lacking in _needed(request, named, shards, splits, purpose):
        missing = [name for name in languages if name not in having]
        required = choice.by_name or len(missing) == len(languages)
        _report_missing(named.name, lacking, missing, having, required)
        languages = tuple(name for name in languages if name in having)

    splits = _there(shards) if splits is None else splits
    column = named.label_column if labels != "unused" else None
    columns = Columns(named.text_column, column, None, named.task)
    chosen = [shard for shard in shards if shard.split in splits and shard.language in languages]
    shards_of = {split: [s for s in chosen if s.split == split] for split in splits}
    parts = {
        split: [part for shard in found for part in _read(shard, columns)]
        for split, found in shards_of.items()
        if found
    }
    labelling = None
    if labels != "unused":
        labelling = named_labels([p for read in parts.values() for p in read], named, renamed)
    loaded = {}
    for split, read in parts.items():
        table = examples(read, labelling, named.task, column)
        names = [str(shard.language) for shard in shards_of[split]]
        loaded[split] = _chosen(table, names, split, request.sampling.limit(split))
    if not request.data_dir and named.hub_id:
        origin = {"hub_id": named.hub_id, "requested_revision": named.hub_revision}
    else:
        origin = {"data_dir": str(request.data_dir)} if request.data_dir else {}
    data = TaskData(
        named.name,
        named.task,
        None if labelling is None else named.labels,
        loaded,
        languages,
        seen,
        unseen,
        origin,
    )
    return _finish(data, chosen, labelling, splits, purpose, request.sampling.train_fraction)


def _needed(
    request: DataRequest,
    named: NamedData,
    shards: Sequence[Shard],
    splits: Sequence[str] | None,
    purpose: str,
) -> Iterator[tuple[set[str | None], str]]:
    """The data that each language must have: the languages that have it, and a message on the others."""
    yield {shard.language for shard in shards}, f"{request.data_dir or named.name} has no data of"
    if purpose == "train":
        trained = {shard.language for shard in shards if shard.split == "train"}
        yield trained, "there is no training data in"
    for split in splits or ():
        having = {shard.language for shard in shards if shard.split == split}
        if having and split != "validation":
            yield having, f"there is no {split} split in"


def _report_missing(
    data: str,
    lacking: str,
    missing: Sequence[str],
    having: Collection[str | None],
    required: bool,
) -> None:
    """Log which languages lack data, or raise an error if they are required.

    Args:
        lacking: The message on what they lack, without their names.
        having: The languages that have it.
        required: Whether the missing languages are required.

    Raises:
        DataError: A required language is missing.
    """
    if missing and required:
        raise DataError(
            f"{data}: {lacking} {listed(missing)}.\n"
            f"Languages that have it: {listed(sorted(filter(None, having))) or 'none'}."
        )
    if missing:
        logger.info("%s: %s %s", data, lacking, listed(missing))


def _chosen(table: Dataset, languages: Sequence[str], split: str, most: int | None) -> Dataset:
    rows = choose_rows(table, languages, split, most)
    whole = len(rows) == len(table) and bool((np.diff(rows) == 1).all())
    return table if whole else table.select(rows)


def _load_custom(
    request: DataRequest,
    shards: list[Shard],
    splits: Sequence[str] | None,
    purpose: str,
    labels: Labels,
    renamed: Mapping[str, str],
) -> TaskData:
    name, choice = request.data, request.languages
    asked_for = splits is not None
    splits = _there(shards) if splits is None else splits
    whole_file = Path(name).expanduser().is_file()
    tables = [table for shard in shards for table in shard.tables]
    columns = find_columns(name, joint_kinds(tables), request.columns, labels)
    parts: dict[str, list[Part]] = {}
    for shard in shards:
        split = splits[0] if whole_file and purpose == "evaluate" else shard.split
        parts.setdefault(split, []).extend(_read(shard, columns))
    everything = [part for read in parts.values() for part in read]
    if columns.task == "sequence":
        check_no_written_lists(everything, columns.text)
    labelling = None
    asked = [part for split in splits for part in parts.get(split, ())]
    if columns.label is not None and (labels == "required" or all_labelled(asked)):
        names = next(filter(None, (t.class_names(columns.label) for t in tables)), None)
        labelling = custom_labels(everything, columns.label, columns.task, names, renamed)
    elif columns.label is not None:
        logger.info("%s: not all examples have labels, so none are used", name)
    present = {split: languages_of(read) for split, read in parts.items()}
    units = tuple(
        Unit(language, language_of(language)) for language in sorted(set().union(*present.values()))
    )
    seen, unseen = _groups(choice, units, (), ())
    languages = select_languages(choice.wanted or ("all",), units, seen, unseen)
    loaded = {}
    for split in splits:
        having = present.get(split, set())
        missing = [language for language in languages if language not in having]
        if asked_for and split in parts:
            lacking = f"there is no {split} split in"
            _report_missing(name, lacking, missing, having, choice.by_name)
        if len(missing) < len(languages):
            table = examples(parts[split], labelling, columns.task, columns.label)
            loaded[split] = _chosen(table, languages, split, request.sampling.limit(split))
    decisive = ["train"] if purpose == "train" and "train" in loaded else list(loaded)
    read = set().union(*(present[split] for split in decisive))
    languages = tuple(language for language in languages if language in read)
    on_hub = not any(shard.paths for shard in shards)
    data = TaskData(
        name,
        columns.task,
        None if labelling is None else labelling.labels,
        loaded,
        languages,
        seen,
        unseen,
        {"hub_id" if on_hub else "path": name},
        whole_file=whole_file,
    )
    return _finish(data, shards, labelling, splits, purpose, request.sampling.train_fraction)


def _finish(
    data: TaskData,
    shards: Sequence[Shard],
    labelling: Labelling | None,
    splits: Sequence[str],
    purpose: str,
    train_fraction: float,
) -> TaskData:
    """Hold out a development set if there is none, and check that all splits are there."""
    loaded = dict(data.splits)
    lacks_validation = "validation" in splits and "validation" not in loaded
    if purpose == "train" and lacks_validation and "train" in loaded:
        loaded |= _hold_out(data.name, loaded["train"], labelling is not None)
    for split in splits:
        if split not in loaded:
            raise DataError(
                f"{data.name}: there is no {split} split in {listed(data.languages)}.\n"
                f"Splits found: {', '.join(loaded) or 'none'}."
            )
    if "train" in loaded and train_fraction < 1:
        chosen = stratified_rows(loaded["train"], train_fraction, labelling is not None)
        loaded["train"] = loaded["train"].select(chosen)
    reference = {
        "name": data.name,
        **data.reference,
        **describe_shards(shards),
        "languages": list(data.languages),
        "examples": {split: len(table) for split, table in loaded.items()},
    }
    scheme = None if labelling is None else labelling.scheme
    if scheme is not None:
        reference["tag_scheme"] = scheme
    if scheme not in (None, "IOB2"):
        logger.info(
            "%s: the tags are in the scheme %s, and are converted to IOB2", data.name, scheme
        )
    if labelling is not None and labelling.renamed:
        reference["label_map"] = dict(labelling.renamed)
    return replace(data, splits=loaded, reference=reference, tag_scheme=scheme)


def _hold_out(name: str, train: Dataset, labelled: bool) -> dict[str, Dataset]:
    """Split off a tenth of each language and label as validation, always the same examples."""
    rows = len(train)
    if rows < 2:
        raise DataError(
            f"{name}: with a single training example none can be held out for validation."
        )
    held = held_out_rows(train, _HELD_OUT, labelled)
    logger.info("%s has no validation split: %d of %d examples are held out", name, len(held), rows)
    rest = np.setdiff1d(np.arange(rows), held)
    return {"validation": train.select(held), "train": train.select(rest)}
