"""Send events as Slack does: signed, with three seconds for the answer, and three more tries."""

import json
import time
from collections.abc import Mapping, Sequence
from urllib.parse import urlencode

from pydantic import SecretStr

from turnmill.infra.mocks.sending import FORM, JSON, Payload, Signed, Try, send
from turnmill.schemas.channels.signatures import sign_slack

#: Seconds before each further try: https://docs.slack.dev/apis/events-api#retries
RETRIES_AFTER_S = (0.0, 60.0, 300.0)


def sign(secret: str, body: bytes, media_type: str = JSON, *, at: float | None = None) -> Signed:
    """Sign a body as of now, or of another time (Unix seconds)."""
    timestamp = str(int(time.time() if at is None else at))
    headers = {
        "Content-Type": media_type,
        "User-Agent": "Slackbot 1.0 (+https://api.slack.com/robots)",
        "X-Slack-Request-Timestamp": timestamp,
        "X-Slack-Signature": sign_slack(SecretStr(secret), timestamp, body),
    }
    return Signed(headers, body)


def sign_callback(secret: str, callback: Payload) -> Signed:
    """A request of the Events API. Slack escapes what is not ASCII, and slashes."""
    return sign(secret, json.dumps(callback).replace("/", "\\/").encode())


def sign_command(secret: str, fields: Mapping[str, str]) -> Signed:
    return sign(secret, urlencode(fields).encode(), FORM)


def sign_interaction(secret: str, payload: Payload) -> Signed:
    return sign(secret, urlencode({"payload": json.dumps(payload)}).encode(), FORM)


def deliver(
    url: str, request: Signed, retries_after_s: Sequence[float] = RETRIES_AFTER_S
) -> list[Try]:
    """Send a request until it is accepted or the tries are used up; the body stays the same.

    An answer with `X-Slack-No-Retry: 1` ends them, too.
    """
    tries = [send(url, request)]
    for number, pause_s in enumerate(retries_after_s, start=1):
        if tries[-1].is_accepted or tries[-1].headers.get("X-Slack-No-Retry") == "1":
            break
        time.sleep(pause_s)
        reason = "http_error" if tries[-1].status else "http_timeout"
        extra = {"X-Slack-Retry-Num": str(number), "X-Slack-Retry-Reason": reason}
        tries.append(send(url, request, extra))
    return tries
