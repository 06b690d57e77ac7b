"""Downloads models from the Hub into its cache."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import HubError, KdshrinkError, ModelError
from ..files import sha256_of
from .client import use_timeouts
from .errors import Fault, cache_fault, hub_errors, is_network_fault, reason

logger = logging.getLogger(__name__)

_SMALL_FILES = ("*.json", "*.txt", "*.model", "README.md", "LICENSE*")
_SAFETENSORS = "*.safetensors"
_PICKLES = "pytorch_model*.bin"


def fetch_model(
    hub_id: str,
    revision: str | None,
    token: str | None,
    *,
    weights: bool = True,
    code: bool = False,
) -> tuple[Path, str]:
    """Fetch a model's files: safetensors where there are any, else pytorch_model.bin.

    Without a connection, or with HF_HUB_OFFLINE, the cached files of that revision are used.

    Args:
        weights: Whether to download the weights too.
        code: Whether to download Python files too (--trust-remote-code).

    Returns:
        Their directory in the cache, and the commit.

    Raises:
        HubError: The Hub cannot be reached, or refuses.
        ModelError: The name cannot be a Hub id.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    use_timeouts()
    where = f"{hub_id}@{revision}" if revision else hub_id
    began = time.time()
    wanted = [*_SMALL_FILES, *(["*.py"] if code else [])]
    with hub_errors(_error_for(where, token)):
        if constants.is_offline_mode():
            return _cached(hub_id, revision, wanted, weights)
        try:
            info = HfApi(token=token).model_info(hub_id, revision=revision)
        except Exception as error:
            if not is_network_fault(error):
                raise
            return _cached_instead(where, hub_id, revision, wanted, weights, error)
        if weights:
            wanted += _weights([sibling.rfilename for sibling in info.siblings or []])
        path = snapshot_download(
            hub_id, revision=revision, token=token, allow_patterns=wanted, ignore_patterns=["*/*"]
        )
        _check_content(Path(path), began)
        return Path(path), Path(path).name


def fetch_more(hub_id: str, commit: str, token: str | None, pattern: str) -> None:
    """Fetch further files of a model into the directory that `fetch_model` gave, if it has any such.

    Raises:
        HubError: The Hub cannot be reached, or refuses.
    """
    from huggingface_hub import snapshot_download

    use_timeouts()
    with hub_errors(_error_for(f"{hub_id}@{commit}", token)):
        snapshot_download(hub_id, revision=commit, token=token, allow_patterns=[pattern])


def _weights(files: Sequence[str]) -> list[str]:
    """The weight files of a repository: its safetensors, else its pickles."""
    here = [Path(name) for name in files if "/" not in name]
    return [path.name for path in here if path.match(_SAFETENSORS)] or [
        path.name for path in here if path.match(_PICKLES)
    ]


def _cached(
    hub_id: str, revision: str | None, wanted: Sequence[str], weights: bool
) -> tuple[Path, str]:
    """A model from the cache, if all its files are there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    def look(patterns: Sequence[str]) -> Path:
        found = snapshot_download(
            hub_id,
            revision=revision,
            local_files_only=True,
            allow_patterns=list(patterns),
            ignore_patterns=["*/*"],
        )
        return Path(found)

    path = look(wanted)
    if weights:
        kind = next((kind for kind in (_SAFETENSORS, _PICKLES) if any(path.glob(kind))), None)
        if kind is None:
            raise LocalEntryNotFoundError("its weights are not in the cache")
        path = look([*wanted, kind])
    return path, path.name


def _cached_instead(
    where: str,
    hub_id: str,
    revision: str | None,
    wanted: Sequence[str],
    weights: bool,
    error: Exception,
) -> tuple[Path, str]:
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = _cached(hub_id, revision, wanted, weights)
    except LocalEntryNotFoundError:
        raise error from None
    logger.warning("%s: %s; taking the copy in the cache", where, reason(error, None))
    return found


def _check_content(snapshot: Path, since: float) -> None:
    """Compare the large files that were just downloaded with the SHA-256 that the Hub gave as their ETag.

    The cache names a file by its ETag. A damaged file is removed, so that the next try downloads it again.
    """
    for link in snapshot.iterdir():
        blob = link.resolve()
        if not re.fullmatch(r"[0-9a-f]{64}", blob.name) or blob.stat().st_mtime < since:
            continue
        if sha256_of(blob) != blob.name:
            link.unlink()
            blob.unlink()
            raise HubError(
                f"{link.name} was damaged on the way: its checksum is not the one that the Hub gives"
            )


def _error_for(where: str, token: str | None) -> Callable[[Fault, Exception], KdshrinkError | None]:
    """Makes the error for a model that could not be fetched."""

    def error_for(fault: Fault, error: Exception) -> KdshrinkError | None:
        if fault is Fault.BAD_NAME:
            return ModelError(
                f"{where}: neither a directory here nor a possible Hub id.\n{str(error).splitlines()[0]}"
            )
        if fault is Fault.GATED:
            return HubError(
                f"{where}: access to this model is gated.\n"
                "Ask for access on its page, then pass --token or set HF_TOKEN."
            )
        if fault is Fault.NO_REVISION:
            return HubError(f"{where}: this model has no such revision on the Hub.")
        if fault is Fault.MISSING:
            return HubError(_missing(where, token))
        if fault is Fault.OFFLINE:
            return HubError(_not_cached(where))
        if isinstance(error, (HubError, OSError, RuntimeError, ValueError)):
            if message := cache_fault(error):
                return HubError(f"{where}: it cannot be fetched.\n{message}")
            return HubError(f"{where}: {reason(error, token)}.\n{_ADVICE}")
        if fault is Fault.NETWORK:
            return HubError(
                f"{where}: there is no such directory here, and {reason(error, token)}.\n"
                "Check the network, point HF_ENDPOINT to a mirror, or give the path of a local checkpoint."
            )
        return None

    return error_for


_ADVICE = "Run the command again; files that were downloaded completely are not downloaded again."


def _missing(where: str, token: str | None) -> str:
    """The message for a repository that does not exist or is private: the Hub's answer is the same."""
    from huggingface_hub import get_token

    message = f"{where}: there is no such directory here, and no such model on the Hub"
    if token or get_token():
        return f"{message}, or this token may not see it.\nCheck the name and whose token it is."
    return (
        f"{message}, or it is private.\n"
        "Check the name; for a private model pass --token or set HF_TOKEN."
    )


def _not_cached(where: str) -> str:
    return (
        f"{where}: HF_HUB_OFFLINE is set and the model is not in the cache.\n"
        "Unset it, or give a local directory."
    )
