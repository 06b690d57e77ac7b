"""Which examples of a table are used: a number for each language, or a stratified share."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any
from zlib import crc32

import numpy as np
from datasets import Dataset, concatenate_datasets

from ..config import DataOptions

logger = logging.getLogger(__name__)


def sample_languages(parts: Sequence[Dataset], split: str, config: DataOptions) -> Dataset:
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
