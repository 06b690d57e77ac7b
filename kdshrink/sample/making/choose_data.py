"""Choose the sample's data out of MASSIVE 1.1.

    python choose_data.py MASSIVE_DIR WHOLE_DIR KEPT_DIR

MASSIVE_DIR holds <locale>/<split>.jsonl with the columns id, utt and intent. Taken are the 20 most
frequent intents; training rows differ between languages, test rows are each other's translations.
WHOLE_DIR gets what the teacher is made with, KEPT_DIR the part of it that is embedded.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from pathlib import Path

SEEN = ("de-DE", "en-US", "es-ES", "ru-RU")
UNSEEN = ("nl-NL", "pt-PT", "sv-SE")
INTENTS = 20
WHOLE = {"train": 600, "validation": 150, "test": 250}
KEPT_EACH_INTENT = 2  # of the training rows
KEPT = {"validation": 60, "test": 120}


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, chosen: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in chosen)
    path.write_text("".join(lines), encoding="utf-8")


def part(split: str, chosen: list[dict[str, str]]) -> list[dict[str, str]]:
    if split in KEPT:
        return chosen[: KEPT[split]]
    counts: Counter[str] = Counter()
    few = []
    for row in chosen:
        counts[row["intent"]] += 1
        if counts[row["intent"]] <= KEPT_EACH_INTENT:
            few.append(row)
    return few


def main(massive: Path, whole: Path, kept: Path) -> None:
    counts = Counter(row["intent"] for row in rows(massive / "en-US" / "train.jsonl"))
    intents = {intent for intent, _ in counts.most_common(INTENTS)}
    print(" ".join(sorted(intents)))
    chooser = random.Random(0)

    def draw(split: str, count: int) -> list[str]:
        ids = [
            r["id"] for r in rows(massive / "en-US" / f"{split}.jsonl") if r["intent"] in intents
        ]
        return chooser.sample(ids, count)

    train = draw("train", WHOLE["train"] * len(SEEN))
    validation = draw("validation", WHOLE["validation"])
    test = draw("test", WHOLE["test"])
    for number, locale in enumerate((*SEEN, *UNSEEN)):
        chosen = {"test": test}
        if locale in SEEN:
            first = number * WHOLE["train"]
            chosen["train"] = train[first : first + WHOLE["train"]]
            chosen["validation"] = validation
        for split, ids in chosen.items():
            by_id = {row["id"]: row for row in rows(massive / locale / f"{split}.jsonl")}
            chosen_rows = [by_id[i] for i in ids]
            write(whole / locale / f"{split}.jsonl", chosen_rows)
            write(kept / locale / f"{split}.jsonl", part(split, chosen_rows))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
