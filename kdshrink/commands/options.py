"""The options of a command, converted to the types that the folders below take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.command_line import command_line
from ..config.commands import PushConfig
from ..config.groups import HubOptions, ShapeOptions, SourceOptions
from ..distributed import is_first
from ..models.source import Access, Source
from ..output import name_of
from ..publishing.push import Destination, ready
from ..publishing.record import make_record
from ..record import Record

if TYPE_CHECKING:  # it imports numpy, which `info` does without
    from ..shrinking.plan import Shape


def access_of(config: SourceOptions) -> Access:
    """The access that --revision, --token and --trust-remote-code describe."""
    return Access(config.revision, config.token, config.trust_remote_code)


def shape_of(config: ShapeOptions) -> Shape:
    """The shape of a student that the options of one describe."""
    from ..shrinking.plan import Shape

    return Shape(**{field.name: getattr(config, field.name) for field in fields(ShapeOptions)})


def destination_of(config: HubOptions | PushConfig, directory: Path) -> Destination:
    """The repository that a directory is pushed to: --hub-model-id, else the directory's name."""
    return Destination(
        config.hub_model_id or name_of(directory),
        private=config.private,
        revision=config.hub_revision,
        create_pr=config.create_pr,
        token=config.token,
    )


def ready_destination(
    config: HubOptions, output_dir: Path, *, create: bool = True
) -> Destination | None:
    """The repository to push the result to, checked before any work; None without --push-to-hub.

    Also None in all processes of a distributed run but the first. `create` is as of `ready`.

    Raises:
        HubError: The Hub cannot be reached, or refuses the name or the token.
        UsageError: The name cannot be that of a repository.
    """
    if not config.push_to_hub or not is_first():
        return None
    return ready(destination_of(config, output_dir), create=create)


def record_of(
    command: str,
    config: Any,
    device: object,
    sources: Sequence[Source],
    read: Mapping[str, Any] | None,
    **facts: Any,
) -> Record:
    """The record of a command with these options, without the token; arguments as of `make_record`."""
    secret = {item.name for item in fields(config) if item.metadata["secret"]}
    options = {name: value for name, value in asdict(config).items() if name not in secret}
    line = command_line(command, config)
    return make_record(command, options, line, device, sources, read, **facts)
