"""What is to be read: which data, how its files are written, which columns and languages, and how much."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from .registry import Task
from .streams import ENCODING, check_encoding

_SEPARATORS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";"}


@dataclass(frozen=True)
class Reading:
    """How text files are to be read.

    Attributes:
        separator: Between the fields of CSV and TSV; None for a comma, and in .tsv a tab, where no field
            is quoted.
    """

    separator: str | None = None
    encoding: str = ENCODING

    @classmethod
    def typed(cls, separator: str | None, encoding: str | None) -> Reading:
        """What --separator (a character, or tab, comma, semicolon) and --encoding say, each if given.

        Raises:
            UsageError: There is no such encoding.
        """
        if separator is not None:
            separator = _SEPARATORS.get(separator, separator)
        return cls(separator, check_encoding(encoding or ENCODING))


@dataclass(frozen=True, kw_only=True)
class ColumnChoice:
    """The columns of custom data and its task, as far as they are given; the others are inferred."""

    text: str | None = None
    label: str | None = None
    language: str | None = None
    task: Task | None = None


@dataclass(frozen=True, kw_only=True)
class LanguageChoice:
    """Languages by name, code or group, as --languages and its kin take them.

    Attributes:
        wanted: The languages to read; all if None.
        seen, unseen: The languages that count as such; the data set's lists if None.
    """

    wanted: tuple[str, ...] | None = None
    seen: tuple[str, ...] | None = None
    unseen: tuple[str, ...] | None = None

    @property
    def by_name(self) -> bool:
        """Whether a language is asked for by itself, so that it may not be left out if it is missing."""
        return not set(self.wanted or ()) <= {"all", "seen", "unseen"}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How much of the data to use.

    Attributes:
        train_fraction: Share of the training data, above 0, at most 1.
        max_samples: Examples of each language and split, at most.
        max_eval_samples: The same, for all splits but train.
    """

    train_fraction: float = 1.0
    max_samples: int | None = None
    max_eval_samples: int | None = None

    def limit(self, split: str) -> int | None:
        """Examples of each language that a split may have; None for all."""
        limits = [self.max_samples, self.max_eval_samples if split != "train" else None]
        return min((limit for limit in limits if limit is not None), default=None)


@dataclass(frozen=True, kw_only=True)
class DataRequest:
    """Which examples are to be read, and how.

    Attributes:
        data: The name of a named data set, a Hub id, or the path of a file or directory.
        data_dir: Where the files of a named data set are; None for the Hub.
        label_map: JSON file of new names for labels.
    """

    data: str
    data_dir: Path | None = None
    reading: Reading = field(default_factory=Reading)
    columns: ColumnChoice = field(default_factory=ColumnChoice)
    languages: LanguageChoice = field(default_factory=LanguageChoice)
    sampling: Sampling = field(default_factory=Sampling)
    label_map: Path | None = None
