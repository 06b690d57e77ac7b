"""The experiment `data`: sizes and languages of the data sets, next to the paper's Tables 1 and 10 to 12."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ..data.registry import NAMED, NamedData
from ..errors import DataError, KdshrinkError
from ..files import write_json, write_text
from .paper import read_paper
from .report import REPORT, RESULTS, as_csv, check_place
from .scales import ScaleName


@dataclass(frozen=True)
class LanguageCounts:
    """The size of one language of a data set.

    Attributes:
        train, validation, test: The number of examples; None if the split is not available.
    """

    data: str
    language: str
    code: str
    seen: bool
    train: int | None
    validation: int | None
    test: int | None


@dataclass(frozen=True)
class DatasetSize:
    """The size of a data set.

    Attributes:
        classes: The number of labels; of tags for token tasks.
        languages: The number of units with training data, which the paper counts.
        units: The number of all units.
        at_hand: The number of units that are available.
        train_rows: The mean number of training examples, over the languages that have any.
        paper: The paper's figures for it.
        not_run: Why it was not read.
    """

    data: str
    classes: int
    languages: int
    units: int
    at_hand: int
    train_rows: float | None
    paper: Mapping[str, Any] | None
    not_run: str | None


def count_examples(named: NamedData, directory: Path | None) -> dict[tuple[str, str], int]:
    """The number of examples by language and split.

    Raises:
        KdshrinkError: The data is not available.
    """
    from ..data.load import find_shards
    from ..data.request import DataRequest
    from ..data.shard import Columns
    from ..data.store import batches_of, read_table

    columns = Columns(named.text_column, None, None, named.task)
    return {
        (str(shard.language), shard.split): sum(
            batch.num_rows
            for table in shard.tables
            for batch in batches_of(read_table(table, columns))
        )
        for shard in find_shards(DataRequest(data=named.name, data_dir=directory))
    }


def _measure(
    named: NamedData, counts: Mapping[tuple[str, str], int], reason: str | None
) -> tuple[DatasetSize, list[LanguageCounts]]:
    units = [
        LanguageCounts(
            named.name,
            unit.name,
            unit.code,
            unit.name in named.seen,
            *(counts.get((unit.name, split)) for split in ("train", "validation", "test")),
        )
        for unit in named.units
    ]
    training = [unit.train for unit in units if unit.train is not None]
    of_paper = [one for one in read_paper()["data_sets"] if one["data"] == named.name]
    size = DatasetSize(
        named.name,
        len(named.labels),
        sum(unit.trains for unit in named.units),
        len(units),
        len({language for language, _ in counts}),
        fmean(training) if training else None,
        of_paper[0] if of_paper else None,
        reason,
    )
    return size, units


def _markdown(sizes: Sequence[DatasetSize], units: Sequence[LanguageCounts]) -> Iterator[str]:
    yield from ("# The data sets (the paper's Tables 1 and 10 to 12)", "")
    yield "- No training. In brackets the figures of the paper's Table 1."
    yield "- Which languages are seen and unseen is not in the paper: these lists are this project's own."
    yield from (f"- {one.data} was not read: {one.not_run}" for one in sizes if one.not_run)
    yield from (
        "",
        "|  | training rows per language | classes | languages trained on | sets | available |",
    )
    yield "| --- | --- | --- | --- | --- | --- |"
    for size in sizes:
        paper = size.paper or {}
        rows = "not read" if size.train_rows is None else f"{size.train_rows:,.1f}"
        cells = (
            rows + _in_brackets(paper.get("train_rows_a_language")),
            str(size.classes) + _in_brackets(paper.get("classes")),
            str(size.languages) + _in_brackets(paper.get("languages")),
            str(size.units),
            str(size.at_hand),
        )
        yield f"| {size.data} | {' | '.join(cells)} |"
    for size in sizes:
        yield from ("", f"## {size.data}", "")
        for name, seen in (("seen", True), ("unseen", False)):
            listed = [u.language for u in units if u.data == size.data and u.seen == seen]
            yield f"- {name}: {', '.join(listed)}"
        if of_paper := read_paper()["languages"].get(size.data):
            yield f"- the paper's languages: {', '.join(of_paper)}"
        yield from ("", "| language | train | validation | test |", "| --- | --- | --- | --- |")
        for unit in units:
            if unit.data == size.data:
                counts = (unit.train, unit.validation, unit.test)
                shown = " | ".join("–" if n is None else f"{n:,}" for n in counts)
                yield f"| {unit.language} | {shown} |"
    yield ""


def _in_brackets(figure: int | None) -> str:
    return "" if figure is None else f" ({figure:,})"


def report_data(
    place: Path, scale: ScaleName, wanted: Sequence[str] | None, directories: Mapping[str, Path]
) -> list[dict[str, Any]]:
    """Count the available examples, write report.md, results.csv and results.json, and return the rows.

    Args:
        wanted: Names of data sets; None for all of the scale.
        directories: The directories of data sets; the others are read from the Hub at scale full only.

    Raises:
        KdshrinkError: A data set that the user named is not available.
    """
    check_place(place, "data")
    names = wanted or tuple(name for name in NAMED if name != "sample" or scale == "sample")
    sizes: list[DatasetSize] = []
    units: list[LanguageCounts] = []
    for name in names:
        counts, reason = {}, None
        directory = directories.get(name)
        try:
            if scale != "full" and directory is None and name != "sample":
                raise DataError("no data at this scale (--data-dir)")
            counts = count_examples(NAMED[name], directory)
        except KdshrinkError as error:
            if wanted is not None:
                raise
            reason = str(error).splitlines()[0]
        size, those = _measure(NAMED[name], counts, reason)
        sizes.append(size)
        units += those
    place.mkdir(parents=True, exist_ok=True)
    rows = [asdict(size) for size in sizes]
    languages = [asdict(unit) for unit in units]
    content = {"experiment": "data", "rows": rows, "languages": languages}
    write_text(place / REPORT, "\n".join(_markdown(sizes, units)))
    write_text(place / "results.csv", as_csv(languages))
    write_json(place / RESULTS, content)
    return rows
