"""Send signed requests, and see what came of them."""

import http.client
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

#: Slack gives up an answer after this time.
DEADLINE_S = 3.0

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"

#: A JSON object as a platform has it, whose fields each test looks into.
Payload = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Signed:
    """A request that is ready to be sent."""

    headers: dict[str, str]
    body: bytes
    #: What stands in the address.
    query: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Try:
    """One try to deliver a request. The status is 0 where no answer came in time."""

    status: int
    body: bytes
    duration_s: float
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_accepted(self) -> bool:
        return 200 <= self.status < 300


def send(url: str, request: Signed, extra: Mapping[str, str] | None = None) -> Try:
    """Send a request once."""
    parts, started = urlsplit(url), time.monotonic()
    opening = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    link = opening(parts.netloc, timeout=DEADLINE_S)
    try:
        path = f"{parts.path}?{urlencode(request.query)}" if request.query else parts.path
        link.request("POST", path, request.body, {**request.headers, **(extra or {})})
        answer = link.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException):
        return Try(0, b"", time.monotonic() - started)
    finally:
        link.close()
    return Try(answer.status, body, time.monotonic() - started, dict(answer.getheaders()))
