"""Calls to Feishu's API: their errors as ours.

https://open.feishu.cn/document/server-docs/im-v1/message/reply and its table of errors. That
99991400 and 230020 are limits is what those pages say; `lark_oapi` 1.7.5 has other words for them.
"""

from typing import Any

from turnmill.schemas.channels.sections.feishu import FeishuSection
from turnmill.schemas.errors import ChannelUnavailable, DeliveryRefused
from turnmill.workers.delivery.calls.downloads import received
from turnmill.workers.delivery.calls.posting import Answer
from turnmill.workers.delivery.calls.rest import Reply, call, read_body
from turnmill.workers.delivery.calls.tokens import Token

#: `tenant_access_token` is wrong or has ended.
_BAD_TOKEN = frozenset({99991661, 99991663, 99991664, 99991665, 99991668})
#: Limits, and messages that Feishu is still busy with.
_LATER = frozenset({99991400, 11020, 11021, 230020, 230049})
#: A limit that does not say how long to wait, seconds.
_RETRY_AFTER_S = 5.0

#: One of the app's scopes is missing, whichever the call needs; the one that files need.
_NO_SCOPE, _NO_RESOURCE_SCOPE = 99991672, 234009

#: What to do about errors that stay, besides `turnmill deliveries retry`.
_ADVICE = {
    10003: "Compare app_id in turnmill.toml with Credentials & Basic Info of the app.",
    10014: "Compare the app secret with Credentials & Basic Info of the app.",
    _NO_SCOPE: "Add the scope im:message:send_as_bot to the app, and publish a new version.",
    230002: "The bot is not in the group. Add it.",
    230006: "Add the bot to the features of the app, and publish a new version.",
    230011: "The message that it answers was recalled. Drop the delivery.",
    230013: "The user is outside of the app's availability. Widen it, and publish a new version.",
    230018: "The group forbids the bot to speak. Change its settings.",
    230027: "Add the scope im:message:send_as_bot to the app, and publish a new version.",
    234004: "The bot is not in the chat that the file is in. Add it.",
    _NO_RESOURCE_SCOPE: "Add the scope im:message:readonly to the app, and publish a new version.",
    234037: "Feishu hands out no files above 100 MB.",
    231003: "The message that it answers is gone. Drop the delivery.",
}


class Calls:
    """One app's calls, shared by threads."""

    def __init__(self, section: FeishuSection, timeout_s: float) -> None:
        self._app = {
            "app_id": section.app_id,
            "app_secret": section.app_secret.read().get_secret_value(),
        }
        self._url = section.api_url.rstrip("/")
        self._timeout_s = timeout_s
        self._token = Token(self._fetch_token)

    def call(self, method: str, path: str, given: object) -> dict[str, Any]:
        """Call a method with the app's token, and return its data.

        Raises:
            ChannelUnavailable: later; `is_doubtful` where the call may have worked.
            DeliveryRefused: never; `reason` is Feishu's code.
        """
        token = self._token.get()
        reply = self._send(method, path, given, token)
        if reply.data.get("code") in _BAD_TOKEN:
            # Ended early: somebody reset the app's secret, or a clock is wrong.
            self._token.forget(token)
            reply = self._send(method, path, given, self._token.get())
        data = _judged(path, reply).get("data")
        return data if isinstance(data, dict) else {}

    def fetch(self, path: str, max_bytes: int) -> bytes:
        """Fetch a file with the app's token. Raises as `call` does."""
        token = self._token.get()
        answer = self._receive(path, token, max_bytes)
        if answer.status != 200 and read_body(answer.body).get("code") in _BAD_TOKEN:
            self._token.forget(token)
            answer = self._receive(path, self._token.get(), max_bytes)
        if answer.status != 200:
            data = read_body(answer.body)
            _judged(path, Reply(answer.status, data, answer.retry_after_s, answer.headers))
        return answer.body

    def _receive(self, path: str, token: str, max_bytes: int) -> Answer:
        url, headers = f"{self._url}/open-apis/{path}", {"Authorization": f"Bearer {token}"}
        return received("Feishu", url, headers, self._timeout_s, max_bytes)

    def _fetch_token(self) -> tuple[str, float]:
        path = "auth/v3/tenant_access_token/internal"
        data = _judged(path, self._send("POST", path, self._app))
        return str(data["tenant_access_token"]), float(data["expire"])

    def _send(self, method: str, path: str, given: object, token: str | None = None) -> Reply:
        headers = {"Content-Type": "application/json; charset=utf-8"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        url = f"{self._url}/open-apis/{path}"
        return call("Feishu", method, url, given, headers, self._timeout_s)


def _judged(path: str, reply: Reply) -> dict[str, Any]:
    """The body of a call that worked. Raises as `call` does."""
    code = reply.data.get("code")
    if reply.is_good and code == 0:
        return reply.data
    if reply.status == 429 or code in _LATER:
        after_s = reply.retry_after_s or _RETRY_AFTER_S
        raise ChannelUnavailable("Feishu's limit of calls", retry_after_s=after_s)
    if not isinstance(code, int):
        raise ChannelUnavailable(f"Feishu answered {reply.status}.", is_doubtful=True)
    is_file = code == _NO_SCOPE and "/resources/" in path
    advice = _ADVICE.get(
        _NO_RESOURCE_SCOPE if is_file else code, "See the error at https://open.feishu.cn/search."
    )
    name = path.partition("/")[2].rpartition("/")[2]
    raise DeliveryRefused(f"Feishu refused {name}: {code}. {advice}", reason=str(code))
