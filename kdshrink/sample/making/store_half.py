"""Store a model in float16, with its tokenizer, card and record.

python store_half.py MODEL_DIR OUTPUT_DIR
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

KEPT = ("config.json", "tokenizer.json", "tokenizer_config.json", "kdshrink.json", "README.md")


def main(source: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    tensors = load_file(source / "model.safetensors")
    half = {name: tensor.to(torch.float16) for name, tensor in tensors.items()}
    save_file(half, out / "model.safetensors", metadata={"format": "pt"})
    for name in KEPT:
        shutil.copy(source / name, out / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
