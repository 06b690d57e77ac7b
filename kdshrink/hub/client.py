"""Talking to the Hub: how long a silence may last, and its refusals and faults in plain words.

Nothing here sends a request: checkpoint, reading and hub do, through huggingface_hub.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import HubError

logger = logging.getLogger(__name__)

_CONNECT_SECONDS = 10.0
_SILENCE_SECONDS = 60.0
"""A request without a byte for so long has failed; a gateway of the Hub gives up at about that too."""
_LONGEST_WAIT = 120
"""Seconds that the Hub may ask us to wait (429). Longer is for the user to decide."""
_RETRIED = (408, 429, 500, 502, 503, 504)

_configured = False


def silence_seconds() -> float:
    """How long a request may stay without a byte: HF_HUB_DOWNLOAD_TIMEOUT, or a minute."""
    try:
        return float(os.environ["HF_HUB_DOWNLOAD_TIMEOUT"])
    except (KeyError, ValueError):
        return _SILENCE_SECONDS


def use_timeouts() -> None:
    """Give huggingface_hub's client time-outs, which it has none of: a stall would last for ever."""
    global _configured
    if _configured:
        return
    from huggingface_hub import set_client_factory

    def factory() -> Any:
        client = _usual_client()
        hooks = client.event_hooks
        client.event_hooks = {
            "request": [*hooks["request"], _limit_silence],
            "response": [*hooks["response"], _on_response],
        }
        return client

    set_client_factory(factory)
    _configured = True


def _usual_client() -> Any:
    """The HTTP client that huggingface_hub makes unless it is told another."""
    from huggingface_hub.utils._http import default_client_factory

    return default_client_factory()


def _limit_silence(request: Any) -> None:
    # In a hook, since many of huggingface_hub's calls say timeout=None, which beats the client's own.
    silence = silence_seconds()
    limits = request.extensions.setdefault("timeout", {})
    for phase in ("connect", "read", "write", "pool"):
        if limits.get(phase) is None:
            limits[phase] = min(_CONNECT_SECONDS, silence) if phase == "connect" else silence


def _on_response(response: Any) -> None:
    """Tell of an answer that is tried again, and do not wait for hours if the Hub asks for it."""
    if response.status_code not in _RETRIED:
        return
    wait = _asked_wait(response)
    if wait is not None and wait > _LONGEST_WAIT:
        response.read()
        raise HubError(_status_words(response, None))
    logger.info(
        "the Hub answered %d to %s %s%s",
        response.status_code,
        response.request.method,
        response.request.url.path,
        f", and asks to wait {wait} s" if wait else "",
    )


def _asked_wait(response: Any) -> int | None:
    """Seconds that an answer asks to wait, from `Retry-After` or `RateLimit`."""
    from huggingface_hub.utils import parse_ratelimit_headers

    asked = response.headers.get("retry-after", "").strip()
    if asked.isdigit():
        return int(asked)
    limit = parse_ratelimit_headers(response.headers)
    return limit.reset_in_seconds if limit is not None and limit.remaining == 0 else None


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
            return _status_words(one.response, token, getattr(one, "server_message", None))
        if isinstance(one, HubError):
            return str(one)
    for one in chain_of(error):
        if "Timeout" in type(one).__name__:
            return f"no answer from {_endpoint()} for {silence_seconds():g} s"
        if _is_transport(one) or isinstance(one, ConnectionError):
            return f"no connection to {_endpoint()}, or it broke ({_first_line(one)})"
    return f"{type(error).__name__}: {_first_line(error)}"


def _endpoint() -> str:
    from huggingface_hub import constants

    parts = urlsplit(constants.ENDPOINT)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _status_words(response: Any, token: str | None, said: str | None = None) -> str:
    """What a status of the Hub means, with what it said of it."""
    from huggingface_hub import get_token

    status = response.status_code
    if status == 401:
        known = token or get_token()
        words = "it does not accept this token" if known else "it asks for a token"
    elif status == 429:
        wait = _asked_wait(response)
        words = "too many requests" + (f"; it asks to wait {wait} s" if wait else "")
    elif status >= 500:
        words = "a fault on its side"
    else:
        words = {
            402: "a payment is due",
            403: "forbidden",
            404: "not found, or hidden from this token",
            409: "a conflict with what is there",
            413: "too large",
        }.get(status, "refused")
    said = said or response.headers.get("X-Error-Message")
    detail = f": {said.strip().splitlines()[0]}" if said and said.strip() else ""
    return f"the Hub answered {status}, {words}{detail}"
