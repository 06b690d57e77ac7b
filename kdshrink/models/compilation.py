"""torch.compile for training, with few distinct input shapes."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec

import numpy as np
import torch
from torch import nn

from ..errors import UsageError

_BUCKETS = 4
_MULTIPLE = 8
_SHAPES = 64
"""Shapes to compile at most, of whole and last batches of each bucket; further ones run uncompiled."""


def length_buckets(lengths: np.ndarray) -> tuple[int, ...]:
    """Lengths to pad batches to: quantiles of the examples' lengths, rounded up to multiples of 8.

    Args:
        lengths: (n,) tokens of each example.
    """
    longest = int(lengths.max())
    ends = np.quantile(lengths, np.arange(1, _BUCKETS + 1) / _BUCKETS, method="higher")
    rounded = {min(longest, -(-int(end) // _MULTIPLE) * _MULTIPLE) for end in ends}
    return tuple(sorted(rounded))


def bucket_widths(lengths: np.ndarray) -> np.ndarray:
    """(n,) the bucket that each example is padded to."""
    buckets = np.array(length_buckets(lengths))
    return buckets[np.searchsorted(buckets, lengths)]


def compile_in_place(model: nn.Module, device: torch.device) -> None:
    """Make a model compile, forward and backward, at the first batch of each shape.

    Raises:
        UsageError: What torch.compile needs on the device is missing: a C++ compiler on a CPU, Triton and a
            C compiler on a GPU.
    """
    (_require_cpu_compiler if device.type == "cpu" else _require_triton)()
    _allow_shapes(_SHAPES)
    model.compile(dynamic=False)


def _require_cpu_compiler() -> None:
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise UsageError(
            f"--torch-compile needs a C++ compiler on a CPU, and there is no {compiler}.\n"
            "Install one, name it in CXX, or leave --torch-compile out."
        )


def _require_triton() -> None:
    if find_spec("triton") is None:
        raise UsageError(
            "--torch-compile needs Triton on a GPU, and it is not installed.\n"
            "Install it with pip install triton, or leave --torch-compile out."
        )
    compilers = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]
    if not any(map(shutil.which, compilers)):
        raise UsageError(
            f"--torch-compile needs a C compiler on a GPU, and there is no {' or '.join(compilers)}.\n"
            "Install one, name it in CC, or leave --torch-compile out."
        )


def _allow_shapes(count: int) -> None:
    """Set how many shapes torch.compile compiles before it runs further ones uncompiled."""
    torch._dynamo.config.recompile_limit = count
