"""The log of a training run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def logged(folder: Path) -> list[dict[str, Any]]:
    """The lines of a result's train_log.jsonl."""
    return [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]


def logged_losses(folder: Path) -> list[dict[str, Any]]:
    """The lines with a loss, not those with a score."""
    return [line for line in logged(folder) if "loss" in line]
