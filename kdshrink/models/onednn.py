"""Linear layers of a frozen model on a CPU, through oneDNN with weights packed once.

PyTorch sends float32 products to its BLAS, which packs a weight anew at each call, and, where it is MKL
on a processor that is not Intel's, leaves AVX-512 alone. oneDNN takes a weight that was packed before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_ROWS = 1024
"""Rows of the products that weights are packed for; others work too."""


class PackedLinears(TorchFunctionMode):
    """While entered, `functional.linear` of float32 parameters on a CPU goes through oneDNN.

    For inference alone: there is no gradient, and a weight that changes is not packed anew.
    """

    def __init__(self) -> None:
        super().__init__()
        self._packed: dict[nn.Parameter, Tensor] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is not functional.linear or kwargs or not _packable(*args):
            return func(*args, **(kwargs or {}))
        inputs, weight, bias = (*args, None)[:3]
        if weight not in self._packed:
            self._packed[weight] = _pack(weight)
        return _packed_linear(inputs, self._packed[weight], bias)


def packed_linears(device: torch.device) -> AbstractContextManager[object]:
    """`PackedLinears` where this PyTorch and the device allow it, else nothing."""
    possible = torch.backends.mkldnn.is_available() and hasattr(
        torch.ops.mkldnn, "_linear_pointwise"
    )
    return PackedLinears() if possible and device.type == "cpu" else nullcontext()


def _pack(weight: Tensor) -> Tensor:
    """A weight in oneDNN's own order, which nothing but `_packed_linear` reads."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)


def _packed_linear(inputs: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """`functional.linear` of a packed weight."""
    return torch.ops.mkldnn._linear_pointwise(inputs, packed, bias, "none", [], "")


def _packable(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    return (
        isinstance(weight, nn.Parameter)
        and inputs.dtype == weight.dtype == torch.float32
        and inputs.device.type == weight.device.type == "cpu"
        and inputs.numel() > 0
    )
