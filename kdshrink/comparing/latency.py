"""How long models take for one text and for a batch, measured in turns."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..data.registry import Task
from ..exporting.runtime import Runnable
from ..progress import Progress, silent

BATCH = 32
_SINGLES, _BATCHES = 200, 30
_TURN, _WARM_UP = 10, 3
_PARALLEL = "TOKENIZERS_PARALLELISM"

Text = str | Sequence[str]


@dataclass(frozen=True)
class Latency:
    """The time from texts to labels, in milliseconds.

    Attributes:
        tokenizing: The median of what tokenising took of it.
        times_as_fast: The median over the calls of the baseline's time over this model's.
    """

    median: float
    p95: float
    tokenizing: float
    times_as_fast: float

    def to_dict(self) -> dict[str, float]:
        return {
            "median_ms": self.median,
            "p95_ms": self.p95,
            "tokenizing_ms": self.tokenizing,
            "times_as_fast": self.times_as_fast,
        }


@dataclass(frozen=True)
class Speed:
    """How fast a model is.

    Attributes:
        one, batch: For one text, and for `BATCH` texts in one padded batch.
        texts_per_second: In those batches.
    """

    one: Latency
    batch: Latency
    texts_per_second: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "latency": {"one_text": self.one.to_dict(), f"batch_of_{BATCH}": self.batch.to_dict()},
            "texts_per_second": self.texts_per_second,
        }


@dataclass(frozen=True)
class Classify:
    """A model with its tokenizer, called as who ships it would: texts in, labels out.

    Attributes:
        longest: Tokens that a text is truncated to.
    """

    loaded: Runnable
    task: Task
    longest: int
    device: torch.device

    @torch.inference_mode()
    def seconds(self, texts: Sequence[Text]) -> tuple[float, float]:
        """The seconds of one call: of tokenising, and of all."""
        began = time.perf_counter()
        batch = self.loaded.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.longest,
            is_split_into_words=self.task == "token",
            return_tensors="pt",
            return_token_type_ids=False,
        )
        tokenised = time.perf_counter()
        inputs = {name: tensor.to(self.device) for name, tensor in batch.items()}
        self.loaded.model(**inputs).logits.argmax(-1).tolist()  # which waits for a GPU
        return tokenised - began, time.perf_counter() - began


def draw_texts(texts: Sequence[Text], seed: int) -> list[list[Text]]:
    """The calls that are timed: single texts, then batches, drawn from all texts; few are used repeatedly."""
    order = np.random.default_rng(seed).permutation(len(texts))
    drawn = [texts[int(i)] for i in np.resize(order, _BATCHES * BATCH)]
    batches = [drawn[begin : begin + BATCH] for begin in range(0, len(drawn), BATCH)]
    return [*([text] for text in drawn[:_SINGLES]), *batches]


def measure(
    models: Mapping[str, Classify],
    calls: Sequence[Sequence[Text]],
    baseline: str,
    progress: Progress = silent,
) -> dict[str, Speed]:
    """The speed of each model, by its name.

    The models take turns of a few calls, each turn beginning with another one, so that what else the machine
    does meets all of them. The first calls of a turn are untimed: after them a model finds its weights in the
    processor's caches as one that serves alone does. A text is tokenised by one thread.
    """
    with _one_thread_for_tokenizers():
        seconds = np.concatenate([*_take_turns([*models.values()], calls, progress)], 1)
    sizes = np.array([len(texts) for texts in calls])
    place = [*models].index(baseline)
    found = {}
    for name, of_model in zip(models, seconds, strict=True):
        one, batch = (
            _latency(of_model[chosen], seconds[place, chosen, 1])
            for chosen in (sizes == 1, sizes > 1)
        )
        batched = of_model[sizes > 1, 1]
        found[name] = Speed(one, batch, float(sizes[sizes > 1].sum() / batched.sum()))
    return found


def _take_turns(
    models: Sequence[Classify], calls: Sequence[Sequence[Text]], progress: Progress
) -> Iterator[np.ndarray]:
    """The seconds of each model's calls in one turn of all, (M, calls of the turn, 2)."""
    for number, begin in enumerate(range(0, len(calls), _TURN)):
        turn = calls[begin : begin + _TURN]
        first = number % len(models)
        taken = {}
        for i in (*range(first, len(models)), *range(first)):
            for texts in turn[-_WARM_UP:]:
                models[i].seconds(texts)
            taken[i] = [models[i].seconds(texts) for texts in turn]
        progress("measure latency", begin + len(turn), len(calls), {})
        yield np.array([taken[i] for i in range(len(models))])


def _latency(seconds: np.ndarray, baseline: np.ndarray) -> Latency:
    """The figures of calls: (calls, 2) seconds of tokenising and of all, and (calls,) the baseline's of all."""
    whole = seconds[:, 1]
    return Latency(
        median=1000 * float(np.median(whole)),
        p95=1000 * float(np.percentile(whole, 95)),
        tokenizing=1000 * float(np.median(seconds[:, 0])),
        times_as_fast=float(np.median(baseline / whole)),
    )


@contextmanager
def _one_thread_for_tokenizers() -> Iterator[None]:
    before = os.environ.get(_PARALLEL)
    os.environ[_PARALLEL] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_PARALLEL]
        else:
            os.environ[_PARALLEL] = before


@contextmanager
def cpu_threads(count: int | None) -> Iterator[int]:
    """Have torch, and sessions of onnxruntime that are made meanwhile, use so many threads; None for torch's own.

    Gives their number.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
