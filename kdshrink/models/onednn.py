"""Faster linear layers of a frozen model on a CPU: through oneDNN, with weights packed once.

PyTorch's BLAS packs a weight again at each call, and MKL does not use AVX-512 on processors that are not
Intel's. oneDNN accepts a weight that is already packed.
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
"""The number of input rows that weights are packed for; others work too."""


class PackedLinears(TorchFunctionMode):
    """While entered, `functional.linear` of float32 parameters on a CPU goes through oneDNN.

    For inference only: there is no gradient, and changes of a packed weight are not seen.
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
    """`PackedLinears` if PyTorch and the device support it, else a context that does nothing."""
    return PackedLinears() if _packs(device) else nullcontext()


def packed_bytes(model: nn.Module, device: torch.device) -> int:
    """Bytes of the packed weights of a model's linear layers, which are held beside its own."""
    if not _packs(device):
        return 0
    return sum(part.weight.nbytes for part in model.modules() if isinstance(part, nn.Linear))


def _packs(device: torch.device) -> bool:
    possible = torch.backends.mkldnn.is_available() and hasattr(
        torch.ops.mkldnn, "_linear_pointwise"
    )
    return possible and device.type == "cpu"


def _pack(weight: Tensor) -> Tensor:
    """A weight in oneDNN's layout, which only `_packed_linear` can read."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)


def _packed_linear(inputs: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """`functional.linear` with a packed weight."""
    return torch.ops.mkldnn._linear_pointwise(inputs, packed, bias, "none", [], "")


def _packable(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    return (
        isinstance(weight, nn.Parameter)
        and inputs.dtype == weight.dtype == torch.float32
        and inputs.device.type == weight.device.type == "cpu"
        and inputs.numel() > 0
    )
