"""Opens text files, compressed or not, in a given encoding, without changing line ends."""

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
    """Return the name of a text encoding.

    Raises:
        UsageError: There is no such encoding.
    """
    try:
        "a".encode(name)  # encoding an empty string would not look the encoding up
        codecs.getincrementaldecoder(name)
    except (LookupError, ValueError):
        raise UsageError(
            f"--encoding {name}: there is no such encoding.\n"
            "Give one that Python knows, such as utf-8, cp1252, latin-1 or utf-16."
        ) from None
    return name


def endings(path: Path) -> tuple[str, str | None]:
    """The endings of a file's format and compression: `jsonl` and `gz` for `a.jsonl.gz`."""
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
    """Open a text file; lines end only at newlines, which are not changed.

    Raises:
        DataError: It is not in this encoding, or its compression is damaged.
    """
    with (
        _reading(path, encoding) as stream,
        io.TextIOWrapper(stream, encoding=encoding, newline="\n") as text,
    ):
        yield text


def text_blocks(path: Path, encoding: str) -> Iterator[str]:
    """The text of a file, as by `open_text`, in blocks of complete lines, of about a MiB or one line.

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
    """Open a file's decompressed bytes; raises DataError on a damaged file or a wrong encoding."""
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
        if error.errno is not None:  # an error of the operating system, which main reports
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
        f"{where}\nThis is not {encoding.removesuffix('-sig')}. Give the file's encoding with "
        f"--encoding, such as --encoding {advice}."
    )
