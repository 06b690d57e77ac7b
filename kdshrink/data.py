"""Examples ready for a model: chosen, sampled, labelled by name, tokenised and batched.

Everything stays in Arrow's memory maps; what is held per example is an index and a length.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from zlib import crc32

import numpy as np
import pyarrow as pa
import torch
from datasets import ClassLabel, Dataset, Features, List, Value, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from .config import DataOptions
from .errors import DataError
from .languages import NAMED, NamedData, Task, Unit, select_languages
from .reading import SPLITS, UNDETERMINED, Shard, describe_shards, find_shards

logger = logging.getLogger(__name__)

IGNORED = -100
"""The label of a position that has none, as PyTorch's cross-entropy expects it."""

_TEXT_COLUMNS = ("text", "utt", "sentence", "tokens", "words")
_LABEL_COLUMNS = ("label", "labels", "intent", "ner_tags", "tags")
_LANGUAGE_COLUMNS = ("language", "lang", "locale")
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


@dataclass(frozen=True)
class _Columns:
    text: str
    label: str | None
    language: str | None
    task: Task


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

    columns = _Columns(named.text_column, named.label_column, None, named.task)
    other = "O" if named.task == "token" else None
    loaded = {}
    chosen = [shard for shard in shards if shard.split in splits and shard.language in languages]
    for split in splits:
        parts = [
            _normalise(shard.load(), shard, columns, named.labels, other)
            for shard in chosen
            if shard.split == split
        ]
        if parts:
            loaded[split] = _sample_languages(parts, split, config)
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
    columns = _find_columns(config, tables[0], labels_required)
    labels = _label_union(tables, shards, columns.label) if columns.label else None
    wholes: dict[str, list[Dataset]] = {}
    for shard, table in zip(shards, tables, strict=True):
        normal = _normalise(table, shard, columns, labels, None)
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
            loaded[split] = _sample_languages(parts, split, config)
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


def _find_columns(config: DataOptions, table: Dataset, labels_required: bool) -> _Columns:
    """The columns of own data: those that flags name, else those of a usual name."""

    def find(flag: str, said: str | None, usual: Sequence[str]) -> str | None:
        if said is not None and said not in table.column_names:
            raise DataError(
                f"{flag} {said}: {config.data} has no such column.\n"
                f"It has: {', '.join(table.column_names)}."
            )
        return said or next((name for name in usual if name in table.column_names), None)

    text = find("--text-column", config.text_column, _TEXT_COLUMNS)
    label = find("--label-column", config.label_column, _LABEL_COLUMNS)
    language = find("--language-column", config.language_column, _LANGUAGE_COLUMNS)
    for flag, found, needed in (
        ("--text-column", text, True),
        ("--label-column", label, labels_required),
    ):
        if needed and found is None:
            raise DataError(
                f"{config.data}: none of its columns has a usual name for this.\n"
                f"It has: {', '.join(table.column_names)}. Say which with {flag}."
            )
    assert text is not None
    words = isinstance(table.features[text], (List, list))
    task: Task = "token" if words else "sequence"
    if config.task is not None and config.task != task:
        kind = "lists of words" if words else "plain text"
        raise DataError(
            f"--task {config.task}: the column {text!r} of {config.data} holds {kind}.\n"
            "Token classification needs lists of words and of tags, sequence classification text."
        )
    return _Columns(text, label, language, task)


def _class_names(table: Dataset, column: str) -> list[str] | None:
    """Names of a column's classes where its type knows them."""
    feature = table.features[column]
    feature = getattr(feature, "feature", feature)
    return list(feature.names) if isinstance(feature, ClassLabel) else None


def _label_union(
    tables: Sequence[Dataset], shards: Sequence[Shard], column: str
) -> tuple[str, ...]:
    """All label names of own data: in the order of its classes if it has them, else sorted."""
    found: set[Any] = set()
    for table, shard in zip(tables, shards, strict=True):
        if column not in table.column_names:
            raise DataError(f"{shard.origin} has no column {column!r}, which other splits have.")
        if names := _class_names(table, column):
            return tuple(names)
        for batch in table.select_columns([column]).with_format("arrow").iter(10_000):
            values = batch[column]
            while pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
                values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
                values = values.flatten()
            found.update(values.unique().to_pylist())
    if None in found:
        raise DataError(f"Column {column!r} has examples without a label.\nRemove or label them.")
    numbers = all(isinstance(value, int) for value in found)
    return tuple(str(value) for value in sorted(found, key=None if numbers else str))


def _normalise(
    table: Dataset,
    shard: Shard,
    columns: _Columns,
    labels: tuple[str, ...] | None,
    other: str | None,
) -> Dataset:
    """The table with the columns text, label and language, labels as indices into `labels`."""
    for column in (columns.text, columns.label):
        if column is not None and column not in table.column_names:
            raise DataError(
                f"{shard.origin}: there is no column {column!r}.\nIt has: {', '.join(table.column_names)}."
            )
    token = columns.task == "token"
    text_type, label_type = Value("string"), Value("int32")
    features = {
        "text": List(text_type) if token else text_type,
        "language": Value("string"),
    }
    if columns.label:
        features["label"] = List(label_type) if token else label_type
    return table.map(
        _normalise_batch,
        batched=True,
        remove_columns=table.column_names,
        features=Features(features),
        fn_kwargs={
            "columns": columns,
            "language": shard.language,
            "index": {name: i for i, name in enumerate(labels or ())},
            "class_names": _class_names(table, columns.label) if columns.label else None,
            "other": other,
            "origin": shard.origin,
        },
    )


def _normalise_batch(
    batch: dict[str, list[Any]],
    columns: _Columns,
    language: str | None,
    index: dict[str, int],
    class_names: list[str] | None,
    other: str | None,
    origin: str,
) -> dict[str, list[Any]]:
    def label_index(value: Any) -> int:
        if class_names is not None and isinstance(value, int):
            value = class_names[value]
        name = str(value)
        if name in index:
            return index[name]
        if isinstance(value, int) and 0 <= value < len(index):
            return value
        if other is not None and value is not None:
            return index[other]
        raise DataError(
            f"{origin}: an example has the label {value!r}, which this data set does not have.\n"
            f"Its labels: {', '.join(index)}."
        )

    texts = batch[columns.text]
    if any(text is None for text in texts):
        raise DataError(f"{origin}: column {columns.text!r} has examples without text.")
    token = columns.task == "token"
    if language is not None:
        languages = [language] * len(texts)
    elif columns.language is not None:
        languages = [
            UNDETERMINED if name is None else str(name) for name in batch[columns.language]
        ]
    else:
        languages = [UNDETERMINED] * len(texts)
    normal = {"text": texts if token else [str(text) for text in texts], "language": languages}
    if columns.label is None:
        return normal
    values = batch[columns.label]
    if token:
        for words, tags in zip(texts, values, strict=True):
            if tags is None or len(words) != len(tags):
                raise DataError(
                    f"{origin}: a sentence has {len(words)} words and {len(tags or ())} tags.\n"
                    f"It begins: {' '.join(words[:8])}"
                )
        normal["label"] = [[label_index(tag) for tag in tags] for tags in values]
    else:
        normal["label"] = [label_index(value) for value in values]
    return normal


def _sample_languages(parts: Sequence[Dataset], split: str, config: DataOptions) -> Dataset:
    """The parts, each cut to --max-samples rows that do not depend on --seed, joined."""
    limits = [config.max_samples, config.max_eval_samples if split != "train" else None]
    most = min((limit for limit in limits if limit is not None), default=None)
    chosen = []
    for part in parts:
        if most is not None and len(part) > most:
            language = part[0]["language"]
            rng = np.random.default_rng(crc32(f"{language}/{split}".encode()))
            part = part.select(np.sort(rng.permutation(len(part))[:most]))
        chosen.append(part)
    return concatenate_datasets(chosen)


def language_codes(table: Dataset) -> tuple[np.ndarray, list[str]]:
    """Each example's language as an index (int32) into the names that follow, in order of first use."""
    names: dict[str, int] = {}
    codes = [
        np.fromiter((names.setdefault(name, len(names)) for name in batch["language"]), np.int32)
        for batch in table.select_columns(["language"]).iter(10_000)
    ]
    return np.concatenate(codes) if codes else np.zeros(0, np.int32), list(names)


def stratified_rows(table: Dataset, fraction: float, labelled: bool) -> np.ndarray:
    """Rows of a share of the table, by largest remainder within each language and label.

    For token tasks the label of a sentence is the set of its entity tags. Every label of a language
    keeps at least one example.

    Returns:
        Row numbers, ascending. The same for the same table and fraction, whatever the seed.
    """
    columns = ["language", *(["label"] if labelled else [])]
    strata: dict[tuple[Any, ...], list[int]] = {}
    row = 0
    for batch in table.select_columns(columns).iter(10_000):
        labels = batch.get("label", [0] * len(batch["language"]))
        for language, label in zip(batch["language"], labels, strict=True):
            kind = tuple(sorted(set(label))) if isinstance(label, list) else label
            strata.setdefault((language, kind), []).append(row)
            row += 1
    chosen: list[int] = []
    for language in dict.fromkeys(key[0] for key in strata):
        groups = [rows for key, rows in strata.items() if key[0] == language]
        exact = [len(rows) * fraction for rows in groups]
        counts = [int(quota) for quota in exact]
        spare = round(sum(exact)) - sum(counts)
        by_remainder = sorted(range(len(groups)), key=lambda i: counts[i] - exact[i])
        for i in by_remainder[:spare]:
            counts[i] += 1
        rng = np.random.default_rng(crc32(str(language).encode()))
        for rows, count in zip(groups, counts, strict=True):
            chosen.extend(rng.permutation(rows)[: max(1, count)].tolist())
    return np.sort(np.asarray(chosen))


def match_labels(labels: Sequence[str], model_labels: Sequence[str]) -> list[int]:
    """For each label of the data the model's id of the same name.

    Raises:
        DataError: The model does not know a label of the data.
    """
    ids = {name: i for i, name in enumerate(model_labels)}
    unknown = [name for name in labels if name not in ids]
    if unknown:
        raise DataError(
            f"The model does not know these labels of the data: {', '.join(unknown)}.\n"
            f"The model's: {', '.join(model_labels)}.\nThe data's: {', '.join(labels)}."
        )
    return [ids[name] for name in labels]


def encode(
    table: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    task: Task,
    max_length: int,
    label_ids: Sequence[int] | None,
) -> Dataset:
    """Tokenise a table of `TaskData`.

    Args:
        label_ids: For each label of the data the model's id (`match_labels`); None for no labels.

    Returns:
        A table with `input_ids`, `length` and, with labels, `labels`: the example's id, or for token
        tasks an id at each word's first piece and -100 elsewhere. Token tasks add `positions`: for
        each word the index of its first piece, or -1 where it was cut off.
    """
    features = {"input_ids": List(Value("int32")), "length": Value("int32")}
    if task == "token":
        features["positions"] = List(Value("int32"))
    if label_ids is not None:
        features["labels"] = List(Value("int32")) if task == "token" else Value("int32")
    return table.map(
        _encode_batch,
        batched=True,
        remove_columns=table.column_names,
        features=Features(features),
        fn_kwargs={
            "tokenizer": tokenizer,
            "task": task,
            "max_length": max_length,
            "label_ids": None if label_ids is None else list(label_ids),
        },
    )


def _encode_batch(
    batch: dict[str, list[Any]],
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    max_length: int,
    label_ids: list[int] | None,
) -> dict[str, list[Any]]:
    split = task == "token"
    encoded = tokenizer(
        batch["text"], truncation=True, max_length=max_length, is_split_into_words=split
    )
    ids = encoded["input_ids"]
    result: dict[str, list[Any]] = {"input_ids": ids, "length": [len(one) for one in ids]}
    if split:
        result["positions"] = [
            first_pieces(encoded.word_ids(i), len(words)) for i, words in enumerate(batch["text"])
        ]
    if label_ids is not None and split:
        result["labels"] = [
            _labels_at(positions, [label_ids[tag] for tag in tags], len(one))
            for positions, tags, one in zip(result["positions"], batch["label"], ids, strict=True)
        ]
    elif label_ids is not None:
        result["labels"] = [label_ids[label] for label in batch["label"]]
    return result


def first_pieces(word_ids: Sequence[int | None], words: int) -> list[int]:
    """For each word the index of its first piece, or -1 where it has none (cut off)."""
    positions = [-1] * words
    for index, word in enumerate(word_ids):
        if word is not None and positions[word] < 0:
            positions[word] = index
    return positions


def token_counts(encoded: Dataset) -> np.ndarray:
    """(n,) tokens of each encoded example, int32."""
    lengths = encoded.select_columns(["length"]).with_format("arrow")[:]["length"]
    return lengths.to_numpy().astype(np.int32)


def _labels_at(positions: Sequence[int], labels: Sequence[int], length: int) -> list[int]:
    spread = [IGNORED] * length
    for position, label in zip(positions, labels, strict=True):
        if position >= 0:
            spread[position] = label
    return spread


@dataclass(frozen=True)
class Collator:
    """Pads encoded examples to the longest of them, or to the next of the buckets.

    Returns int64 tensors: `input_ids` and `attention_mask` (B, T), and `labels`, (B) or (B, T),
    where the examples have them.

    Attributes:
        compact_ids: For each id of the tokenizer's the one that the model knows, where its embedding
            table was compacted; the padding's is the same.
        buckets: Lengths to pad to, ascending; longer examples are padded to the longest of them.
    """

    pad_token_id: int
    compact_ids: torch.Tensor | None = None
    buckets: tuple[int, ...] = ()

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        lengths = [len(example["input_ids"]) for example in examples]
        longest = max(lengths)
        width = next((bucket for bucket in self.buckets if bucket >= longest), longest)
        shape = (len(examples), width)
        ids = torch.full(shape, self.pad_token_id)
        mask = torch.zeros(shape, dtype=torch.int64)
        for row, (example, length) in enumerate(zip(examples, lengths, strict=True)):
            ids[row, :length] = torch.as_tensor(example["input_ids"])
            mask[row, :length] = 1
        if self.compact_ids is not None:
            ids = self.compact_ids[ids]
        batch = {"input_ids": ids, "attention_mask": mask}
        if "labels" not in examples[0]:
            return batch
        if isinstance(examples[0]["labels"], int):
            batch["labels"] = torch.tensor([example["labels"] for example in examples])
        else:
            labels = torch.full(shape, IGNORED)
            for row, (example, length) in enumerate(zip(examples, lengths, strict=True)):
                labels[row, :length] = torch.as_tensor(example["labels"])
            batch["labels"] = labels
        return batch
