"""Calls to Slack's Web API: their errors as ours, and no more of them than Slack takes.

https://docs.slack.dev/apis/web-api/rate-limits
"""

import http.client
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError, SlackClientError
from slack_sdk.webhook import WebhookClient

from turnmill.schemas.errors import ChannelUnavailable, DeliveryRefused
from turnmill.workers.delivery.base import pause_s

#: `chat.postMessage` takes one message a second in each channel, and short bursts.
POST_EVERY_S = 1.0
#: A call waits so long for its second; beyond that the delivery comes back later.
LONGEST_WAIT_S = 3.0

#: What to do about errors that stay, besides `turnmill deliveries retry`.
_ADVICE = {
    "invalid_auth": "The bot token is wrong. Copy it again from OAuth & Permissions of the app.",
    "not_authed": "The bot token is missing. Set what bot_token in turnmill.toml names.",
    "token_revoked": "The bot token was revoked. Install the app again and set its new token.",
    "token_expired": "The bot token has expired. Set a new one, or turn off token rotation.",
    "account_inactive": "The app was removed from the workspace. Install it again.",
    "missing_scope": "The app lacks a scope. Add the scopes of its manifest and install it again.",
    "channel_not_found": "The channel is gone, or the app is not in it. Invite the app: /invite.",
    "not_in_channel": "The app is not in the channel. Invite it: /invite.",
    "is_archived": "The channel is archived. Unarchive it, or drop the delivery.",
    "is_inactive": "The channel is frozen or deleted. Drop the delivery.",
    "restricted_action": "A setting of the workspace forbids the app to post there.",
}
#: Slack's side, or a limit: the same call may work later. After the first three, what was asked
#: for may have been done.
_LATER = {
    "fatal_error", "internal_error", "request_timeout", "service_unavailable", "team_added_to_org",
    "ratelimited", "rate_limited", "message_limit_exceeded", "update_failed",
    "messaging_processing_failed",
}  # fmt: skip
_DOUBTFUL = frozenset({"fatal_error", "internal_error", "request_timeout"})

#: Of an answer that does not say how long to wait, seconds.
_RETRY_AFTER_S = 5.0


class Calls:
    """Slack's client, shared by threads."""

    def __init__(self, token: str, api_url: str, timeout_s: float) -> None:
        # At `debug` the client logs what it sends.
        self._logger = logging.getLogger("turnmill.slack")
        self._logger.setLevel(logging.CRITICAL)
        self._timeout_s = max(1, int(timeout_s))
        self._client = WebClient(
            token,
            base_url=api_url,
            timeout=self._timeout_s,
            retry_handlers=[],
            logger=self._logger,
        )
        #: Until when a method is not called for a channel (`time.monotonic`).
        self._closed: dict[tuple[str, str], float] = {}
        self._next_post: dict[str, float] = {}
        self._bot_id: str | None = None
        self._lock = threading.Lock()

    def call(
        self,
        method: str,
        channel: str,
        *,
        as_form: bool = False,
        ready: Callable[[], None] | None = None,
        **arguments: Any,
    ) -> dict[str, Any]:
        """Call a method for a channel. Methods that only read take no JSON (`as_form`).

        `ready` is called right before the request, when all waiting is over.

        Raises:
            ChannelUnavailable: later; `is_doubtful` where the call may have worked.
            DeliveryRefused: never; `reason` is Slack's error.
        """
        self._wait(method, channel)
        if ready is not None:
            ready()
        place = "channel_id" if method.startswith("assistant.") else "channel"
        given = {place: channel, **arguments}
        body = {"params": given} if as_form else {"json": given}
        try:
            answer: Any = self._client.api_call(method, **body)
        except SlackApiError as error:
            raise self._translated(method, channel, error.response) from None
        except (SlackClientError, OSError, http.client.HTTPException, ValueError) as error:
            raise ChannelUnavailable(
                f"Slack did not answer {method}: {type(error).__name__}.", is_doubtful=True
            ) from None
        return dict(answer.data)

    def respond(self, url: str, body: dict[str, Any]) -> None:
        """Post to a response URL; raises as `call` does.

        https://docs.slack.dev/interactivity/handling-user-interaction#message_responses
        """
        client = WebhookClient(url, timeout=self._timeout_s, retry_handlers=[], logger=self._logger)
        try:
            answer = client.send_dict(body)
        except (SlackClientError, OSError, http.client.HTTPException, ValueError) as error:
            raise ChannelUnavailable(
                f"Slack did not answer at a response URL: {type(error).__name__}.",
                is_doubtful=True,
            ) from None
        status = answer.status_code
        if status == 429 or status >= 500:
            raise ChannelUnavailable(
                f"Slack answered {status} at a response URL.",
                retry_after_s=_seconds(answer.headers.get("Retry-After"))
                if status == 429
                else None,
                is_doubtful=status >= 500,
            )
        if status >= 400:
            raise DeliveryRefused(
                "The slash command can be answered no more: Slack takes five answers within "
                "30 minutes. Ask in a message to the app instead.",
                reason="response_url_expired",
            )

    @property
    def bot_id(self) -> str:
        """The id under which our messages are shown. Raises as `call` does."""
        with self._lock:
            known = self._bot_id
        if known is None:
            known = str(self.call("auth.test", "")["bot_id"])
            with self._lock:
                self._bot_id = known
        return known

    def _wait(self, method: str, channel: str) -> None:
        """Wait for the channel's next second, or raise if it is far."""
        now = time.monotonic()
        with self._lock:
            wait_s = self._closed.get((method, channel), 0.0) - now
            if wait_s <= 0 and method == "chat.postMessage":
                wait_s = self._next_post.get(channel, 0.0) - now
                if wait_s <= LONGEST_WAIT_S:
                    self._next_post[channel] = max(now, now + wait_s) + POST_EVERY_S
        if wait_s > LONGEST_WAIT_S:
            raise ChannelUnavailable(f"Slack's limit of {method}", retry_after_s=wait_s)
        if wait_s > 0:
            time.sleep(wait_s)

    def _translated(self, method: str, channel: str, answer: Any) -> Exception:
        data = answer.data if isinstance(answer.data, dict) else {}
        reason, status = str(data.get("error", "")), int(answer.status_code)
        if status == 429 or reason in ("ratelimited", "rate_limited"):
            after_s = _seconds(answer.headers.get("Retry-After"))
            with self._lock:
                self._closed[method, channel] = time.monotonic() + after_s
            return ChannelUnavailable(f"Slack's limit of {method}", retry_after_s=after_s)
        if status >= 500 or reason in _LATER:
            is_doubtful = status >= 500 or reason in _DOUBTFUL
            return ChannelUnavailable(
                f"Slack answered {method} with {reason or status}.", is_doubtful=is_doubtful
            )
        advice = _ADVICE.get(reason, "See the method's page at https://docs.slack.dev.")
        return DeliveryRefused(
            f"Slack refused {method}: {reason or status}. {advice}", reason=reason
        )


def _seconds(text: Any) -> float:
    """`Retry-After`, which slack_sdk may give as a list."""
    value = text[0] if isinstance(text, list) and text else text
    try:
        return pause_s(float(value))
    except (TypeError, ValueError):
        return _RETRY_AFTER_S
