"""Ask a platform's API something, for `turnmill channels check`."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

TIMEOUT_S = 10

#: Deliveries take no proxy either: what a check finds must hold for them.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Unanswered(Exception):
    """Nobody answers there; names the kind of the failure, never the address."""


def ask(
    url: str,
    given: object = None,
    headers: Mapping[str, str] | None = None,
    *,
    method: str = "",
    timeout_s: float = TIMEOUT_S,
) -> tuple[int, Any]:
    """Call a URL that the operator configured, and return the status and the JSON of the answer.

    What is given is sent as JSON, or as it is if it is bytes.

    Raises:
        Unanswered: nobody answers, or not with JSON.
    """
    body = given if given is None or isinstance(given, bytes) else json.dumps(given).encode()
    request = urllib.request.Request(
        url,
        body,
        {"Content-Type": "application/json", "User-Agent": "turnmill", **(headers or {})},
        method=method or ("GET" if given is None else "POST"),
    )
    try:
        with _DIRECT.open(request, timeout=timeout_s) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, _read(error)
    except (OSError, ValueError, http.client.HTTPException) as error:
        # `InvalidURL` is one: a token with a space or a newline in it.
        raise Unanswered(type(error).__name__) from None


def _read(answer: urllib.error.HTTPError) -> Any:
    try:
        return json.load(answer)
    except ValueError:
        return {}
