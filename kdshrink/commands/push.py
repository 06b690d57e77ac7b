"""`kdshrink push`: upload a model directory to the Hub."""

from __future__ import annotations

from ..config.commands import PushConfig
from ..errors import ModelError
from ..models.source import find_model
from ..progress import Progress
from ..publishing.push import PushResult, push_directory
from .options import destination_of


def push(config: PushConfig, progress: Progress | None = None) -> PushResult:
    """Upload a model directory to the Hub.

    Raises:
        ModelError: It does not hold a complete model.
        HubError: The Hub cannot be reached, or refuses.
    """
    directory = config.directory
    if not directory.is_dir():
        raise ModelError(f"{directory}: there is no such directory.")
    find_model(str(directory.absolute()))
    weights = [*directory.glob("*.safetensors"), *directory.glob("pytorch_model*.bin")]
    if not weights:
        raise ModelError(f"{directory}: there are no weights beside its config.json.")
    return push_directory(directory, destination_of(config, directory))
