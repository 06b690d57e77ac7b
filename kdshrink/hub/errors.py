"""Maps what the Hub's libraries raise to kdshrink's errors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum, auto
from pathlib import Path

from ..errors import HubError, KdshrinkError
from .client import endpoint, silence_seconds, status_words


class Fault(Enum):
    """What went wrong with a repository on the Hub."""

    BAD_NAME = auto()
    GATED = auto()
    NO_REVISION = auto()
    MISSING = auto()
    """It does not exist, or this token may not see it."""
    OFFLINE = auto()
    """HF_HUB_OFFLINE is set, and it is not in the cache."""
    NETWORK = auto()
    REFUSED = auto()
    """Any other error status of the Hub."""
    OTHER = auto()
    """An error that is not the Hub's: of the file system, a bug, or one of kdshrink's own."""


def fault_of(error: BaseException) -> Fault:
    """Classify an error that huggingface_hub, its HTTP client or datasets raised."""
    from huggingface_hub import constants, errors

    kinds = {
        errors.HFValidationError: Fault.BAD_NAME,
        errors.GatedRepoError: Fault.GATED,  # a subclass of RepositoryNotFoundError
        errors.RevisionNotFoundError: Fault.NO_REVISION,
        errors.RepositoryNotFoundError: Fault.MISSING,
        errors.OfflineModeIsEnabled: Fault.OFFLINE,
    }
    if constants.is_offline_mode():
        kinds[errors.LocalEntryNotFoundError] = Fault.OFFLINE
    for kind, fault in kinds.items():
        if isinstance(error, kind):
            return fault
    if is_network_fault(error):
        return Fault.NETWORK
    return Fault.REFUSED if is_hub_fault(error) else Fault.OTHER


@contextmanager
def hub_errors(error_for: Callable[[Fault, Exception], KdshrinkError | None]) -> Iterator[None]:
    """Replace the errors of the Hub's libraries by kdshrink's.

    Args:
        error_for: Makes the error to raise instead; where it returns None, the original is raised.
    """
    try:
        yield
    except Exception as error:
        replacement = error_for(fault_of(error), error)
        if replacement is None:
            raise
        raise replacement from error


def cache_of(path: str | os.PathLike[str]) -> tuple[Path, str] | None:
    """The cache of the Hub's libraries that a path is in or is a parent of, and the variable that sets it."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    home = Path(os.environ.get("HF_HOME") or default)
    hub = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or home / "hub"
    caches = {
        "HF_DATASETS_CACHE": os.environ.get("HF_DATASETS_CACHE") or home / "datasets",
        "HF_HUB_CACHE": hub,
        "HF_HOME": home,
    }
    found = Path(path).absolute()
    places = [(Path(cache).expanduser().absolute(), name) for name, cache in caches.items()]
    for cache, variable in places:
        if found.is_relative_to(cache):
            return cache, variable
    if not os.path.isdir(found):
        # If the parents of a cache cannot be made, the error names the first of them.
        for cache, variable in reversed(places):
            if cache.is_relative_to(found):
                return cache, variable
    return None


def cache_fault(error: BaseException) -> str | None:
    """The message for a file system's error in such a cache; None for any other error."""
    for one in chain_of(error):
        if isinstance(one, OSError) and one.errno and isinstance(one.filename, (str, os.PathLike)):
            found = cache_of(one.filename)
            if found is not None:
                return (
                    f"The cache {found[0]} cannot be used: {one.filename}: {one.strerror}.\n"
                    f"Set {found[1]} to a writable directory."
                )
    return None


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """An error and its causes, outermost first."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or (
            None if current.__suppress_context__ else current.__context__
        )


def is_network_fault(error: BaseException) -> bool:
    """Whether the Hub could not be reached, or the connection broke or timed out."""
    return any(
        isinstance(one, (ConnectionError, TimeoutError)) or _is_transport(one)
        for one in chain_of(error)
    )


def is_hub_fault(error: BaseException) -> bool:
    """Whether the Hub caused it: it could not be reached, refused, or HF_HUB_OFFLINE is set."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    refused = (HfHubHTTPError, OfflineModeIsEnabled, HubError)
    return is_network_fault(error) or any(isinstance(one, refused) for one in chain_of(error))


def _is_transport(error: BaseException) -> bool:
    # By name, since huggingface_hub's client was requests, then httpx, then httpx2.
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"TransportError", "ConnectError"}) and not hasattr(error, "response")


def reason(error: BaseException, token: str | None) -> str:
    """Why the Hub did not do what was asked, in one line.

    Args:
        error: What huggingface_hub or datasets raised.
        token: The token that was given, if any: a missing one has another message than a refused one.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    for one in chain_of(error):
        if isinstance(one, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set"
        if isinstance(one, LocalTokenNotFoundError):
            return "it needs a token: pass --token, set HF_TOKEN, or run `hf auth login`"
        if isinstance(one, HfHubHTTPError) and one.response is not None:
            return status_words(one.response, token, getattr(one, "server_message", None))
        if isinstance(one, HubError):
            return str(one)
    for one in chain_of(error):
        if "Timeout" in type(one).__name__:
            return f"no answer from {endpoint()} for {silence_seconds():g} s"
        if _is_transport(one) or isinstance(one, ConnectionError):
            return f"no connection to {endpoint()}, or it broke ({_first_line(one)})"
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
