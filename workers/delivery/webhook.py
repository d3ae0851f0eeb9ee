"""Replies as signed webhooks: https://github.com/standard-webhooks/standard-webhooks

The receiver drops what it has: `webhook-id` is the delivery's id, the same at each attempt.
"""

import json
import time
from datetime import UTC, datetime
from http import HTTPStatus

from standardwebhooks import Webhook

from turnmill.schemas.channels.sections.base import ChannelSection
from turnmill.schemas.channels.sections.webhook import WebhookSection
from turnmill.schemas.errors import ChannelUnavailable, DeliveryRefused, SettingsError
from turnmill.schemas.ids import Prefix, show_id
from turnmill.schemas.settings import DeliverySettings
from turnmill.workers.delivery.base import Job, Look, Memory
from turnmill.workers.delivery.calls.posting import Answer, post

#: The receiver will not think better of any other 4xx.
_LATER = frozenset({408, 409, 425, 429})


class WebhookDelivery:
    """Posts each text once it is final."""

    shows_progress = False

    def __init__(self, name: str, section: ChannelSection, settings: DeliverySettings) -> None:
        assert isinstance(section, WebhookSection)
        self._url = section.url
        self._timeout_s = settings.timeout_s
        #: The receiver asked for a pause until then (`time.monotonic`).
        self._closed_until = float("-inf")
        try:
            self._signer = Webhook(section.secret.read().get_secret_value())
        except ValueError:
            raise SettingsError(
                f"The secret of channel {name!r} is not of the form whsec_<base64>."
            ) from None

    def send(self, job: Job, memory: Memory) -> bool:
        if job.text is None:
            return False
        if (wait_s := self._closed_until - time.monotonic()) > 0:
            raise ChannelUnavailable("The webhook's receiver asked to wait.", retry_after_s=wait_s)
        answer = post(self._url, *self._signed(job), self._timeout_s)
        if answer.retry_after_s is not None:
            self._closed_until = time.monotonic() + answer.retry_after_s
        _judge(answer)
        return True

    def show(self, job: Job, look: Look, memory: Memory) -> float | None:
        return None

    def close(self) -> None:
        """Every call has a connection of its own."""

    def _signed(self, job: Job) -> tuple[bytes, dict[str, str]]:
        event_id, now = show_id(Prefix.DELIVERY, job.delivery_id), datetime.now(UTC)
        body = json.dumps({"type": f"turnmill.{job.kind}", "data": _data(job)})
        return body.encode(), {
            "Content-Type": "application/json",
            "User-Agent": "turnmill",
            "webhook-id": event_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": self._signer.sign(event_id, now, body),
        }


def _data(job: Job) -> dict[str, object]:
    """The body's data: the same at each attempt."""
    return {
        "id": show_id(Prefix.DELIVERY, job.delivery_id),
        "conversation_id": show_id(Prefix.CONVERSATION, job.conversation_id),
        "turn_id": None if job.turn_id is None else show_id(Prefix.TURN, job.turn_id),
        "text": (job.text or "").removesuffix(job.below),
        "is_reply": job.is_reply,
        **({"sources": [each.model_dump() for each in job.sources]} if job.sources else {}),
        "target": job.target,
    }


def _judge(answer: Answer) -> None:
    """Raises unless the receiver took it."""
    status = answer.status
    if 200 <= status < 300:
        return
    if status >= 500 or status in _LATER:
        # Only a limit uses up no attempt; any other pause is kept by `send` all the same.
        after_s = answer.retry_after_s if status == HTTPStatus.TOO_MANY_REQUESTS else None
        raise ChannelUnavailable(
            f"The webhook's receiver answered {status}.", retry_after_s=after_s
        )
    raise DeliveryRefused(
        f"The webhook's receiver answered {status}. Check its URL in turnmill.toml and the secret "
        "on both sides; then: turnmill deliveries retry --failed",
        reason=f"http_{status}",
    )
