"""A request for data: which data, the format of its files, columns, languages and sampling."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from .registry import Task
from .streams import ENCODING, check_encoding

_SEPARATORS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";"}


@dataclass(frozen=True)
class Reading:
    """The format of text files.

    Attributes:
        separator: Separator of the fields of CSV and TSV; None for a comma, and in .tsv a tab without
            quoting.
    """

    separator: str | None = None
    encoding: str = ENCODING

    @classmethod
    def typed(cls, separator: str | None, encoding: str | None) -> Reading:
        """The format by --separator (a character, or tab, comma, semicolon) and --encoding, if given.

        Raises:
            UsageError: The encoding is unknown.
        """
        if separator is not None:
            separator = _SEPARATORS.get(separator, separator)
        return cls(separator, check_encoding(encoding or ENCODING))


@dataclass(frozen=True, kw_only=True)
class ColumnChoice:
    """The columns of custom data and its task; None is inferred."""

    text: str | None = None
    label: str | None = None
    language: str | None = None
    task: Task | None = None


@dataclass(frozen=True, kw_only=True)
class LanguageChoice:
    """Languages by name, code or group, as in --languages.

    Attributes:
        wanted: The languages to read; None for all.
        seen, unseen: The languages that count as seen and unseen; None for the data set's lists.
    """

    wanted: tuple[str, ...] | None = None
    seen: tuple[str, ...] | None = None
    unseen: tuple[str, ...] | None = None

    @property
    def by_name(self) -> bool:
        """Whether a single language is named, rather than a group, so that it may not be left out."""
        return not set(self.wanted or ()) <= {"all", "seen", "unseen"}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How much of the data to use.

    Attributes:
        train_fraction: Share of the training data, above 0 and at most 1.
        max_samples: The largest number of examples of each language and split.
        max_eval_samples: Like `max_samples`, for all splits but train.
    """

    train_fraction: float = 1.0
    max_samples: int | None = None
    max_eval_samples: int | None = None

    def limit(self, split: str) -> int | None:
        """The largest number of examples per language in a split; None for all."""
        limits = [self.max_samples, self.max_eval_samples if split != "train" else None]
        return min((limit for limit in limits if limit is not None), default=None)


@dataclass(frozen=True, kw_only=True)
class DataRequest:
    """Which examples to read, and how.

    Attributes:
        data: The name of a named data set, a Hub id, or the path of a file or directory.
        option: The option that names it, for messages.
        data_dir: The directory of a named data set's files; None for the Hub.
        label_map: JSON file of new label names.
    """

    data: str
    option: str = "--data"
    data_dir: Path | None = None
    reading: Reading = field(default_factory=Reading)
    columns: ColumnChoice = field(default_factory=ColumnChoice)
    languages: LanguageChoice = field(default_factory=LanguageChoice)
    sampling: Sampling = field(default_factory=Sampling)
    label_map: Path | None = None
