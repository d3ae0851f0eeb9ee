"""Bring replies to DingTalk: by the webhook of the session, and later by the app's own calls.

A message of a person brings a webhook that answers it for about ninety minutes. After that, and for
what a person writes hours later, the bot sends by itself, which needs the app's permission:
https://open.dingtalk.com/document/orgapp/the-robot-sends-a-group-message

Messages cannot be edited, looked up or sent with a key of ours. Relied on, from DingTalk's pages: a
message of the bot's own holds 15,000 bytes of parameters, one by webhook 20,000.

What people send is fetched by a code, which the API exchanges for an address without a secret of
ours: https://open.dingtalk.com/document/orgapp/download-the-file-content-of-the-robot-receiving-message
Which hosts it names is not documented. Alibaba Cloud's storage was seen, by plain HTTP.
"""

import json
import re
import time
from typing import Any
from urllib.parse import urlsplit

from turnmill.schemas.channels.buttons import Button
from turnmill.schemas.channels.sections.base import ChannelSection
from turnmill.schemas.channels.sections.dingtalk import DingTalkSection
from turnmill.schemas.errors import ChannelUnavailable, DeliveryRefused
from turnmill.schemas.settings import DeliverySettings
from turnmill.workers.delivery.base import Job
from turnmill.workers.delivery.calls.downloads import download, host_of, refuse_foreign
from turnmill.workers.delivery.calls.rest import Reply, call
from turnmill.workers.delivery.calls.tokens import Token
from turnmill.workers.delivery.parts import PartsDelivery
from turnmill.workers.delivery.texts.markdown import open_fence

#: Bytes of a message within the body of a call, where a Chinese character is six of them.
MAX_MESSAGE = 14_000

#: The webhook is used no more so long before it ends, seconds: our clock may be another.
_MARGIN_S = 60.0
#: A limit that does not say how long to wait, seconds: twenty messages a minute.
_RETRY_AFTER_S = 30.0
#: Codes of the webhook: too many messages; DingTalk's own trouble.
_TOO_MANY, _LATER = frozenset({130101, 130102, 660026}), frozenset({-1, 88})
#: Where DingTalk keeps what people send.
_FILE_HOSTS = (".dingtalk.com", ".aliyuncs.com", ".alicdn.com")
#: The app's token is wrong or has ended.
_BAD_TOKEN = frozenset({"InvalidAuthentication", "invalidAuthentication"})

_ADVICE = {
    "invalidClientIdOrSecret": "Compare client_id and the Client Secret in turnmill.toml.",
    "Forbidden.AccessDenied.AccessTokenPermissionDenied": "Give the app the permission "
    "qyapi_robot_sendmsg, and publish a new version.",
    "invalidParameter.robotCode.auth": "Set robot_code to the bot's RobotCode.",
    "invalidParameter.openConversationId.invalid": "The bot is not in the group. Add it.",
}

_IMAGE = re.compile(r"!\[([^\[\]\n]*)\](?=\()")
#: Links of other schemes, in the usual form.
_LINK = re.compile(r"\[([^\[\]\n]*)\]\((?!https?://|mailto:)([^()\s]*)\)", re.IGNORECASE)
#: `dtmd://` would let a link, of whatever form, write a message in the reader's name.
_SCHEME = re.compile(r"\bdtmd(?=:)", re.IGNORECASE)


def to_markdown(text: str) -> str:
    """Translate Markdown into what DingTalk shows of it: a line ends with two spaces.

    A picture becomes a link, for it would be fetched by everybody who reads the message.
    """
    lines: list[str] = []
    opened: str | None = None
    for line in text.split("\n"):
        was_open, opened = opened, open_fence(line if opened is None else f"{opened}\n{line}")
        if was_open or opened:
            lines.append(line)
        else:
            safe = _LINK.sub(r"\1 (\2)", _IMAGE.sub(r"[\1]", line))
            safe = _SCHEME.sub("\\g<0>\u2060", safe)
            lines.append(f"{safe}  " if safe.strip() else safe)
    return "\n".join(lines)


class DingTalkDelivery(PartsDelivery):
    """One bot's way out."""

    shows_progress = False
    limit = MAX_MESSAGE
    typing_every_s = 60.0
    place = "conversation"

    def __init__(self, name: str, section: ChannelSection, settings: DeliverySettings) -> None:
        assert isinstance(section, DingTalkSection)
        super().__init__()
        secret = section.client_secret.read().get_secret_value()
        self._app = {"appKey": section.client_id, "appSecret": secret}
        self._robot = section.robot_code or section.client_id
        self._url = f"{section.api_url.rstrip('/')}/v1.0"
        self._host = host_of(section.api_url)
        self._timeout_s = settings.timeout_s
        self._token = Token(self._fetch_token)

    def measure(self, text: str) -> int:
        return len(json.dumps(_param(to_markdown(text))))

    def write_every_s(self, job: Job) -> float | None:
        return None

    def post(self, job: Job, number: int, part: str, buttons: tuple[Button, ...]) -> str:
        text = to_markdown(part)
        if time.time() < float(job.target.get("expires_at", 0)) - _MARGIN_S:
            return self._answer(job.target["webhook"], text)
        return self._send(job, text)

    def edit(self, job: Job, message: str, part: str, buttons: tuple[Button, ...]) -> None:
        raise DeliveryRefused("DingTalk edits no messages.", reason="no_edits")

    def show_typing(self, job: Job) -> None:
        """DingTalk has no such sign."""

    def fetch(self, ref: str, max_bytes: int) -> bytes:
        """Fetch a file by its code: first its address, which is good for a while."""
        given = {"downloadCode": ref, "robotCode": self._robot}
        url = str(self._call("robot/messageFiles/download", given).get("downloadUrl", ""))
        refuse_foreign(url, *_FILE_HOSTS, self._host)
        parts = urlsplit(url)
        if parts.scheme == "http" and (host := host_of(url)) != self._host:
            # The address is signed, and its scheme is no part of that.
            url = parts._replace(scheme="https", netloc=host).geturl()
        return download("DingTalk", url, {}, self._timeout_s, max_bytes)

    def _answer(self, webhook: str, text: str) -> str:
        """Answer by the webhook of the session, which gives the message no id."""
        given = {"msgtype": "markdown", "markdown": {"title": _title(text), "text": text}}
        reply = call("DingTalk", "POST", webhook, given, {}, self._timeout_s)
        code = reply.data.get("errcode")
        if reply.is_good and code == 0:
            return ""
        if reply.status == 429 or code in _TOO_MANY:
            raise _limit(reply)
        if code in _LATER or not isinstance(code, int):
            raise ChannelUnavailable(f"DingTalk answered {code or reply.status}.")
        raise DeliveryRefused(
            f"DingTalk refused the message: {code}. If the session is over, give the app "
            "the permission qyapi_robot_sendmsg; then: turnmill deliveries retry --failed",
            reason=str(code),
        )

    def _send(self, job: Job, text: str) -> str:
        """Send by the app's own call, to a person or to a group."""
        given = {"robotCode": self._robot, "msgKey": "sampleMarkdown", "msgParam": _param(text)}
        user = job.target.get("user")
        if user == "":
            raise DeliveryRefused(
                "The session is over, and DingTalk lets a bot write first only to people of its "
                "company. Drop the delivery.",
                reason="expired",
            )
        if user is not None:
            answer = self._call("robot/oToMessages/batchSend", {**given, "userIds": [user]})
        else:
            group = job.target["conversation"]
            answer = self._call("robot/groupMessages/send", {**given, "openConversationId": group})
        return str(answer.get("processQueryKey", ""))

    def _call(self, path: str, given: object) -> dict[str, Any]:
        token = self._token.get()
        reply = self._post(path, given, token)
        if reply.data.get("code") in _BAD_TOKEN:
            self._token.forget(token)
            reply = self._post(path, given, self._token.get())
        return _judged(reply)

    def _post(self, path: str, given: object, token: str | None = None) -> Reply:
        headers = {} if token is None else {"x-acs-dingtalk-access-token": token}
        return call("DingTalk", "POST", f"{self._url}/{path}", given, headers, self._timeout_s)

    def _fetch_token(self) -> tuple[str, float]:
        data = _judged(self._post("oauth2/accessToken", self._app))
        return str(data["accessToken"]), float(data["expireIn"])


def _param(text: str) -> str:
    return json.dumps({"title": _title(text), "text": text}, ensure_ascii=False)


def _title(text: str) -> str:
    """What the list of chats shows of it."""
    return " ".join(text.split())[:40].lstrip("#*> ") or "…"


def _limit(reply: Reply) -> ChannelUnavailable:
    after_s = reply.retry_after_s or _RETRY_AFTER_S
    return ChannelUnavailable("DingTalk's limit of messages", retry_after_s=after_s)


def _judged(reply: Reply) -> dict[str, Any]:
    """The body of a call that worked. Raises as `Delivery` says."""
    if reply.is_good:
        return reply.data
    code = str(reply.data.get("code", ""))
    if reply.status == 429 or code.startswith(("Throttling", "Forbidden.AccessDenied.QpsLimit")):
        raise _limit(reply)
    advice = _ADVICE.get(code, "See the error codes of DingTalk's robot API.")
    shown = code or f"http_{reply.status}"
    raise DeliveryRefused(f"DingTalk refused the call: {shown}. {advice}", reason=shown)
