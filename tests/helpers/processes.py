"""Runs that die, in a fork of this process, and runs without a package, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdshrink.training.trainer import TermTrainer


def die_in_step(step: int, work: Callable[[], object]) -> int:
    """Run a training in a child process that ends within a step as by SIGKILL: nothing is tidied up.

    It is a fork, which has torch loaded: a new process takes seconds for it.

    Args:
        step: How many steps are done before that one.

    Returns:
        The child's exit code: 9 if it came so far.
    """
    child = os.fork()
    if not child:
        compute = TermTrainer.compute_loss

        def compute_or_die(self: TermTrainer, *arguments: Any, **options: Any) -> Any:
            if self.state.global_step == step:
                os._exit(9)
            return compute(self, *arguments, **options)

        try:
            TermTrainer.compute_loss = compute_or_die  # type: ignore[method-assign]
            work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


_WITHOUT_ONNX = """
import importlib.util as util
find = util.find_spec
util.find_spec = lambda name, *rest: None if name.startswith("onnx") else find(name, *rest)
from kdshrink.__main__ import main
main()
"""


def run_without_onnx(*typed: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `kdshrink typed…` as where the extra onnx is not installed."""
    command = [sys.executable, "-c", _WITHOUT_ONNX, *typed]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)
