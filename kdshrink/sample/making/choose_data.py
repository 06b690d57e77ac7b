"""Choose the sample's data out of MASSIVE 1.1.

    python choose_data.py MASSIVE_DIR OUTPUT_DIR

MASSIVE_DIR holds <locale>/<split>.jsonl with the columns id, utt and intent. Taken are the 20 most
frequent intents; training rows differ between languages, test rows are each other's translations.
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
TRAIN, VALIDATION, TEST = 600, 150, 250


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, chosen: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in chosen)
    path.write_text("".join(lines), encoding="utf-8")


def main(massive: Path, out: Path) -> None:
    counts = Counter(row["intent"] for row in rows(massive / "en-US" / "train.jsonl"))
    intents = {intent for intent, _ in counts.most_common(INTENTS)}
    print(" ".join(sorted(intents)))
    chooser = random.Random(0)

    def draw(split: str, count: int) -> list[str]:
        ids = [
            r["id"] for r in rows(massive / "en-US" / f"{split}.jsonl") if r["intent"] in intents
        ]
        return chooser.sample(ids, count)

    train = draw("train", TRAIN * len(SEEN))
    validation = draw("validation", VALIDATION)
    test = draw("test", TEST)
    for number, locale in enumerate((*SEEN, *UNSEEN)):
        chosen = {"test": test}
        if locale in SEEN:
            chosen["train"] = train[number * TRAIN : (number + 1) * TRAIN]
            chosen["validation"] = validation
        for split, ids in chosen.items():
            by_id = {row["id"]: row for row in rows(massive / locale / f"{split}.jsonl")}
            write(out / locale / f"{split}.jsonl", [by_id[i] for i in ids])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
