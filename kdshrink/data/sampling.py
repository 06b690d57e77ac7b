"""Samples examples of a table: a number per language, or a stratified share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from zlib import crc32

import numpy as np
from datasets import Dataset


def language_codes(table: Dataset) -> tuple[np.ndarray, list[str]]:
    """(n,) each example's language as an index (int32), and the languages in order of first use."""
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
    """Rows of these languages, language by language, with a limited number of each.

    The sample does not depend on --seed.
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
        chosen.append(rows if most is None else _some_of(rows, most, f"{language}/{split}"))
    return np.concatenate(chosen) if chosen else np.zeros(0, np.int64)


def sample_rows(table: Dataset, per_language: int, purpose: str) -> np.ndarray:
    """Rows of at most `per_language` examples of each language, ascending; independent of --seed.

    Args:
        purpose: The use of the sample; each purpose has its own sample.
    """
    codes, languages = language_codes(table)
    chosen = [
        _some_of(np.flatnonzero(codes == code), per_language, f"{language}/{purpose}")
        for code, language in enumerate(languages)
    ]
    return np.sort(np.concatenate(chosen))


def _some_of(rows: np.ndarray, most: int, name: str) -> np.ndarray:
    """At most `most` of the rows, in their order, drawn with `name` as the seed."""
    if len(rows) <= most:
        return rows
    rng = np.random.default_rng(crc32(name.encode()))
    return rows[np.sort(rng.permutation(len(rows))[:most])]


def stratified_rows(table: Dataset, fraction: float, labelled: bool) -> np.ndarray:
    """Sample a share of the table, stratified by language and label with the largest remainder method.

    For token tasks the label of a sentence is the set of its tags. Every label of a language keeps at
    least one example.

    Returns:
        Rows, ascending; independent of --seed.
    """
    chosen: list[int] = []
    for language, groups in _strata(table, labelled).items():
        exact = [len(rows) * fraction for rows in groups]
        counts = [max(1, count) for count in _largest_remainder(exact, round(sum(exact)))]
        chosen += _draw(language, groups, counts)
    return np.sort(np.asarray(chosen, dtype=np.int64))


def held_out_rows(table: Dataset, fraction: float, labelled: bool) -> np.ndarray:
    """Like `stratified_rows`, but exactly that share (at least one row), so rare labels may get none."""
    strata = _strata(table, labelled)
    exact = [sum(map(len, groups)) * fraction for groups in strata.values()]
    totals = _largest_remainder(exact, max(1, round(sum(exact))))
    chosen: list[int] = []
    for (language, groups), total in zip(strata.items(), totals, strict=True):
        counts = _largest_remainder([len(rows) * fraction for rows in groups], total)
        chosen += _draw(language, groups, counts)
    return np.sort(np.asarray(chosen, dtype=np.int64))


def _strata(table: Dataset, labelled: bool) -> dict[str, list[list[int]]]:
    """Rows by language, grouped by label."""
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
    """Round numbers to integers that sum to the total."""
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
