"""Data in local files and directories."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from datasets import Dataset, Features, List, Value, load_dataset
from datasets.exceptions import DatasetGenerationError

from ..errors import DataError
from .registry import NamedData
from .shard import SPLIT_NAMES, SPLITS, Shard

logger = logging.getLogger(__name__)
FORMATS = ("jsonl", "json", "csv", "tsv", "parquet", "iob2", "conll", "txt")


def _split_file(folder: Path, split: str) -> Path | None:
    for stem in SPLIT_NAMES[split]:
        for ending in FORMATS:
            if (path := folder / f"{stem}.{ending}").is_file():
                return path
    return None


def directory_shards(folder: Path, named: NamedData | None) -> list[Shard]:
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
            f"ending one of {', '.join(FORMATS)}."
        )
    return shards


def read_file(path: Path) -> Dataset:
    """Read a file of examples into an Arrow table on disk, by its ending.

    .jsonl, .json, .csv, .tsv and .parquet keep their columns; .txt gives `text`, a line an example;
    .iob2 and .conll give `tokens` and `ner_tags`.

    Raises:
        DataError: The file cannot be read, or is empty.
    """
    ending = path.suffix.lstrip(".").lower()
    if ending not in FORMATS:
        raise DataError(f"{path}: files of this kind are not read. Endings: {', '.join(FORMATS)}.")
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
