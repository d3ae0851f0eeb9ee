"""Calls to Chatwoot as an agent bot: https://developers.chatwoot.com/api-reference/

Which calls a bot's token may make stands in `app/controllers/concerns/access_token_auth_helper.rb`.
"""

from turnmill.schemas.channels.sections.chatwoot import ChatwootSection
from turnmill.schemas.errors import ChannelUnavailable, DeliveryRefused
from turnmill.workers.delivery.calls.rest import Reply, call

#: Of a 429 that does not say how long to wait, seconds.
_RETRY_AFTER_S = 10.0

#: Bytes of a conversation with its last messages.
_MAX_BODY = 1024 * 1024

#: The reason of a refusal of what only people may do, on this release of Chatwoot.
NOT_FOR_BOTS = "not_for_bots"

_ADVICE = {
    401: "Compare bot_token and account_id; a proxy before Chatwoot must let the header "
    "api_access_token through (nginx: underscores_in_headers on).",
    403: "The bot may not write to this inbox. Connect it under Settings, Inboxes, Bot "
    "Configuration.",
    404: "The conversation is gone. Drop the delivery.",
}


class Calls:
    """The calls of one bot. Thread-safe."""

    def __init__(self, section: ChatwootSection, timeout_s: float) -> None:
        account = f"{section.api_url.rstrip('/')}/api/v1/accounts/{section.account_id}"
        self._url = f"{account}/conversations"
        self._headers = {"api_access_token": section.bot_token.read().get_secret_value()}
        self._timeout_s = timeout_s

    def read(self, conversation: str) -> dict[str, object]:
        """Read a conversation with its last messages. Raises as `Delivery` says."""
        return self._call("GET", conversation, None)

    def post(self, conversation: str, method: str, **given: object) -> dict[str, object]:
        """Raises as `Delivery` says."""
        return self._call("POST", f"{conversation}/{method}", given)

    def _call(self, verb: str, path: str, given: object) -> dict[str, object]:
        url = f"{self._url}/{path}"
        reply = call(
            "Chatwoot", verb, url, given, self._headers, self._timeout_s, max_body=_MAX_BODY
        )
        return _judged(reply)


def _judged(reply: Reply) -> dict[str, object]:
    if reply.is_good:
        return reply.data
    if reply.status == 429:
        after_s = reply.retry_after_s or _RETRY_AFTER_S
        raise ChannelUnavailable("Chatwoot's limit of calls", retry_after_s=after_s)
    said = str(reply.data.get("error", ""))[:200]
    reason = NOT_FOR_BOTS if "for bots" in said else f"http_{reply.status}"
    advice = _ADVICE.get(reply.status, "")
    shown = f"{reply.status} {said}".rstrip()
    raise DeliveryRefused(
        f"Chatwoot refused the call: {shown}. {advice}".rstrip(),
        reason=reason,
        told=f"Chatwoot refused the call: {reply.status}. {advice}".rstrip(),
    )
