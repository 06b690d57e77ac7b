"""The data that a command reads, from its options."""

from __future__ import annotations

from ..config.fields import kebab
from ..config.groups import DataOptions
from ..data.load import TaskData
from ..data.request import ColumnChoice, DataRequest, LanguageChoice, Reading, Sampling
from ..errors import DataError


def data_request(
    options: DataOptions, *, name: str = "data", languages: tuple[str, ...] | None = None
) -> DataRequest:
    """The data that a command's options ask for.

    Args:
        name: The field that names the data.
        languages: Used in place of the options' own, if given.

    Raises:
        UsageError: The encoding is unknown.
    """
    return DataRequest(
        data=str(getattr(options, name)),
        option=f"--{kebab(name)}",
        data_dir=options.data_dir,
        reading=Reading.typed(options.separator, options.encoding),
        columns=ColumnChoice(
            text=options.text_column,
            label=options.label_column,
            language=options.language_column,
            task=options.task,
        ),
        languages=LanguageChoice(
            wanted=options.languages if languages is None else languages,
            seen=options.seen_languages,
            unseen=options.unseen_languages,
        ),
        sampling=Sampling(
            train_fraction=options.train_fraction,
            max_samples=options.max_samples,
            max_eval_samples=options.max_eval_samples,
        ),
        label_map=options.label_map,
    )


def check_split(split: str | None, data: TaskData) -> None:
    """Raise DataError where --split is given for a single file."""
    if data.whole_file and split is not None:
        raise DataError(
            f"--split {split}: {data.name} is a single file, which has no splits.\n"
            "Leave --split out to score all of it, or give a directory of train, validation and test."
        )
