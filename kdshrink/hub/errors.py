"""What the Hub's libraries raise, mapped to kdshrink's errors and told in plain words."""

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
    """It is not there, or hidden from this token."""
    OFFLINE = auto()
    """HF_HUB_OFFLINE is set, and the cache does not hold it."""
    NETWORK = auto()
    REFUSED = auto()
    """Any other answer that is none of success."""
    OTHER = auto()
    """Nothing that tells of the Hub: a file system's error, a bug, or one of our errors."""


def fault_of(error: BaseException) -> Fault:
    """The kind of an error that huggingface_hub, its HTTP client or datasets raised."""
    from huggingface_hub import constants, errors

    kinds = {
        errors.HFValidationError: Fault.BAD_NAME,
        errors.GatedRepoError: Fault.GATED,  # a kind of RepositoryNotFoundError
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
def hub_errors(tell: Callable[[Fault, Exception], KdshrinkError | None]) -> Iterator[None]:
    """Raise kdshrink's error in place of what the Hub's libraries raised.

    Args:
        tell: Words it; None lets what was raised pass.
    """
    try:
        yield
    except Exception as error:
        told = tell(fault_of(error), error)
        if told is None:
            raise
        raise told from error


def cache_of(path: str | os.PathLike[str]) -> tuple[Path, str] | None:
    """The cache of the Hub's libraries that a path lies in or is to hold, and the variable that sets it."""
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
        # Where a cache's parents cannot be made, the system names the first of them.
        for cache, variable in reversed(places):
            if cache.is_relative_to(found):
                return cache, variable
    return None


def cache_fault(error: BaseException) -> str | None:
    """What to tell of an error of the system in such a cache; None for any other error."""
    for one in chain_of(error):
        if isinstance(one, OSError) and one.errno and isinstance(one.filename, (str, os.PathLike)):
            found = cache_of(one.filename)
            if found is not None:
                return (
                    f"The cache {found[0]} cannot be used: {one.filename}: {one.strerror}.\n"
                    f"Set {found[1]} to a directory that can be written."
                )
    return None


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """An error and what caused it, outermost first."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or (
            None if current.__suppress_context__ else current.__context__
        )


def is_network_fault(error: BaseException) -> bool:
    """Whether the Hub could not be reached, or the connection broke or fell silent."""
    return any(
        isinstance(one, (ConnectionError, TimeoutError)) or _is_transport(one)
        for one in chain_of(error)
    )


def is_hub_fault(error: BaseException) -> bool:
    """Whether the Hub is what failed: it could not be reached, refused, or is not to be asked."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    refused = (HfHubHTTPError, OfflineModeIsEnabled, HubError)
    return is_network_fault(error) or any(isinstance(one, refused) for one in chain_of(error))


def _is_transport(error: BaseException) -> bool:
    # huggingface_hub's client was requests, then httpx, then httpx2: their errors share names.
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"TransportError", "ConnectError"}) and not hasattr(error, "response")


def reason(error: BaseException, token: str | None) -> str:
    """Why the Hub did not do what was asked, in one line.

    Args:
        error: What huggingface_hub or datasets raised.
        token: The token that was given, if any, to tell a missing token from a refused one.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    for one in chain_of(error):
        if isinstance(one, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set"
        if isinstance(one, LocalTokenNotFoundError):
            return "it takes a token: pass --token, set HF_TOKEN, or run `hf auth login`"
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
