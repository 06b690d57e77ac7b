"""How the models that a command names are reached."""

from __future__ import annotations

from ..config.groups import SourceOptions
from ..models.source import Access


def access_of(config: SourceOptions) -> Access:
    """What --revision, --token and --trust-remote-code say."""
    return Access(config.revision, config.token, config.trust_remote_code)
