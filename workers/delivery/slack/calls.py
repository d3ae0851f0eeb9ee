"""Calls to Slack's Web API: their errors as ours, and no more of them than Slack takes.

https://docs.slack.dev/apis/web-api/rate-limits
"""

import json
import threading
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from turnmill.schemas.errors import ChannelUnavailable, DeliveryRefused
from turnmill.workers.delivery.calls.downloads import download, host_of, refuse_foreign
from turnmill.workers.delivery.calls.posting import Answer, request
from turnmill.workers.delivery.calls.rest import read_body

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

#: A response URL takes nothing any more.
URL_EXPIRED = "response_url_expired"

#: Of an answer that does not say how long to wait, seconds.
_RETRY_AFTER_S = 5.0


#: A page of messages is read up to so many bytes.
_MAX_BODY = 16 * 1024 * 1024


class Calls:
    """Slack's methods, shared by threads."""

    def __init__(self, token: str, api_url: str, timeout_s: float) -> None:
        self._url = api_url.rstrip("/")
        self._token = token
        self._timeout_s = timeout_s
        #: Until when a method is not called for a channel (`time.monotonic`).
        self._closed: dict[tuple[str, str], float] = {}
        self._next_post: dict[str, float] = {}
        self._bot_id: str | None = None
        self._lock = threading.Lock()

    def download(self, url: str, max_bytes: int) -> bytes:
        """Fetch a file of the workspace. Raises `ChannelUnavailable` and `DeliveryRefused`."""
        refuse_foreign(url, ".slack.com", host_of(self._url))
        headers = {"Authorization": f"Bearer {self._token}"}
        return download("Slack", url, headers, self._timeout_s, max_bytes)

    def upload(self, name: str, data: bytes, channel: str, thread: str | None) -> str:
        """Share a file in a channel and return its id. Needs `files:write`. Raises as `call`.

        https://docs.slack.dev/messaging/working-with-files#upload
        """
        wanted = {"filename": name, "length": len(data)}
        place = self.call("files.getUploadURLExternal", channel, as_form=True, **wanted)
        url, file_id = str(place["upload_url"]), str(place["file_id"])
        refuse_foreign(url, ".slack.com", host_of(self._url))
        # The address is a secret of its own, and gets no other.
        headers = {"Content-Type": "application/octet-stream", "User-Agent": "turnmill"}
        answer = request("POST", url, data, headers, self._timeout_s)
        if answer.status != 200:
            raise ChannelUnavailable(f"Slack took no file: {answer.status}.")
        shared: dict[str, Any] = {"channel_id": channel, "files": [{"id": file_id, "title": name}]}
        if thread:
            shared["thread_ts"] = thread
        self.call("files.completeUploadExternal", channel, **shared)
        return file_id

    def call(
        self, method: str, channel: str, *, as_form: bool = False, **arguments: Any
    ) -> dict[str, Any]:
        """Call a method for a channel. Methods that only read take no JSON (`as_form`).

        Raises:
            ChannelUnavailable: later; `is_doubtful` where the call may have worked.
            DeliveryRefused: never; `reason` is Slack's error.
        """
        self._wait(method, channel)
        place = "channel_id" if method.startswith("assistant.") else "channel"
        given = {place: channel, **arguments}
        answer = self._post(f"{self._url}/{method}", given, as_form=as_form)
        data = read_body(answer.body)
        if answer.status != 200 or not data.get("ok"):
            raise self._translated(method, channel, answer, str(data.get("error", "")))
        return data

    def respond(self, url: str, body: Mapping[str, object]) -> None:
        """Post to a response URL; raises as `call` does.

        https://docs.slack.dev/interactivity/handling-user-interaction#message_responses
        """
        answer = self._post(url, body)
        status = answer.status
        if status == 429 or status >= 500:
            raise ChannelUnavailable(
                f"Slack answered {status} at a response URL.",
                retry_after_s=_pause_s(answer) if status == 429 else None,
                is_doubtful=status >= 500,
            )
        if status >= 400:
            raise DeliveryRefused(
                "The slash command can be answered no more: Slack takes five answers within "
                "30 minutes.",
                reason=URL_EXPIRED,
            )

    def _post(self, url: str, given: Mapping[str, object], *, as_form: bool = False) -> Answer:
        if as_form:
            kind, body = "application/x-www-form-urlencoded", urlencode(given)
        else:
            kind, body = "application/json; charset=utf-8", json.dumps(given)
        headers = {"Content-Type": kind, "User-Agent": "turnmill"}
        if url.startswith(f"{self._url}/"):
            # A response URL is a secret of its own, and gets no other.
            headers["Authorization"] = f"Bearer {self._token}"
        return request("POST", url, body.encode(), headers, self._timeout_s, max_body=_MAX_BODY)

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

    def _translated(
        self, method: str, channel: str, answer: Answer, reason: str
    ) -> ChannelUnavailable | DeliveryRefused:
        status = answer.status
        if status == 429 or reason in ("ratelimited", "rate_limited"):
            after_s = _pause_s(answer)
            with self._lock:
                self._closed[method, channel] = time.monotonic() + after_s
            return ChannelUnavailable(f"Slack's limit of {method}", retry_after_s=after_s)
        # A good answer that cannot be read was cut short.
        is_doubtful = status >= 500 or reason in _DOUBTFUL or (not reason and status < 300)
        if is_doubtful or reason in _LATER:
            return ChannelUnavailable(
                f"Slack answered {method} with {reason or status}.", is_doubtful=is_doubtful
            )
        shown = reason or f"http_{status}"
        advice = _ADVICE.get(reason, "See the method's page at https://docs.slack.dev.")
        return DeliveryRefused(f"Slack refused {method}: {shown}. {advice}", reason=shown)


def _pause_s(answer: Answer) -> float:
    return _RETRY_AFTER_S if answer.retry_after_s is None else answer.retry_after_s
