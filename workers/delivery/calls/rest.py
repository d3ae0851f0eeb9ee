"""Calls to platforms whose APIs take and give JSON."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from turnmill.schemas.content import storable_json
from turnmill.schemas.errors import ChannelUnavailable
from turnmill.workers.delivery.calls.posting import MAX_BODY, Answer, request

AGENT = "turnmill"


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    #: The JSON object of the body; empty where there is none.
    data: dict[str, Any]
    #: What the header `Retry-After` asks for, seconds.
    retry_after_s: float | None
    #: Their names in lower case.
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        return 200 <= self.status < 300


def call(
    platform: str,
    method: str,
    url: str,
    given: object,
    headers: Mapping[str, str],
    timeout_s: float,
    *,
    max_body: int = MAX_BODY,
) -> Reply:
    """Call a method; what is no error of the server is the caller's to judge.

    Raises:
        ChannelUnavailable: later; `is_doubtful` where the call may have worked.
        DeliveryRefused: the address is none that we call.
    """
    # WeChat refuses or shows escapes (40033), and most texts are shorter without them.
    body = b"" if given is None else json.dumps(given, ensure_ascii=False).encode()
    sent = {"Content-Type": "application/json", "User-Agent": AGENT, **headers}
    answer = request(method, url, body, sent, timeout_s, max_body=max_body)
    if method == "GET" and not answer.is_whole:
        # What cannot be read would stand for nothing: no message of ours, say. What a call did that
        # changes something is told by its status.
        raise ChannelUnavailable(f"{platform} ended its answer early.")
    return _judged(platform, answer)


def send_form(
    platform: str,
    url: str,
    fields: Mapping[str, str],
    file: tuple[str, str, str, bytes],
    headers: Mapping[str, str],
    timeout_s: float,
) -> Reply:
    """Call a method that takes a file: its field, its name, its media type, its bytes. Raises as
    `call` does.

    https://datatracker.ietf.org/doc/html/rfc7578; the fields are ours, and have no quotes.
    """
    boundary = secrets.token_hex(16)
    head = f"--{boundary}\r\nContent-Disposition: form-data; name="
    parts = [f'{head}"{name}"\r\n\r\n{value}\r\n'.encode() for name, value in fields.items()]
    field, name, mime, data = file
    parts += [
        f'{head}"{field}"; filename="{name}"\r\nContent-Type: {mime}\r\n\r\n'.encode(),
        data,
        f"\r\n--{boundary}--\r\n".encode(),
    ]
    kind = f"multipart/form-data; boundary={boundary}"
    sent = {"Content-Type": kind, "User-Agent": AGENT, **headers}
    return _judged(platform, request("POST", url, b"".join(parts), sent, timeout_s))


def _judged(platform: str, answer: Answer) -> Reply:
    reply = Reply(answer.status, read_body(answer.body), answer.retry_after_s, answer.headers)
    if answer.status >= 500:
        raise ChannelUnavailable(f"{platform} answered {answer.status}.", is_doubtful=True)
    return reply


def read_body(body: bytes) -> dict[str, Any]:
    """Read a JSON object with strings that PostgreSQL can store: ids and errors of platforms are
    stored. An empty one stands for what is none.
    """
    try:
        data = storable_json(json.loads(body))
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
