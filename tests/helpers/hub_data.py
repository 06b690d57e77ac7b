"""Data sets as the Hub has them: the layout, the columns and the types that the tool reads there."""

from __future__ import annotations

import json
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, List, Value

from kdshrink.data.registry import MASSIVE, TSM, UNIVERSAL_NER

SIZES = {"train": 12, "validation": 6, "test": 6}
TEXTS = {"de": "wecke mich um {}", "en": "wake me up at {}", "es": "despiértame a las {}"}


def _text(locale: str, number: int) -> str:
    return TEXTS.get(locale[:2], "{}").format(number)


def write_massive(folder: Path, locales: tuple[str, ...] = ("de-DE", "en-US", "es-ES")) -> Path:
    """AmazonScience/massive at refs/convert/parquet: <locale>/<split>/0000.parquet."""
    features = Features(
        {
            "id": Value("string"),
            "locale": Value("string"),
            "partition": Value("string"),
            "scenario": ClassLabel(names=["alarm", "audio"]),
            "intent": ClassLabel(names=list(MASSIVE.labels)),
            "utt": Value("string"),
            "annot_utt": Value("string"),
        }
    )
    for locale in locales:
        for split, count in SIZES.items():
            rows = [
                {
                    "id": str(i),
                    "locale": locale,
                    "partition": split,
                    "scenario": 0,
                    "intent": i % 3,
                    "utt": _text(locale, i),
                    "annot_utt": _text(locale, i),
                }
                for i in range(count)
            ]
            _write(rows, features, folder / locale / split)
    return folder


def write_tsm(folder: Path, languages: tuple[str, ...] = ("german", "english")) -> Path:
    """cardiffnlp/tweet_sentiment_multilingual at refs/convert/parquet."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(TSM.labels))})
    for language in languages:
        for split, count in SIZES.items():
            rows = [{"text": f"{language} tweet {i}", "label": i % 3} for i in range(count)]
            _write(rows, features, folder / language / split)
    return folder


def write_universal_ner(folder: Path, units: tuple[str, ...] = ("da_ddt", "de_pud")) -> Path:
    """BramVanroy/universal_ner: configurations that the README's metadata names."""
    features = Features(
        {
            "idx": Value("string"),
            "text": Value("string"),
            "tokens": List(Value("string")),
            "ner_tags": List(ClassLabel(names=list(UNIVERSAL_NER.labels))),
            "annotator": List(Value("string")),
        }
    )
    lines = ["---", "configs:"]
    for unit in units:
        lines += [f"- config_name: {unit}", "  data_files:"]
        for split, count in SIZES.items():
            if unit.endswith("_pud") and split != "test":
                continue
            words = ["Anna", "bor", "i", "Lisboa"]
            rows = [
                {
                    "idx": str(i),
                    "text": " ".join(words),
                    "tokens": words,
                    "ner_tags": [1, 0, 0, 5],
                    "annotator": ["x"],
                }
                for i in range(count)
            ]
            _write(rows, features, folder / unit, f"{split}-00000-of-00001.parquet")
            lines += [f"  - split: {split}", f"    path: {unit}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder


def write_reviews(folder: Path) -> Path:
    """A user's own data set: plain files, no configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in SIZES.items():
        rows = [{"text": f"text {i}", "label": ["bad", "good"][i % 2]} for i in range(count)]
        lines = [json.dumps(row) + "\n" for row in rows]
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder


def _write(
    rows: list[dict[str, object]], features: Features, folder: Path, name: str = "0000.parquet"
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=features).to_parquet(folder / name)
