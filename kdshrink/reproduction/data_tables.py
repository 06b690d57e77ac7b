"""The experiment `data`: what the data sets hold, beside the paper's tables 1 and 10 to 12."""

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
    """A language of a data set.

    Attributes:
        train, validation, test: Its examples; None where it is not at hand.
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
    """A data set as a whole.

    Attributes:
        classes: Its labels; of tokens, tags.
        languages: Its units with training data, which is what the paper counts.
        units: All its units.
        at_hand: Units of which there is something.
        train_rows: Training examples a language, the mean over those that have some.
        paper: The paper's figures of it.
        not_run: Why nothing of it was read.
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
    """Examples by language and split.

    Raises:
        KdshrinkError: The data is not there.
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
    yield "- Which languages are seen and unseen is not in the paper: these lists are the tool's own."
    yield from (f"- {one.data} was not read: {one.not_run}" for one in sizes if one.not_run)
    yield from (
        "",
        "|  | training rows a language | classes | languages trained on | sets in all | at hand |",
    )
    yield "| --- | --- | --- | --- | --- | --- |"
    for size in sizes:
        paper = size.paper or {}
        rows = "not read" if size.train_rows is None else f"{size.train_rows:,.1f}"
        cells = (
            rows + _beside(paper.get("train_rows_a_language")),
            str(size.classes) + _beside(paper.get("classes")),
            str(size.languages) + _beside(paper.get("languages")),
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


def _beside(figure: int | None) -> str:
    return "" if figure is None else f" ({figure:,})"


def report_data(
    place: Path, scale: ScaleName, wanted: Sequence[str] | None, directories: Mapping[str, Path]
) -> list[dict[str, Any]]:
    """Count what there is and write report.md, results.csv and results.json; the sizes.

    Args:
        wanted: Names of data sets; None for all of the scale.
        directories: Where data sets are read from; the others come from the Hub at scale full alone.

    Raises:
        KdshrinkError: A data set that the user named is not there.
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
