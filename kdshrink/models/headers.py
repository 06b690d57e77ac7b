"""The headers of safetensors files.

They are read by hand: huggingface_hub's reader of local files does not see that one was cut off, and the
safetensors library does not give offsets.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ModelError


@dataclass(frozen=True)
class Header:
    """What a safetensors file begins with: 8 bytes, little endian, of the JSON's length, then the JSON.

    Attributes:
        tensors: For each tensor its `dtype` (a code such as F32), `shape` and `data_offsets`: where it
            begins and ends, in bytes from `end`.
        end: Bytes of the header, its length included.
    """

    tensors: Mapping[str, Mapping[str, Any]]
    end: int


def read_header(path: Path) -> Header:
    """Read the header of a safetensors file.

    Raises:
        ModelError: It is damaged, or the file is not as long as it says.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            tensors = json.loads(file.read(length))
        tensors.pop("__metadata__", None)
        size = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
        if path.stat().st_size != 8 + length + size:
            raise ValueError("it is shorter or longer than its header says")
    except (AttributeError, ValueError, KeyError, TypeError, struct.error) as error:
        raise ModelError(f"{path} is damaged: {error}.\nFetch or copy it again.") from error
    return Header(tensors, 8 + length)
