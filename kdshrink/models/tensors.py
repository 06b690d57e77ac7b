"""Reads and writes weights files, a block of a tensor's rows at a time.

Weights are copied as numpy arrays of their bits, without importing torch, which takes longer than to copy
a model. torch is imported where tensors are computed with, and to read pickles.
"""

from __future__ import annotations

import json
import logging
import math
import pickle
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from ..errors import ModelError
from ..progress import Progress, silent
from .headers import read_header
from .source import MERGE

if TYPE_CHECKING:
    import torch
    from torch import Tensor

logger = logging.getLogger(__name__)

_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""The types that are supported: their codes in safetensors files, and their names in torch and numpy."""
_CODES = {name: code for code, name in _TYPES.items()}
_BLOCK = 2**24
"""Bytes of a tensor that are in memory at once when it is copied."""
_WRAPPERS = ("module.", "_orig_mod.", "base_model.model.")
"""Prefixes of all names where a wrapper was saved: of DataParallel, torch.compile, merged PEFT."""
_INNER_WRAPPERS = re.compile(
    r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_ADAPTED = re.compile(r"(?:^|\.)(?:lora_\w+|modules_to_save|original_module|base_layer|ia3_l)\.")


@dataclass(frozen=True)
class TensorSpec:
    """Shape and type of a tensor that may not be in memory.

    Attributes:
        code: Its type as safetensors files name it, such as F32.
    """

    shape: tuple[int, ...]
    code: str

    @classmethod
    def of(cls, tensor: Tensor) -> TensorSpec:
        """The spec of a tensor (KeyError if its type is not supported)."""
        return cls(tuple(tensor.shape), _CODES[_type_name(tensor)])

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.parameters * self.array_type.itemsize

    @property
    def is_floating_point(self) -> bool:
        return "float" in _TYPES[self.code]

    @property
    def torch_type(self) -> torch.dtype:
        import torch

        return getattr(torch, _TYPES[self.code])

    @property
    def array_type(self) -> np.dtype[Any]:
        """numpy's type for its bits: uint16 for bfloat16, which numpy does not have."""
        return np.dtype("uint16" if self.code == "BF16" else _TYPES[self.code])


def _type_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def to_array(tensor: Tensor) -> np.ndarray:
    """A CPU tensor's bits as a numpy array, of its spec's `array_type`; they share memory."""
    import torch

    tensor = tensor.detach()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


class _Place(NamedTuple):
    """Where a tensor is in a safetensors file.

    Attributes:
        name: Its name there.
        offset: Bytes before it.
    """

    path: Path
    name: str
    offset: int


class TensorReader:
    """The tensors of a model directory, by name: from safetensors, else from pytorch_model.bin.

    A pickle is read with `torch.load(weights_only=True)`, memory-mapped. Names that end in gamma or beta,
    as in checkpoints converted from TensorFlow, are read as weight and bias. Prefixes of wrappers
    (`module.`, `_orig_mod.`, `base_model.model.`) are removed, with a warning.

    Attributes:
        specs: Shape and type of every tensor, in the files' order.
        files: The files that hold them.

    Raises:
        ModelError: The weights are missing, damaged or an adapter's, two tensors have the same name, or
            a pickle holds more than tensors.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.specs: dict[str, TensorSpec] = {}
        self.files: list[Path] = []
        self._tensors: dict[str, _Place | Tensor] = {}
        single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
        if single.is_file():
            self._add_safetensors(single)
        elif index.is_file():
            for name in self._shards(index):
                self._add_safetensors(directory / name)
        else:
            self._add_pickles()
        self._unwrap()

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._tensors.clear()

    def read(self, name: str) -> Tensor:
        """Load a tensor into memory."""
        found = self._tensors[name]
        if not isinstance(found, _Place):
            return found
        # Opened anew each time, since mapped pages count as memory until the file is closed.
        with safe_open(found.path, framework="pt") as file:
            return file.get_tensor(found.name)

    def blocks(self, name: str, rows: Sequence[int] | None = None) -> Iterator[np.ndarray]:
        """The bits of a tensor (`TensorSpec.array_type`), some rows at a time, so that few are in memory.

        Args:
            rows: Numbers of the rows to take, in the order wanted; None for all.
        """
        spec = self.specs[name]
        if not spec.bytes:  # nothing to map
            return
        count = spec.shape[0] if spec.shape else 1
        step = max(1, _BLOCK * count // spec.bytes)
        for begin in range(0, count if rows is None else len(rows), step):
            part = slice(begin, begin + step)
            # Mapped anew each time, since pages count as memory until the mapping is gone.
            yield self._array(name)[part if rows is None else rows[part]]

    def _array(self, name: str) -> np.ndarray:
        """The bits of a tensor, read where they are accessed; a single number as one row."""
        found, spec = self._tensors[name], self.specs[name]
        if not isinstance(found, _Place):
            return np.atleast_1d(to_array(found))
        shape = spec.shape or (1,)
        return np.memmap(found.path, spec.array_type, "r", found.offset, shape)

    def _shards(self, index: Path) -> list[str]:
        try:
            files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{index} is damaged: it is no index of shards.\nFetch or copy it again."
            ) from error
        missing = [name for name in files if not (self.directory / name).is_file()]
        if missing:
            raise ModelError(
                f"{self.directory}: shards are missing: {', '.join(missing)}.\n"
                f"{index.name} names {len(files)}. Fetch or copy the others too."
            )
        return files

    def _add(self, stored: str, spec: TensorSpec, tensor: _Place | Tensor) -> None:
        name = stored
        for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
            if stored.endswith(old):
                name = stored.removesuffix(old) + new
        if name in self.specs:
            raise _twice(self.directory, name)
        self.specs[name] = spec
        self._tensors[name] = tensor

    def _unwrap(self) -> None:
        """Remove the prefixes of wrappers from the names."""
        if adapted := [name for name in self.specs if _ADAPTED.search(name)]:
            raise ModelError(
                f"{self.directory}: the weights are a PEFT adapter's, or hold one: {adapted[0]}.\n{MERGE}"
            )
        found: list[str] = []
        clean = {name: name for name in self.specs}
        while prefix := next(
            (one for one in _WRAPPERS if clean and all(n.startswith(one) for n in clean.values())),
            None,
        ):
            found.append(prefix)
            clean = {old: name.removeprefix(prefix) for old, name in clean.items()}
        inner = {part for name in clean.values() for part in _INNER_WRAPPERS.findall(name)}
        clean = {old: _INNER_WRAPPERS.sub("", name) for old, name in clean.items()}
        if not (found or inner):
            return
        names = ", ".join([*found, *sorted(inner)])
        _say_once(
            self.directory,
            f"{self.directory.name}: the names of its weights are a wrapper's; read without {names}",
        )
        specs, tensors = self.specs, self._tensors
        self.specs, self._tensors = {}, {}
        for old, name in clean.items():
            if name in self.specs:
                raise _twice(self.directory, name)
            self.specs[name] = specs[old]
            self._tensors[name] = tensors[old]

    def _add_safetensors(self, path: Path) -> None:
        self.files.append(path)
        try:
            with safe_open(path, framework="np") as file:  # checks the header against the file
                names = list(file.keys())
        except SafetensorError as error:
            raise _damaged(path, error) from error
        header = read_header(path)
        for stored in names:
            entry = header.tensors[stored]
            if entry["dtype"] not in _TYPES:
                raise _unsupported(path, stored, entry["dtype"])
            spec = TensorSpec(tuple(entry["shape"]), entry["dtype"])
            self._add(stored, spec, _Place(path, stored, header.end + entry["data_offsets"][0]))

    def _add_pickles(self) -> None:
        single, index = (
            self.directory / "pytorch_model.bin",
            self.directory / "pytorch_model.bin.index.json",
        )
        if single.is_file():
            files = [single.name]
        elif index.is_file():
            files = self._shards(index)
        else:
            raise ModelError(
                f"{self.directory}: there are no weights.\n"
                "Looked for model.safetensors and pytorch_model.bin, and for their shards."
            )
        _say_once(
            self.directory,
            f"{self.directory.name} has no safetensors: {', '.join(files)} is read with "
            "torch.load(weights_only=True)",
        )
        for name in files:
            self.files.append(self.directory / name)
            for stored, tensor in _load_pickle(self.directory / name).items():
                if _type_name(tensor) not in _CODES:
                    raise _unsupported(self.directory / name, stored, str(tensor.dtype))
                self._add(stored, TensorSpec.of(tensor), tensor.detach())


@cache
def _say_once(directory: Path, message: str) -> None:
    """Log a warning once, however many readers of a directory there are."""
    logger.warning("%s", message)


def _twice(directory: Path, name: str) -> ModelError:
    return ModelError(
        f"{directory}: the weights hold two tensors for {name}, and nothing says which counts.\n"
        "Save the model with save_pretrained()."
    )


def _load_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickle, loaded without running code from it."""
    import torch

    # Files from before PyTorch 1.6 are not zip archives, and cannot be memory-mapped.
    mapped = _begins(path, b"PK")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        if "Unsupported global" not in str(error):
            raise _damaged(path, error) from error
        raise ModelError(
            f"{path} holds more than tensors, and loading it could run code: it is refused.\n"
            f"{_reason(error)}"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, OSError) as error:
        raise _damaged(path, error) from error
    if not isinstance(tensors, Mapping) or not all(
        isinstance(tensor, torch.Tensor) for tensor in tensors.values()
    ):
        raise ModelError(
            f"{path} is no model's weights: it holds something else than tensors by name.\n"
            "Save the model with save_pretrained()."
        )
    return dict(tensors)


def _unsupported(path: Path, name: str, dtype: str) -> ModelError:
    return ModelError(
        f"{path}: tensors of type {dtype}, as {name} is, are not supported.\n"
        f"Save the model in one of {', '.join(_TYPES)}."
    )


def _begins(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def _damaged(path: Path, error: BaseException) -> ModelError:
    if _begins(path, b"version https://git-lfs"):
        return ModelError(
            f"{path} is a Git LFS pointer, not the weights.\nRun git lfs pull where it was cloned."
        )
    return ModelError(f"{path} is damaged or cut off: {_reason(error)}\nFetch or copy it again.")


def _reason(error: BaseException) -> str:
    """The first line of an error message, without torch's advice to load the file unsafely."""
    text = str(error)
    detail = text.partition("WeightsUnpickler error:")[2] or text
    lines = [line.strip() for line in detail.splitlines() if line.strip()]
    return lines[0].partition(". Please")[0] if lines else type(error).__name__


def write_tensors(
    path: Path,
    specs: Mapping[str, TensorSpec],
    produce: Callable[[str], np.ndarray | Iterable[np.ndarray]],
    progress: Progress = silent,
) -> None:
    """Write a safetensors file, producing one tensor at a time.

    The format is the header's length (8 bytes, little endian), a JSON header, and the tensors' bytes.

    Args:
        specs: Names, shapes and types, in the order in which they are written.
        produce: Gives the tensor of a name, whole or as blocks of its rows, with the shape and
            `array_type` of its spec.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, spec in specs.items():
        offsets = [end, end + spec.bytes]
        header[name] = {
            "dtype": spec.code,
            "shape": list(spec.shape),
            "data_offsets": offsets,
        }
        end = offsets[1]
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for done, (name, spec) in enumerate(specs.items(), 1):
            made = produce(name)
            written = 0
            for block in [made] if isinstance(made, np.ndarray) else made:
                assert block.dtype == spec.array_type, name
                assert block.shape[1:] == spec.shape[1:], name
                written += block.size
                file.write(np.ascontiguousarray(block).data)
            assert written == spec.parameters, name
            progress("copy", done, len(specs), {})
