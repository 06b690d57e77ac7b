"""Reads and writes weights files one tensor at a time."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import ModelError
from ..progress import Progress, silent
from .source import MERGE

logger = logging.getLogger(__name__)

_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}
_WRAPPERS = ("module.", "_orig_mod.", "base_model.model.")
"""Prefixes of all names where a wrapper was saved: of DataParallel, torch.compile, merged PEFT."""
_INNER_WRAPPERS = re.compile(
    r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_ADAPTED = re.compile(r"(?:^|\.)(?:lora_\w+|modules_to_save|original_module|base_layer|ia3_l)\.")


@dataclass(frozen=True)
class TensorSpec:
    """Shape and type of a tensor that may not be in memory."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def parameters(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def bytes(self) -> int:
        return self.parameters * self.dtype.itemsize


class TensorReader:
    """The tensors of a model directory, by name: from safetensors, else from pytorch_model.bin.

    A pickle is read with `torch.load(weights_only=True)`, memory-mapped. Names that end in gamma or beta,
    as in checkpoints converted from TensorFlow, are read as weight and bias. Prefixes of wrappers
    (`module.`, `_orig_mod.`, `base_model.model.`) are removed, with a warning.

    Attributes:
        specs: Shape and type of every tensor, in the files' order.

    Raises:
        ModelError: The weights are missing, damaged or an adapter's, two tensors have the same name, or
            a pickle holds more than tensors.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.specs: dict[str, TensorSpec] = {}
        self._files: dict[str, Path] = {}
        self._stored: dict[str, str] = {}
        self._pickled: dict[str, Tensor] = {}
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
        self._pickled.clear()

    def read(self, name: str) -> Tensor:
        """Load a tensor into memory."""
        stored = self._stored[name]
        if stored in self._pickled:
            return self._pickled[stored]
        # Opened anew each time, since mapped pages count as memory until the file is closed.
        with safe_open(self._files[name], framework="pt") as file:
            return file.get_tensor(stored)

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

    def _add(self, stored: str, spec: TensorSpec) -> str:
        name = stored
        for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
            if stored.endswith(old):
                name = stored.removesuffix(old) + new
        if name in self.specs:
            raise _twice(self.directory, name)
        self.specs[name] = spec
        self._stored[name] = stored
        return name

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
        specs, files, stored = self.specs, self._files, self._stored
        self.specs, self._files, self._stored = {}, {}, {}
        for old, name in clean.items():
            if name in self.specs:
                raise _twice(self.directory, name)
            self.specs[name] = specs[old]
            self._stored[name] = stored[old]
            if old in files:
                self._files[name] = files[old]

    def _add_safetensors(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                for stored in file.keys():  # noqa: SIM118 (no mapping, despite its keys)
                    part = file.get_slice(stored)
                    code = part.get_dtype()
                    if code not in _DTYPES:
                        raise _unsupported(path, stored, code)
                    spec = TensorSpec(tuple(part.get_shape()), _DTYPES[code])
                    self._files[self._add(stored, spec)] = path
        except SafetensorError as error:
            raise _damaged(path, error) from error

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
            for stored, tensor in _load_pickle(self.directory / name).items():
                if tensor.dtype not in _CODES:
                    raise _unsupported(self.directory / name, stored, str(tensor.dtype))
                self._add(stored, TensorSpec(tuple(tensor.shape), tensor.dtype))
                self._pickled[stored] = tensor.detach()


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
        isinstance(tensor, Tensor) for tensor in tensors.values()
    ):
        raise ModelError(
            f"{path} is no model's weights: it holds something else than tensors by name.\n"
            "Save the model with save_pretrained()."
        )
    return dict(tensors)


def _unsupported(path: Path, name: str, dtype: str) -> ModelError:
    return ModelError(
        f"{path}: tensors of type {dtype}, as {name} is, are not supported.\n"
        f"Save the model in one of {', '.join(_DTYPES)}."
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
    produce: Callable[[str], Tensor | Iterable[Tensor]],
    progress: Progress = silent,
) -> None:
    """Write a safetensors file, producing one tensor at a time.

    The format is the header's length (8 bytes, little endian), a JSON header, and the tensors' bytes.

    Args:
        specs: Names, shapes and types, in the order in which they are written.
        produce: Gives the tensor of a name, whole or as blocks of its rows, with the shape and type of
            its spec.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, spec in specs.items():
        offsets = [end, end + spec.bytes]
        header[name] = {
            "dtype": _CODES[spec.dtype],
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
            for tensor in [made] if isinstance(made, Tensor) else made:
                assert tensor.dtype == spec.dtype, name
                assert tensor.shape[1:] == spec.shape[1:], name
                written += tensor.numel()
                file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            assert written == spec.parameters, name
            progress("copy", done, len(specs), {})
        file.flush()
        os.fsync(file.fileno())
