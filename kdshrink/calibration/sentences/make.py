"""Makes the sentences that ship with kdshrink, out of MASSIVE's training split.

    python kdshrink/calibration/sentences/make.py MASSIVE_DIR

MASSIVE_DIR holds `<locale>/train.jsonl` with `id` and `utt`. MASSIVE says the same in every language, so
that each locale gets other rows of it, as far as the rows go: many sentences rather than many translations.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

COUNTS = {"train": 50, "validation": 20}
LEAST, MOST = 3, 100  # characters


def main(massive: Path) -> None:
    folder = Path(__file__).parent
    locales = sorted(path.parent.name for path in massive.glob("*/train.jsonl"))
    rows = {
        locale: [json.loads(line) for line in (massive / locale / "train.jsonl").open("rb")]
        for locale in locales
    }
    ids = sorted({row["id"] for row in rows[locales[0]]}, key=int)
    random.Random(0).shuffle(ids)
    unused = iter(ids)
    chosen: dict[str, list[dict[str, str]]] = {split: [] for split in COUNTS}
    for locale in locales:
        texts = {row["id"]: " ".join(row["utt"].split()) for row in rows[locale]}
        for split, count in COUNTS.items():
            found: list[str] = []
            while len(found) < count:
                text = texts[next(unused)]
                if LEAST <= len(text) <= MOST and text not in found:
                    found.append(text)
            chosen[split] += [{"text": text, "language": locale} for text in found]
    for split, sentences in chosen.items():
        lines = [json.dumps(sentence, ensure_ascii=False) + "\n" for sentence in sentences]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
