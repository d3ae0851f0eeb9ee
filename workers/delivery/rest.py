"""Calls to platforms whose APIs take and give JSON."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from turnmill.schemas.errors import ChannelUnavailable
from turnmill.workers.delivery.posting import request

_AGENT = "turnmill"


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    #: The JSON object of the body; empty where there is none.
    data: dict[str, Any]
    #: What the header `Retry-After` asks for, seconds.
    retry_after_s: float | None

    @property
    def is_good(self) -> bool:
        return 200 <= self.status < 300


def call(
    platform: str, method: str, url: str, given: Any, headers: Mapping[str, str], timeout_s: float
) -> Reply:
    """Call a method; what is no error of the server is the caller's to judge.

    Raises:
        ChannelUnavailable: later; `is_doubtful` where the call may have worked.
        DeliveryRefused: the address is none that we call.
    """
    body = b"" if given is None else json.dumps(given).encode()
    sent = {"Content-Type": "application/json", "User-Agent": _AGENT, **headers}
    answer = request(method, url, body, sent, timeout_s)
    reply = Reply(answer.status, _read(answer.body), answer.retry_after_s)
    if answer.status >= 500:
        raise ChannelUnavailable(f"{platform} answered {answer.status}.", is_doubtful=True)
    return reply


def _read(body: bytes) -> dict[str, Any]:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
