"""Makes and writes kdshrink.json, the record of how a directory was made."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from ..files import write_json
from ..models.source import Source
from ..record import RECORD, SCHEMA, Licence, Record

logger = logging.getLogger(__name__)


def make_record(
    command: str,
    options: Mapping[str, Any],
    line: str,
    device: object,
    sources: Sequence[Source],
    read: Mapping[str, Any] | None,
    **facts: Any,
) -> Record:
    """Make the record of a command.

    Args:
        command: The subcommand, such as "distill".
        options: Its options, without secrets.
        line: The command line with these options.
        sources: The models that it read; their chains of commands are continued.
        read: The data that it read, if any.
        facts: Further fields of the record, such as training languages and results.
    """
    packages = ("torch", "transformers", "datasets", "tokenizers", "safetensors", "huggingface-hub")
    version = metadata.version("kdshrink")
    step = {
        "command": line,
        "kdshrink_version": version,
        "models": [source.describe() for source in sources],
        "data": _identity(read),
    }
    former = [one.to_dict() for source in sources for one in source.record.chain]
    content = {
        "schema": SCHEMA,
        "kdshrink_version": version,
        "command": command,
        "config": dict(options),
        "seed": options.get("seed"),
        "versions": {
            "python": sys.version.split()[0],
            **{name: metadata.version(name) for name in packages},
        },
        "device": None if device is None else str(device),
        "chain": [*(one for i, one in enumerate(former) if one not in former[:i]), step],
        "licences": [licence.to_dict() for licence in licences(sources)],
        **facts,
    }
    return Record.from_dict(content)


def write_record(folder: Path, record: Record) -> None:
    """Write kdshrink.json, the last file of a folder: it lists the files that the command wrote."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    whole = replace(record, files=tuple(sorted({*names, RECORD})))
    write_json(folder / RECORD, whole.to_dict())


def _identity(data: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The fields of a data set's description that identify it."""
    if data is None:
        return None
    return {
        name: data[name]
        for name in ("name", "hub_id", "revision", "fingerprint", "languages")
        if data.get(name) is not None
    }


def licences(sources: Sequence[Source]) -> list[Licence]:
    """The licences of the sources, without duplicates."""
    found: list[Licence] = []
    for source in sources:
        for licence in source.record.licences or _licence_of_card(source.directory):
            if licence not in found:
                found.append(licence)
    return found


def _licence_of_card(directory: Path) -> tuple[Licence, ...]:
    """The licence in the metadata of a directory's model card."""
    card = directory / "README.md"
    if not card.is_file():
        return ()
    from huggingface_hub import metadata_load

    try:
        said = metadata_load(card) or {}
    except ValueError as error:
        logger.warning("%s: its metadata cannot be read: %s", card, str(error).splitlines()[0])
        return ()
    kept = ("license", "license_name", "license_link")
    licence = {name: said[name] for name in kept if isinstance(said.get(name), str)}
    return (Licence.from_dict(licence),) if "license" in licence else ()
