"""Runs that die, in a fork of this process: it has torch loaded, which a new one takes seconds for."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from typing import Any

from kdshrink.training.trainer import TermTrainer


def die_in_step(step: int, work: Callable[[], object]) -> int:
    """Run a training in a child process that ends within a step as by SIGKILL: nothing is tidied up.

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
