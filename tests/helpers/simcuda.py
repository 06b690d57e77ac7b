"""A CUDA device simulated on a CPU, to see where work on a GPU would mix devices or wait.

A tensor "on cuda:0" wraps one on the CPU, and PyTorch's C++ side takes it for one of a third-party device
(PrivateUse1): autograd, autocast, fused optimizers, Trainer and accelerate go the accelerator's way, and all
values are real. What is seen:

- an operation that mixes devices raises, as on CUDA (`DeviceMismatch`);
- whatever makes the host wait for the device is noted with its place (`Log.syncs`);
- kernels are counted, with the type they compute in (`Log.kernels`).

What is not: real kernels, NCCL, streams, memory, Triton.

The first use takes PyTorch's third-party device for the rest of the process, so that tests with it are run
in a process without others (marker `simcuda`). It stands on
torch.utils.backend_registration._setup_privateuseone_for_python_backend, which is experimental.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils, backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

_NAME = "simgpu"
_CPU = torch.device("cpu")
_SHOWN = torch.device("cuda", 0)
_FOLLOWED = ("/kdshrink/", "/transformers/", "/accelerate/")
_RUN_AHEAD = 30
"""Kernels after which an event is taken for reached: the device had the time of a step's beginning."""

_COPIES = {"copy_", "_to_copy"}
_INDEXING = {"index", "index_put_", "index_put", "_index_put_impl_", "_unsafe_index"}
_MAY_MIX = {"set_", "_pin_memory"}
_BROADCAST_SCALARS = {"where", "masked_fill", "masked_fill_", "fill_", "clamp", "add", "mul", "div"}
_SIZE_FROM_VALUES = set(
    "nonzero nonzero_numpy masked_select _unique _unique2 unique_consecutive unique_dim bincount "
    "equal is_nonzero _local_scalar_dense histc repeat_interleave allclose".split()
)
"""Operations whose result, or its size, the host must know."""
_WITHOUT_KERNEL = set(
    "view _unsafe_view t transpose permute expand unsqueeze squeeze select slice alias detach as_strided "
    "unbind split split_with_sizes unfold diagonal _reshape_alias empty empty_like empty_strided new_empty "
    "new_empty_strided lift_fresh is_same_size".split()
)

_IN_16_BITS = set(
    "linear matmul mm bmm addmm baddbmm addbmm einsum scaled_dot_product_attention conv1d".split()
)
_IN_32_BITS = set(
    "softmax.int log_softmax.int layer_norm nll_loss cross_entropy_loss mse_loss pow.Tensor_Scalar "
    "pow.Scalar sum sum.dim_IntList exp log norm.Scalar cumsum prod cdist rsqrt reciprocal "
    "native_layer_norm softplus".split()
)
_IN_THE_WIDEST = {"cat", "stack"}


class DeviceMismatch(RuntimeError):
    """An operation got tensors of different devices, which CUDA refuses."""


@dataclass(frozen=True)
class Sync:
    """A wait of the host for the device.

    Attributes:
        kind: Why it waits.
        size: Bytes that are copied; 0 where nothing is.
        stack: File, line and function of the innermost callers of ours and of the libraries.
    """

    kind: str
    size: int
    stack: tuple[str, ...]

    @property
    def place(self) -> str:
        """File and line of the innermost caller."""
        return self.stack[-1].partition(" ")[0] if self.stack else "?"


@dataclass
class Log:
    """What was seen since `clear`.

    Attributes:
        kernels: How often each kernel ran, by phase, name and floating-point type.
        phase: What a test calls the part of the work that it is in.
        launched: Kernels ever.
    """

    syncs: list[Sync] = field(default_factory=list)
    kernels: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    phase: str = ""
    launched: int = 0

    def clear(self) -> None:
        self.syncs.clear()
        self.kernels.clear()

    def sync(self, kind: str, size: int = 0) -> None:
        frames = [
            f"{frame.filename.rpartition('site-packages/')[2]}:{frame.lineno} {frame.name}"
            for frame in traceback.extract_stack(limit=60)
            if any(name in frame.filename for name in _FOLLOWED) and frame.filename != __file__
        ]
        self.syncs.append(Sync(kind, size, tuple(frames[-4:])))

    def kernel(self, name: str, tensors: Sequence[Tensor]) -> None:
        kind = next((str(one.dtype) for one in tensors if one.dtype.is_floating_point), "")
        self.kernels[self.phase, name, kind] += 1
        self.launched += 1


LOG = Log()


class SimulatedTensor(torch.Tensor):
    """A tensor that says it is on cuda:0; `_wrapped` has its values."""

    _wrapped: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> SimulatedTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=torch.device(_NAME, 0),
        )
        made._wrapped = inner
        return made

    device = property(lambda self: _SHOWN)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def untyped_storage(self) -> torch.UntypedStorage:
        return self._wrapped.untyped_storage()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"SimulatedTensor({tuple(self.shape)}, {self.dtype})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._wrapped.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied: Tensor = SimulatedTensor(self._wrapped.clone())
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


def _on_device(value: object) -> bool:
    return isinstance(value, SimulatedTensor)


def _tensors(values: Any) -> list[Tensor]:
    return [one for one in tree_iter(values) if isinstance(one, torch.Tensor)]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _pin(tensor: Tensor) -> Tensor:
    tensor.untyped_storage().is_simulated_pinned = True  # type: ignore[attr-defined]
    return tensor


def _is_pinned(tensor: Tensor) -> bool:
    return getattr(tensor.untyped_storage(), "is_simulated_pinned", False)


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operation on the wrapped tensors, after a look at what it would be on CUDA."""
    tensors = _tensors((args, kwargs))
    to_device = any(map(_on_device, tensors))
    touches_device = to_device
    if (device := kwargs.get("device")) is not None:
        to_device = torch.device(device).type not in ("cpu", "meta")
    if not (touches_device or to_device):
        return func(*args, **kwargs)
    _check(func, args, kwargs, to_device)
    if func.overloadpacket.__name__ not in _WITHOUT_KERNEL:
        LOG.kernel(func.overloadpacket.__name__, [one for one in tensors if _on_device(one)])
    wrappers: dict[int, SimulatedTensor] = {}

    def unwrap(value: Any) -> Any:
        if isinstance(value, SimulatedTensor):
            wrappers[id(value._wrapped)] = value
            return value._wrapped
        return _CPU if isinstance(value, torch.device) else value

    result = func(*tree_map(unwrap, args), **tree_map(unwrap, kwargs))
    view_of_normal = func.is_view and _on_device(args[0]) and not args[0].is_inference()

    def wrap(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or isinstance(value, SimulatedTensor):
            return value
        if id(value) in wrappers:
            return wrappers[id(value)]
        if to_device:
            # In inference mode a view of a tensor that is not of that mode is not either.
            inference = torch.is_inference_mode_enabled() and not view_of_normal
            with torch.inference_mode(inference):
                return SimulatedTensor(value)
        sources = [one._wrapped for one in tensors if isinstance(one, SimulatedTensor)]
        shared = any(one.data_ptr() == value.data_ptr() for one in sources) and value.numel()
        return value.clone() if shared else value

    return tree_map(wrap, result)


def _check(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], to_device: bool) -> None:
    """Raise for what CUDA refuses; note what makes the host wait."""
    name = func.overloadpacket.__name__
    tensors = _tensors((args, kwargs))
    here = [one for one in tensors if not _on_device(one)]
    if name in _COPIES:
        _check_copy(name, args, kwargs, to_device)
    elif name in _INDEXING:
        _check_index(func, args)
    elif here and len(here) < len(tensors) and name not in _MAY_MIX:
        scalars = torch.Tag.pointwise in func.tags or name in _BROADCAST_SCALARS
        if not scalars or any(one.dim() > 0 for one in here):
            where = ", ".join(
                f"{'cuda' if _on_device(one) else 'cpu'}{tuple(one.shape)}" for one in tensors
            )
            raise DeviceMismatch(f"{func}: {where}")
    elif len(here) < len(tensors):
        if name in _SIZE_FROM_VALUES:
            LOG.sync(name)
        if name.startswith(("linalg_", "_linalg_", "cholesky", "svd")) and "norm" not in name:
            LOG.sync(f"{name}, which checks whether it succeeded")


def _check_copy(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], to_device: bool) -> None:
    in_place = name == "copy_"
    source = args[1] if in_place else args[0]
    if in_place:
        to_device = _on_device(args[0])
    blocking = not (kwargs.get("non_blocking") or (in_place and len(args) > 2 and args[2]))
    if _on_device(source) and not to_device:
        target_pinned = in_place and _is_pinned(args[0])
        if blocking:
            LOG.sync("copy to the host", _bytes(source))
        elif not target_pinned:
            LOG.sync("copy to the host's pageable memory", _bytes(source))
    elif to_device and not _on_device(source):
        if blocking and not (in_place and source.dim() == 0):
            LOG.sync("copy to the device", _bytes(source))
        elif not blocking and not _is_pinned(source):
            LOG.sync("copy to the device from pageable memory", _bytes(source))


def _check_index(func: Any, args: tuple[Any, ...]) -> None:
    table, value = args[0], args[2] if len(args) > 2 else None
    indices = _tensors(args[1])
    if value is not None and value.dim() > 0 and _on_device(value) != _on_device(table):
        raise DeviceMismatch(f"{func}: values of another device than the tensor's")
    if not _on_device(table):
        if any(map(_on_device, indices)):
            raise DeviceMismatch(f"{func}: a tensor on the CPU, indexed by one on CUDA")
        return
    for one in indices:
        if not _on_device(one):
            LOG.sync("copy of an index to the device", _bytes(one))
    masked = any(one.dtype in (torch.bool, torch.uint8) for one in indices)
    if masked and not (value is not None and value.dim() == 0):
        LOG.sync("index by a mask, which counts what is true")


class _Operations(TorchDispatchMode):
    """Sends what makes tensors on the device of none there through `_run`."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # In inference mode composite operations arrive whole.
        if func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
            with self:
                return func.decompose(*args, **(kwargs or {}))
        return _run(func, args, kwargs or {})


def _real_device(value: Any) -> Any:
    """cuda as the simulated device; anything else as it is."""
    return torch.device(_NAME, 0) if _is_device(value) else value


def _is_device(value: Any) -> bool:
    if isinstance(value, torch.device):
        return value.type in ("cuda", _NAME)
    return isinstance(value, str) and value.partition(":")[0] == "cuda"


class _Functions(TorchFunctionMode):
    """Takes cuda for the simulated device in PyTorch's functions; pinned memory is marked as such."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = {**(kwargs or {})}
        if func is torch.device:
            return func(*args, **kwargs)
        if func is torch.Tensor.pin_memory:
            return _pin(args[0].clone())
        if func is torch.Tensor.is_pinned:
            return _is_pinned(args[0])
        if kwargs.pop("pin_memory", False):
            return _pin(func(*args, **kwargs))
        if func in (torch.tensor, torch.as_tensor) and _is_device(kwargs.get("device")):
            return _from_host(func, args, kwargs)
        if func is torch.Tensor.tolist and _on_device(args[0]):
            return args[0].cpu().tolist()
        if func is torch.Tensor.numpy and _on_device(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if func is torch.Tensor.cuda:
            return args[0].to(torch.device(_NAME, 0))
        named = {name: _real_device(value) for name, value in kwargs.items()}
        return func(*map(_real_device, args), **named)


def _from_host(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """torch.tensor or as_tensor for the device: made on the CPU and copied, as CUDA does."""
    options = {key: value for key, value in kwargs.items() if key != "device"}
    gradient = options.pop("requires_grad", False)
    made = args[0] if isinstance(args[0], torch.Tensor) else func(*args, **options)
    return made.to(torch.device(_NAME, 0)).requires_grad_(gradient)


class _Event:
    """torch.cuda.Event: the host waits for one that was recorded just before."""

    def __init__(self, **_: Any) -> None:
        self._recorded = LOG.launched

    def record(self, stream: Any = None) -> None:
        self._recorded = LOG.launched

    def query(self) -> bool:
        return LOG.launched - self._recorded >= _RUN_AHEAD

    def synchronize(self) -> None:
        if not self.query():
            LOG.sync("wait for an event recorded just before")


class _Backend(backend_registration._DummyBackendModule):
    """What PyTorch asks of the module of a device; its random numbers are the CPU's."""

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)


@cache
def _take_device() -> tuple[object, ...]:
    """Make PyTorch take the simulated device, with autocast; gives what must be kept alive."""
    backend_registration._setup_privateuseone_for_python_backend(_NAME, backend_module=_Backend())
    ours, others = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")
    others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for name in _IN_16_BITS:
        _autocast(ours, name, lambda _: torch.get_autocast_dtype("cuda"))
    for name in _IN_32_BITS:
        _autocast(ours, name, lambda _: torch.float32)
    for name in _IN_THE_WIDEST:
        _autocast(ours, name, _widest)
    return ours, others


def _widest(tensors: Sequence[Tensor]) -> torch.dtype | None:
    return torch.float32 if any(one.dtype == torch.float32 for one in tensors) else None


def _autocast(
    library: torch.library.Library,
    name: str,
    choose: Callable[[Sequence[Tensor]], torch.dtype | None],
) -> None:
    """Let autocast run an operation in the type that `choose` gives for its tensors; None keeps theirs."""
    packet, _, overload = name.partition(".")
    operation = getattr(getattr(torch.ops.aten, packet), overload or "default")
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)  # type: ignore[attr-defined]

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(key):
            dtype = choose(_tensors((args, kwargs)))

            def cast(value: Any) -> Any:
                if dtype is None or not _on_device(value):
                    return value
                casts = value.dtype.is_floating_point and value.dtype != torch.float64
                return value.to(dtype) if casts else value

            return operation(*tree_map(cast, args), **tree_map(cast, kwargs))

    library.impl(name, kernel, "AutocastPrivateUse1")


def _runtime(devices: int) -> Mapping[str, Any]:
    """What torch.cuda has, for so many simulated GPUs."""
    current = SimpleNamespace(index=0)

    def set_device(device: Any) -> None:
        current.index = device if isinstance(device, int) else torch.device(device).index or 0

    gigabyte = 10**9
    properties = SimpleNamespace(
        major=9,
        minor=0,
        total_memory=80 * gigabyte,
        multi_processor_count=132,
        name="Simulated",
    )
    return {
        "Event": _Event,
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: devices,
        "is_initialized": lambda: True,
        "_is_in_bad_fork": lambda: False,
        "is_current_stream_capturing": lambda: False,
        "current_device": lambda: current.index,
        "set_device": set_device,
        "get_device_name": lambda *_: properties.name,
        "get_device_capability": lambda *_: (properties.major, properties.minor),
        "get_device_properties": lambda *_: properties,
        "is_bf16_supported": lambda *_, **__: True,
        "reset_peak_memory_stats": lambda *_: None,
        "max_memory_allocated": lambda *_: 1,
        "memory_allocated": lambda *_: 0,
        "memory_reserved": lambda *_: 0,
        "mem_get_info": lambda *_: (properties.total_memory, properties.total_memory),
        "empty_cache": lambda: None,
        "synchronize": lambda *_: LOG.sync("torch.cuda.synchronize"),
        "manual_seed": lambda *_: None,
        "manual_seed_all": lambda *_: None,
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda *_, **__: None,
        "get_rng_state_all": lambda: [torch.get_rng_state()],
        "set_rng_state_all": lambda *_: None,
    }


def _for_both(function: Callable[[str, Any], None]) -> Callable[[str, Any], None]:
    """A setting of autocast on cuda, made on the simulated device too."""

    def set_both(device: str, value: Any) -> None:
        if device == "cuda":
            function(_NAME, value)
        function(device, value)

    return set_both


@contextmanager
def simulated_cuda(devices: int = 1) -> Iterator[Log]:
    """Let torch.cuda find so many GPUs, of which the first is simulated."""
    _take_device()
    supported = [*_foreach_utils._foreach_supported_types, SimulatedTensor]
    with ExitStack() as stack:
        for name, value in _runtime(devices).items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value, create=True))
            if hasattr(torch.cuda.random, name):
                stack.enter_context(mock.patch.object(torch.cuda.random, name, value))
        for name in ("set_autocast_enabled", "set_autocast_dtype"):
            stack.enter_context(mock.patch.object(torch, name, _for_both(getattr(torch, name))))
        stack.enter_context(
            mock.patch.object(_foreach_utils, "_foreach_supported_types", supported)
        )
        stack.enter_context(_Operations())
        stack.enter_context(_Functions())
        yield LOG
