"""Calls to the Bot Connector: their errors as ours.

https://learn.microsoft.com/azure/bot-service/rest-api/bot-framework-rest-connector-api-reference
and https://learn.microsoft.com/microsoftteams/platform/bots/how-to/rate-limit, which has 412, 502
and 504 tried again as 429 is.
"""

from typing import Any
from urllib.parse import quote, urlencode

from turnmill.schemas.channels.sections.teams import TeamsSection
from turnmill.schemas.channels.teams import SCOPE, Services
from turnmill.schemas.errors import ChannelUnavailable, DeliveryRefused
from turnmill.workers.delivery.calls.downloads import download, file_of, received
from turnmill.workers.delivery.calls.posting import Answer, request
from turnmill.workers.delivery.calls.rest import Reply, call, read_body
from turnmill.workers.delivery.calls.tokens import Token

#: The message that is to be edited is gone.
GONE = "message_gone"

#: A limit that does not say how long to wait, seconds.
_RETRY_AFTER_S = 5.0

#: What to do about refusals, by the connector's code or the status.
_ADVICE = {
    "BotNotInConversationRoster": "The bot was removed from the chat or team. Add it again, or "
    "drop the delivery.",
    "BotDisabledByAdmin": "An administrator blocked the app. Unblock it, or drop the delivery.",
    "ConversationBlockedByUser": "The user blocked the bot. Drop the delivery.",
    "ConversationNotFound": "The chat is gone, or it is another bot's. Drop the delivery.",
    "MessageSizeTooBig": "Teams takes no message of this length.",
    "401": "Microsoft takes no token of this app. Compare app_id, the client secret and tenant_id.",
    "403": "The bot may not write there. Is the app installed, and its Teams channel on?",
}
_SECRETS = (
    "Compare app_id, the client secret (has it expired?) and tenant_id in turnmill.toml with the "
    "app registration of the Azure Bot, and retry the delivery."
)


class Calls:
    """One app's calls, shared by threads."""

    def __init__(self, section: TeamsSection, timeout_s: float) -> None:
        self._app = {
            "grant_type": "client_credentials",
            "client_id": section.app_id,
            "client_secret": section.app_secret.read().get_secret_value(),
            "scope": SCOPE,
        }
        self._services = Services.of(section)
        self._timeout_s = timeout_s
        self._token = Token(self._fetch_token)

    def call(self, method: str, target: dict[str, str], activity: str, given: object) -> str:
        """Post an activity into a target's conversation, or put one; return its id.

        The token goes to Microsoft's hosts alone, whatever the target says.

        Raises:
            ChannelUnavailable: later; `is_doubtful` where the call may have worked.
            DeliveryRefused: never; `reason` is `GONE`, or the connector's code.
        """
        service = target["service"]
        if not self._services.is_trusted(service):
            raise DeliveryRefused(
                "Replies go to Teams' own hosts alone, and the message came from elsewhere. "
                "Drop the delivery.",
                reason="address_refused",
            )
        path = f"v3/conversations/{quote(target['conversation'], safe='')}/activities"
        url = f"{service.rstrip('/')}/{path}" + (f"/{quote(activity, safe='')}" if activity else "")
        token = self._token.get()
        reply = self._send(method, url, given, token)
        if reply.status == 401:
            self._token.forget(token)
            reply = self._send(method, url, given, self._token.get())
        return str(_judged(method, reply).get("id") or activity)

    def fetch(self, url: str, max_bytes: int) -> bytes:
        """Fetch a picture from the connector with the token, or a file from OneDrive without it.

        Raises:
            ChannelUnavailable: again later.
            DeliveryRefused: never; it is gone, too large, or at a foreign address.
        """
        if not self._services.is_picture(url):
            if not self._services.is_file(url):
                raise DeliveryRefused("The file is not on the platform.", reason="address_refused")
            return download("Teams", url, {}, self._timeout_s, max_bytes)
        token = self._token.get()
        answer = self._receive(url, token, max_bytes)
        if answer.status == 401:
            self._token.forget(token)
            answer = self._receive(url, self._token.get(), max_bytes)
        if answer.status == 412:
            after_s = answer.retry_after_s or _RETRY_AFTER_S
            raise ChannelUnavailable("Teams answered 412.", retry_after_s=after_s)
        return file_of("Teams", answer)

    def _receive(self, url: str, token: str, max_bytes: int) -> Answer:
        headers = {"Authorization": f"Bearer {token}"}
        return received("Teams", url, headers, self._timeout_s, max_bytes)

    def _send(self, method: str, url: str, given: object, token: str) -> Reply:
        headers = {"Authorization": f"Bearer {token}"}
        return call("Teams", method, url, given, headers, self._timeout_s)

    def _fetch_token(self) -> tuple[str, float]:
        headers = {"Content-Type": "application/x-www-form-urlencoded", "User-Agent": "turnmill"}
        body = urlencode(self._app).encode()
        try:
            answer = request("POST", self._services.token_url, body, headers, self._timeout_s)
        except ChannelUnavailable as error:
            # Whatever became of it, no message was sent.
            raise ChannelUnavailable(error.message) from None
        data = read_body(answer.body)
        if 400 <= answer.status < 500 and answer.status != 429:
            code = str(data.get("error") or f"http_{answer.status}")
            raise DeliveryRefused(f"Microsoft gives no token: {code}. {_SECRETS}", reason=code)
        if answer.status != 200 or "access_token" not in data:
            after_s = answer.retry_after_s
            raise ChannelUnavailable("Microsoft gives no token right now.", retry_after_s=after_s)
        return str(data["access_token"]), float(data.get("expires_in", 3600))


def _judged(method: str, reply: Reply) -> dict[str, Any]:
    """The body of a call that worked. Raises as `call` does."""
    if reply.is_good:
        return reply.data
    if reply.status in (412, 429):
        after_s = reply.retry_after_s or _RETRY_AFTER_S
        raise ChannelUnavailable("Teams' limit of messages", retry_after_s=after_s)
    error = reply.data.get("error")
    code = str(error.get("code", "")) if isinstance(error, dict) else ""
    if method == "PUT" and reply.status == 404:
        raise DeliveryRefused("The message that was being written is gone.", reason=GONE)
    advice = _ADVICE.get(code) or _ADVICE.get(str(reply.status), "")
    shown = code or str(reply.status)
    reason = code or f"http_{reply.status}"
    raise DeliveryRefused(f"Teams refused the message: {shown}. {advice}".rstrip(), reason=reason)
