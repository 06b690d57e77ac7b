"""Make large multilingual encoders small: copy the teacher's weights, then distil."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the names that `__getattr__` imports, for editors and mypy
    from .commands.compare import compare as compare
    from .commands.curves import curves as curves
    from .commands.distill import distill as distill
    from .commands.dry_run import dry_run as dry_run
    from .commands.evaluate import evaluate as evaluate
    from .commands.evaluate import zero_shot as zero_shot
    from .commands.export import export as export
    from .commands.finetune import finetune as finetune
    from .commands.info import info as info
    from .commands.push import push as push
    from .commands.reproduce import reproduce as reproduce
    from .commands.shrink import shrink as shrink
    from .config.commands import CompareConfig as CompareConfig
    from .config.commands import CurvesConfig as CurvesConfig
    from .config.commands import DistillConfig as DistillConfig
    from .config.commands import EvalConfig as EvalConfig
    from .config.commands import ExportConfig as ExportConfig
    from .config.commands import FinetuneConfig as FinetuneConfig
    from .config.commands import InfoConfig as InfoConfig
    from .config.commands import PushConfig as PushConfig
    from .config.commands import ReproduceConfig as ReproduceConfig
    from .config.commands import ShrinkConfig as ShrinkConfig
    from .config.commands import ZeroShotConfig as ZeroShotConfig
    from .errors import KdshrinkError as KdshrinkError

__version__ = "0.1.0"

_HOMES = {
    "finetune": "commands.finetune",
    "shrink": "commands.shrink",
    "distill": "commands.distill",
    "evaluate": "commands.evaluate",
    "zero_shot": "commands.evaluate",
    "export": "commands.export",
    "compare": "commands.compare",
    "dry_run": "commands.dry_run",
    "push": "commands.push",
    "info": "commands.info",
    "reproduce": "commands.reproduce",
    "curves": "commands.curves",
    "FinetuneConfig": "config.commands",
    "ShrinkConfig": "config.commands",
    "DistillConfig": "config.commands",
    "EvalConfig": "config.commands",
    "ZeroShotConfig": "config.commands",
    "ExportConfig": "config.commands",
    "CompareConfig": "config.commands",
    "PushConfig": "config.commands",
    "InfoConfig": "config.commands",
    "ReproduceConfig": "config.commands",
    "CurvesConfig": "config.commands",
    "KdshrinkError": "errors",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import kdshrink` does not load torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
