"""Text files opened as they are: compressed or not, in the encoding that is said, line ends untouched."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from ..errors import DataError, UsageError, short

ENCODING = "utf-8-sig"
COMPRESSIONS = ("gz", "zst")
_BLOCK = 2**20
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def check_encoding(name: str) -> str:
    """The name, if it is that of a text encoding.

    Raises:
        UsageError: It is not.
    """
    try:
        "a".encode(name)  # no text at all would be encoded without looking for the encoding
        codecs.getincrementaldecoder(name)
    except (LookupError, ValueError):
        raise UsageError(
            f"--encoding {name}: there is no such encoding.\n"
            "Give one that Python knows, such as utf-8, cp1252, latin-1 or utf-16."
        ) from None
    return name


def endings(path: Path) -> tuple[str, str | None]:
    """The ending that tells a file's format, and its compression: `jsonl`, `gz` of `a.jsonl.gz`."""
    parts = path.name.lower().split(".")[1:]
    compression = parts.pop() if parts and parts[-1] in COMPRESSIONS else None
    return (parts[-1] if parts else ""), compression


def _open_bytes(path: Path) -> Any:
    compression = endings(path)[1]
    if compression == "gz":
        return gzip.open(path)
    if compression == "zst":
        return pa.input_stream(str(path), compression="zstd")
    return path.open("rb")


@contextmanager
def open_text(path: Path, encoding: str) -> Iterator[IO[str]]:
    """Open a text file; lines end at newlines alone, which stay as they are.

    Raises:
        DataError: It is not in this encoding, or its compression is damaged.
    """
    with (
        _reading(path, encoding) as stream,
        io.TextIOWrapper(stream, encoding=encoding, newline="\n") as text,
    ):
        yield text


def text_blocks(path: Path, encoding: str) -> Iterator[str]:
    """The text of a file as `open_text` has it, in blocks of whole lines: about a MiB, or one line.

    Raises:
        DataError: As `open_text` does.
    """
    decoder = codecs.getincrementaldecoder(encoding)()
    held: list[str] = []
    with _reading(path, encoding) as stream:
        while content := stream.read(_BLOCK):
            text = decoder.decode(content)
            if end := text.rfind("\n") + 1:
                yield "".join([*held, text[:end]])
                held = []
            held.append(text[end:])
        held.append(decoder.decode(b"", final=True))
    if any(held):
        yield "".join(held)


@contextmanager
def _reading(path: Path, encoding: str) -> Iterator[Any]:
    """The bytes of a file, decompressed; what is wrong with them, or with their encoding, is told."""
    try:
        with _damage(path), _open_bytes(path) as stream:
            yield stream
    except UnicodeError as error:
        raise _undecodable(path, encoding) from error


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error, pa.ArrowInvalid) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        if error.errno is not None:  # the system's: main tells of it
            raise
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} is damaged or cut off: {short(error)}\nCopy it again.")


def _undecodable(path: Path, encoding: str) -> DataError:
    with _damage(path), _open_bytes(path) as stream:
        content = stream.read()
    where = str(path)
    try:
        content.decode(encoding)
    except UnicodeDecodeError as found:
        line = content[: found.start].count(b"\n") + 1
        shown = short(content[max(0, found.start - 20) : found.start + 20])
        where = f"{path}, line {line}: {shown}"
    advice = "utf-16" if content.startswith(_UTF_16) else "cp1252"
    return DataError(
        f"{where}\nThis is not {encoding.removesuffix('-sig')}. Say how the file is encoded with "
        f"--encoding, such as --encoding {advice}."
    )
