"""Small real models and tokenizers, made from configs and from the sample's own text."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

from kdshrink.data.registry import MASSIVE

from .helpers.hub import Desk, Hub
from .helpers.models import (
    LABELS,
    make_config,
    make_model,
    make_tokenizer,
)

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a process without other tests, unless it is all that is selected."""
    apart = [item for item in items if item.get_closest_marker("simcuda")]
    if len(apart) < len(items):
        for item in apart:
            item.add_marker(pytest.mark.skip("needs a process of its own: pytest -m simcuda"))


@pytest.fixture(scope="session", autouse=True)
def _one_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Arrow files of the tests go to their own place; torch keeps to one thread, for equal sums."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("arrow")
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """What a command line in this process makes of the log ends with its test."""
    log = logging.getLogger("kdshrink")
    level, handlers, propagate = log.level, list(log.handlers), log.propagate
    yield
    log.setLevel(level)
    log.handlers[:], log.propagate = handlers, propagate


@pytest.fixture(scope="session")
def xlmr_tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer("xlm-roberta")


@pytest.fixture
def encoder_dir(tmp_path: Path, xlmr_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A bare XLM-R encoder on disk."""
    folder = tmp_path / "encoder"
    make_model("xlm-roberta", None).save_pretrained(folder)
    xlmr_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def text_data(tmp_path: Path) -> Path:
    """Own data in two languages: which word a text has says its label."""
    words = {"de": ["wetter", "musik", "email"], "es": ["tiempo", "música", "correo"]}
    folder = tmp_path / "weather"
    for language, names in words.items():
        for split, count in (("train", 24), ("validation", 9), ("test", 12)):
            rows = [
                {"text": f"{names[i % 3]} {i} {language} tag", "label": LABELS[i % 3]}
                for i in range(count)
            ]
            path = folder / language / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    return folder


@pytest.fixture
def word_data(tmp_path: Path) -> Path:
    """Own data for token classification, as IOB2 files."""
    folder = tmp_path / "names"
    for language in ("da", "pt"):
        for split, count in (("train", 16), ("validation", 6), ("test", 8)):
            path = folder / language / f"{split}.iob2"
            path.parent.mkdir(parents=True, exist_ok=True)
            sentences = [
                f"# sentence {i}\n1\tAnna\tB-PER\n2\tWeber\tI-PER\n3\ti\tO\n4\tLisboa\tB-LOC\n5\t{i}\tO\n"
                for i in range(count)
            ]
            path.write_text("\n".join(sentences))
    return folder


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as running:
        yield running


@pytest.fixture
def desk(hub: Hub, tmp_path: Path) -> Desk:
    return Desk(hub, tmp_path)


@pytest.fixture(scope="session")
def massive_teacher(
    tmp_path_factory: pytest.TempPathFactory, xlmr_tokenizer: PreTrainedTokenizerFast
) -> Path:
    """A classifier of massive's 60 intents, with random weights and a card of its own."""
    folder = tmp_path_factory.mktemp("teachers") / "teacher"
    names = dict(enumerate(MASSIVE.labels))
    ids = {name: i for i, name in names.items()}
    config = make_config("xlm-roberta", id2label=names, label2id=ids)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    xlmr_tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(
        "---\nlicense: other\nlicense_name: tea-licence\nlicense_link: https://example.org/tea\n---\n# Teacher\n"
    )
    return folder


@pytest.fixture
def model_dir(tmp_path: Path, massive_teacher: Path) -> Path:
    shutil.copytree(massive_teacher, tmp_path / "model")
    return tmp_path / "model"
