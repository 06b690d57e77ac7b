"""Which examples of a table are used: a number for each language, or a stratified share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from zlib import crc32

import numpy as np
from datasets import Dataset


def language_codes(table: Dataset) -> tuple[np.ndarray, list[str]]:
    """Each example's language as an index (int32) into the names that follow, in order of first use."""
    names: dict[str, int] = {}
    codes = []
    for batch in table.select_columns(["language"]).with_format("arrow").iter(10_000):
        encoded = batch.column("language").combine_chunks().dictionary_encode()
        new = [names.setdefault(name, len(names)) for name in encoded.dictionary.to_pylist()]
        codes.append(np.asarray(new, np.int32)[encoded.indices.to_numpy()])
    return np.concatenate(codes) if codes else np.zeros(0, np.int32), list(names)


def choose_rows(
    table: Dataset, languages: Sequence[str], split: str, most: int | None
) -> np.ndarray:
    """Rows of these languages, one after another, at most so many of each.

    Which rows are kept does not depend on --seed.
    """
    codes, names = language_codes(table)
    in_order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[in_order], np.arange(len(names) + 1))
    place = {name: code for code, name in enumerate(names)}
    chosen = []
    for language in languages:
        if language not in place:
            continue
        rows = in_order[bounds[place[language]] : bounds[place[language] + 1]]
        if most is not None and len(rows) > most:
            rng = np.random.default_rng(crc32(f"{language}/{split}".encode()))
            rows = rows[np.sort(rng.permutation(len(rows))[:most])]
        chosen.append(rows)
    return np.concatenate(chosen) if chosen else np.zeros(0, np.int64)


def stratified_rows(table: Dataset, fraction: float, labelled: bool) -> np.ndarray:
    """Rows of a share of the table, by largest remainder within each language and label.

    For token tasks the label of a sentence is the set of its tags. Every label of a language keeps at
    least one example.

    Returns:
        Row numbers, ascending. The same for the same table and fraction, whatever the seed.
    """
    chosen: list[int] = []
    for language, groups in _strata(table, labelled).items():
        exact = [len(rows) * fraction for rows in groups]
        counts = [max(1, count) for count in _largest_remainder(exact, round(sum(exact)))]
        chosen += _draw(language, groups, counts)
    return np.sort(np.asarray(chosen, dtype=np.int64))


def held_out_rows(table: Dataset, fraction: float, labelled: bool) -> np.ndarray:
    """As `stratified_rows`, but so many rows in all, at least one, and of a rare label perhaps none."""
    strata = _strata(table, labelled)
    exact = [sum(map(len, groups)) * fraction for groups in strata.values()]
    totals = _largest_remainder(exact, max(1, round(sum(exact))))
    chosen: list[int] = []
    for (language, groups), total in zip(strata.items(), totals, strict=True):
        counts = _largest_remainder([len(rows) * fraction for rows in groups], total)
        chosen += _draw(language, groups, counts)
    return np.sort(np.asarray(chosen, dtype=np.int64))


def _strata(table: Dataset, labelled: bool) -> dict[str, list[list[int]]]:
    """Rows by language, and in it by label."""
    columns = ["language", *(["label"] if labelled else [])]
    strata: dict[str, dict[Any, list[int]]] = {}
    row = 0
    for batch in table.select_columns(columns).iter(10_000):
        labels = batch.get("label", [0] * len(batch["language"]))
        for language, label in zip(batch["language"], labels, strict=True):
            kind = tuple(sorted(set(label))) if isinstance(label, list) else label
            strata.setdefault(language, {}).setdefault(kind, []).append(row)
            row += 1
    return {language: list(kinds.values()) for language, kinds in strata.items()}


def _largest_remainder(exact: Sequence[float], total: int) -> list[int]:
    """Whole numbers near these, which add up to the total."""
    counts = [int(quota) for quota in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: max(0, total - sum(counts))]:
        counts[i] += 1
    return counts


def _draw(language: str, groups: Sequence[list[int]], counts: Sequence[int]) -> list[int]:
    rng = np.random.default_rng(crc32(language.encode()))
    return [
        row
        for rows, count in zip(groups, counts, strict=True)
        for row in rng.permutation(rows)[:count].tolist()
    ]
