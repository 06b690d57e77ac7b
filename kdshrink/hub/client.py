"""Settings of huggingface_hub's HTTP client: timeouts, retries, and messages for its status codes.

Nothing here sends a request: the callers do, through huggingface_hub.
"""

from __future__ import annotations

import logging
import os
from typing import Any
from urllib.parse import urlsplit

from ..errors import HubError

logger = logging.getLogger(__name__)

_CONNECT_SECONDS = 10.0
_SILENCE_SECONDS = 60.0
"""The read timeout; the Hub's gateways time out after about as long."""
_LONGEST_WAIT = 120
"""The longest wait in seconds that the Hub may ask for (429); a longer one is an error."""
_RETRIED = (408, 429, 500, 502, 503, 504)

_configured = False


def silence_seconds() -> float:
    """The read timeout in seconds: HF_HUB_DOWNLOAD_TIMEOUT, or a minute."""
    try:
        return float(os.environ["HF_HUB_DOWNLOAD_TIMEOUT"])
    except (KeyError, ValueError):
        return _SILENCE_SECONDS


def use_timeouts() -> None:
    """Set timeouts in huggingface_hub's client, which has none: a stalled request would never end."""
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
    """The HTTP client that huggingface_hub makes by default."""
    from huggingface_hub.utils._http import default_client_factory

    return default_client_factory()


def _limit_silence(request: Any) -> None:
    # In a hook, since many of huggingface_hub's calls pass timeout=None, which overrides the client's.
    silence = silence_seconds()
    limits = request.extensions.setdefault("timeout", {})
    for phase in ("connect", "read", "write", "pool"):
        if limits.get(phase) is None:
            limits[phase] = min(_CONNECT_SECONDS, silence) if phase == "connect" else silence


def _on_response(response: Any) -> None:
    """Log a response that will be retried; raise HubError if the Hub asks for too long a wait."""
    if response.status_code not in _RETRIED:
        return
    wait = _asked_wait(response)
    if wait is not None and wait > _LONGEST_WAIT:
        response.read()
        raise HubError(status_words(response, None))
    logger.info(
        "the Hub answered %d to %s %s%s",
        response.status_code,
        response.request.method,
        response.request.url.path,
        f", and asks to wait {wait} s" if wait else "",
    )


def _asked_wait(response: Any) -> int | None:
    """Seconds that a response asks to wait, from `Retry-After` or `RateLimit`."""
    from huggingface_hub.utils import parse_ratelimit_headers

    asked = response.headers.get("retry-after", "").strip()
    if asked.isdigit():
        return int(asked)
    limit = parse_ratelimit_headers(response.headers)
    return limit.reset_in_seconds if limit is not None and limit.remaining == 0 else None


def endpoint() -> str:
    from huggingface_hub import constants

    parts = urlsplit(constants.ENDPOINT)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def status_words(response: Any, token: str | None, said: str | None = None) -> str:
    """The message for an error status of the Hub, with the Hub's own explanation."""
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
