"""Another system's webhooks: https://www.standardwebhooks.com"""

import json
import secrets
import time

from turnmill.infra.mocks.sending import JSON, Signed
from turnmill.schemas.channels.signatures import sign_webhook


def sign(
    key: bytes, body: bytes, event_id: str | None = None, *, at: float | None = None
) -> Signed:
    """Sign a body as of now, or of another time (Unix seconds)."""
    event_id = event_id or f"msg_{secrets.token_hex(12)}"
    timestamp = str(int(time.time() if at is None else at))
    headers = {
        "Content-Type": JSON,
        "webhook-id": event_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": sign_webhook(key, event_id, timestamp, body),
    }
    return Signed(headers, body)


def message(text: str, *, thread: str = "ticket-1", author: str = "alice", **more: object) -> bytes:
    return json.dumps({"thread": thread, "author": author, "text": text, **more}).encode()
