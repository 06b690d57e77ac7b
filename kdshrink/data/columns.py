"""Finds the columns of the text, the label and the language: by options, or by usual names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from ..errors import DataError, UnlabelledError, listed
from .registry import Task
from .request import ColumnChoice
from .shard import Columns, Kind, Table

Labels = Literal["required", "optional", "unused"]
"""Whether a command requires labels, uses them if there are any, or does not read them."""
_TEXT_COLUMNS = ("text", "utt", "sentence", "tokens", "words")
_LABEL_COLUMNS = ("label", "labels", "intent", "ner_tags", "tags")
_LANGUAGE_COLUMNS = ("language", "lang", "locale")
_KINDS: Mapping[Kind, str] = {"text": "plain text", "list": "lists of words", "other": "objects"}


def joint_kinds(tables: Sequence[Table]) -> dict[str, Kind]:
    """The columns of all tables, each with its kind in the first table that has it."""
    kinds: dict[str, Kind] = {}
    for table in tables:
        for name, kind in table.columns().items():
            kinds.setdefault(name, kind)
    return kinds


def find_columns(
    data: str, kinds: Mapping[str, Kind], choice: ColumnChoice, labels: Labels
) -> Columns:
    """The columns of custom data: those that options name, else those with a usual name.

    Args:
        data: The name of the data in messages.
        kinds: Its columns.

    Raises:
        DataError: A column is missing or of an unsupported kind, or text and labels do not fit together.
    """

    def find(flag: str, said: str | None, usual: Sequence[str]) -> str | None:
        if said is not None and said not in kinds:
            raise DataError(f"{flag} {said}: {data} has no such column.\nIt has: {listed(kinds)}.")
        return said or next((name for name in usual if name in kinds), None)

    label = None
    if labels != "unused":
        label = find("--label-column", choice.label, _LABEL_COLUMNS)
    usual: Sequence[str] = _TEXT_COLUMNS
    if label is not None and kinds[label] == "list":  # beside a list of tags, a list of words
        usual = sorted(usual, key=lambda name: kinds.get(name) != "list")
    text = find("--text-column", choice.text, usual)
    language = find("--language-column", choice.language, _LANGUAGE_COLUMNS)
    if text is None:
        raise _not_found(data, kinds, "text", "--text-column")
    if label is None and labels == "required":
        raise _not_found(data, kinds, "labels", "--label-column")
    for name in filter(None, (text, label)):
        if kinds[name] == "other":
            raise DataError(
                f"{data}: the column {name!r} holds objects, binary data or the like.\n"
                "Give text, numbers, classes, or lists of them; from pandas, write them with "
                "to_json(orient='records', lines=True)."
            )
    task: Task = "token" if kinds[text] == "list" else "sequence"
    if choice.task is not None and choice.task != task:
        raise DataError(
            f"--task {choice.task}: the column {text!r} of {data} holds {_KINDS[kinds[text]]}.\n"
            "Token classification needs lists of words and of tags, sequence classification text."
        )
    if label is not None and kinds[label] != kinds[text]:
        raise DataError(
            f"{data}: the column {text!r} holds {_KINDS[kinds[text]]}, and the labels' column "
            f"{label!r} {'lists' if kinds[label] == 'list' else 'single values'}.\n"
            "Name two that fit together with --text-column and --label-column; several labels per "
            "text are not supported."
        )
    return Columns(text, label, language, task)


def _not_found(data: str, kinds: Mapping[str, Kind], what: str, flag: str) -> DataError:
    error = UnlabelledError if what == "labels" else DataError
    if what == "labels" and set(kinds) == {"text"}:
        return error(f"{data}: it has text but no labels.")
    return error(
        f"{data}: no column has a usual name for {what}.\n"
        f"It has: {listed(kinds)}. Name one with {flag}.{_separator_hint(kinds)}"
    )


def _separator_hint(kinds: Mapping[str, Kind]) -> str:
    """Advice for a header of one name that contains another separator."""
    only = next(iter(kinds)) if len(kinds) == 1 else ""
    found = next((sign for sign in (";", "\t", "|", ",") if sign in only), None)
    return f"\nIf its fields are separated by {found!r}, give --separator." if found else ""


def columns_of(table: Table, columns: Columns) -> Columns:
    """Those of the columns that a table has: it may lack labels and languages, but not the text.

    Raises:
        DataError: It lacks the text, or has a column of another kind.
    """
    kinds = table.columns()
    if columns.text not in kinds:
        raise DataError(
            f"{table.origin}: there is no column {columns.text!r}.\nIt has: {listed(kinds)}."
            f"{_separator_hint(kinds)}"
        )
    expected: Kind = "list" if columns.task == "token" else "text"
    for name in (columns.text, columns.label):
        if name in kinds and kinds[name] != expected:
            raise DataError(
                f"{table.origin}: the column {name!r} holds {_KINDS[kinds[name]]}, and "
                f"{_KINDS[expected]} in other files.\nUse one form in all files."
            )
    return Columns(
        columns.text,
        columns.label if columns.label in kinds else None,
        columns.language if columns.language in kinds else None,
        columns.task,
    )
