"""`--dry-run`: what a command would do, found out without writing anything."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..data.store import cache_unchanged
from ..errors import UsageError
from .plan import Plan

_PLANNERS = {
    "FinetuneConfig": "finetune:plan_finetune",
    "ShrinkConfig": "shrink:plan_shrink",
    "DistillConfig": "distill:plan_distill",
    "EvalConfig": "evaluate:plan_eval",
    "ZeroShotConfig": "evaluate:plan_zero_shot",
    "ExportConfig": "export:plan_export",
    "CompareConfig": "compare:plan_compare",
    "ReproduceConfig": "reproduce:plan_reproduce",
}


def dry_run(config: Any, progress: Any = None) -> Plan:
    """What the command with this config would do: models, data, steps, memory, disk and time.

    All that the command reads is found and checked. No file is written or changed, in the cache of data
    neither; only what is fetched from the Hub stays in the Hub's cache.

    Args:
        progress: As of the command's own function.

    Raises:
        UsageError: It is the config of a command that does not run long.
        KdshrinkError: As the command, before its long work.
    """
    name = type(config).__name__
    if name not in _PLANNERS:
        raise UsageError(f"{name}: there is no dry run of this command.")
    module, _, function = _PLANNERS[name].partition(":")
    with cache_unchanged():
        plan: Plan = getattr(import_module(f".{module}", __package__), function)(config, progress)
        return plan
