"""Bring replies to WhatsApp: https://developers.facebook.com/docs/whatsapp/cloud-api

Messages cannot be edited, looked up or sent with a key of ours. Relied on, from Meta's pages: a
text holds 4,096 characters, the body above buttons 1,024. "Typing" vanishes after 25 seconds.
Outside the 24 hours after the user's last message only templates are taken (131047). One user gets
a message in six seconds, and short bursts (131056).
"""

from typing import Any
from urllib.parse import quote

from turnmill.schemas.channels.buttons import Button
from turnmill.schemas.channels.sections.base import ChannelSection
from turnmill.schemas.channels.sections.whatsapp import WhatsAppSection
from turnmill.schemas.errors import ChannelUnavailable, DeliveryRefused
from turnmill.schemas.settings import DeliverySettings
from turnmill.workers.delivery.base import Job
from turnmill.workers.delivery.calls.downloads import download, host_of, refuse_foreign, too_large
from turnmill.workers.delivery.calls.rest import Reply, call, send_form
from turnmill.workers.delivery.parts import PartsDelivery
from turnmill.workers.delivery.texts.dialects import Dialect, translate

MAX_TEXT, MAX_WITH_BUTTONS = 4096, 1024
#: Of voice messages.
_OPUS = "audio/ogg; codecs=opus"
#: Where Meta keeps what users send. It gets the token.
_MEDIA_HOST = "lookaside.fbsbx.com"

#: Limits, and how long each is waited for, seconds.
_LIMITS = {4: 60.0, 80007: 60.0, 130429: 5.0, 131048: 60.0, 131056: 6.0}
#: Meta's side: the call did nothing, and may work later.
_LATER = frozenset({1, 2, 131000, 131016})
_ADVICE = {
    131047: "The user's last message is older than 24 hours: WhatsApp takes only templates then. "
    "Drop the delivery.",
    131026: "The user cannot receive it: no WhatsApp, or an old version. Drop the delivery.",
    190: "The access token is wrong or has expired. Use a system user's token.",
    10: "The token lacks the permission whatsapp_business_messaging.",
    100: "Compare phone_number_id in turnmill.toml.",
}


def to_whatsapp(text: str) -> str:
    """Translate a whole message: https://faq.whatsapp.com/539178204879377"""
    return translate(text, _DIALECT)


class WhatsAppDelivery(PartsDelivery):
    """One number's way out."""

    limit = MAX_TEXT
    typing_every_s = 20.0
    place = "to"

    def __init__(self, name: str, section: ChannelSection, settings: DeliverySettings) -> None:
        assert isinstance(section, WhatsAppSection)
        super().__init__()
        token = section.access_token.read().get_secret_value()
        self._headers = {"Authorization": f"Bearer {token}"}
        self._api_url, self._number = section.api_url.rstrip("/"), section.phone_number_id
        self._url = f"{self._api_url}/{self._number}/messages"
        self._timeout_s = settings.timeout_s

    def measure(self, text: str) -> int:
        return len(to_whatsapp(text))

    def write_every_s(self, job: Job) -> float | None:
        return None

    def post(self, job: Job, number: int, part: str, buttons: tuple[Button, ...]) -> str:
        text = to_whatsapp(part)
        content: dict[str, object] = {"type": "text", "text": {"body": text, "preview_url": False}}
        if buttons and len(text) <= MAX_WITH_BUTTONS:
            content = {"type": "interactive", "interactive": _with_buttons(text, buttons)}
        place = {"recipient_type": "individual", "to": job.target["to"]}
        sent = self._call(**place, **content)
        return str(sent["messages"][0]["id"])

    def edit(self, job: Job, message: str, part: str, buttons: tuple[Button, ...]) -> None:
        raise DeliveryRefused("WhatsApp edits no messages.", reason="no_edits")

    def show_typing(self, job: Job) -> None:
        if message := job.target.get("message"):
            self._call(status="read", message_id=message, typing_indicator={"type": "text"})

    def say(self, job: Job, sound: bytes) -> str:
        """Upload a sound, which nobody sees, and send it as a voice message.

        https://developers.facebook.com/docs/whatsapp/cloud-api/messages/audio-messages
        """
        url = f"{self._api_url}/{self._number}/media"
        fields = {"messaging_product": "whatsapp", "type": _OPUS}
        file = ("file", "reply.ogg", _OPUS, sound)
        reply = send_form("WhatsApp", url, fields, file, self._headers, self._timeout_s)
        if not reply.is_good:
            raise _error(reply)
        audio = {"id": str(reply.data.get("id", "")), "voice": True}
        place = {"recipient_type": "individual", "to": job.target["to"]}
        return str(self._call(**place, type="audio", audio=audio)["messages"][0]["id"])

    def fetch(self, ref: str, max_bytes: int) -> bytes:
        """Fetch a file by its id: first its address, which is good for five minutes.

        https://developers.facebook.com/docs/whatsapp/cloud-api/reference/media
        """
        url = f"{self._api_url}/{quote(ref, safe='')}?phone_number_id={self._number}"
        reply = call("WhatsApp", "GET", url, None, self._headers, self._timeout_s)
        if not reply.is_good:
            raise _error(reply)
        size = str(reply.data.get("file_size", ""))
        if size.isdecimal() and int(size) > max_bytes:
            raise too_large(max_bytes)
        found = str(reply.data.get("url", ""))
        refuse_foreign(found, _MEDIA_HOST, host_of(self._api_url))
        return download("WhatsApp", found, self._headers, self._timeout_s, max_bytes)

    def _call(self, **fields: object) -> dict[str, Any]:
        given = {"messaging_product": "whatsapp", **fields}
        reply = call("WhatsApp", "POST", self._url, given, self._headers, self._timeout_s)
        if not reply.is_good:
            raise _error(reply)
        return reply.data


def _with_buttons(text: str, buttons: tuple[Button, ...]) -> dict[str, object]:
    rows = [{"type": "reply", "reply": {"id": b.value, "title": b.label}} for b in buttons]
    return {"type": "button", "body": {"text": text}, "action": {"buttons": rows}}


def _error(reply: Reply) -> ChannelUnavailable | DeliveryRefused:
    """https://developers.facebook.com/docs/whatsapp/cloud-api/support/error-codes"""
    error = reply.data.get("error")
    code = int(error.get("code", 0)) if isinstance(error, dict) else 0
    if reply.status == 429 or code in _LIMITS:
        after_s = reply.retry_after_s or _LIMITS.get(code, 5.0)
        return ChannelUnavailable(f"WhatsApp's limit ({code})", retry_after_s=after_s)
    if code in _LATER:
        return ChannelUnavailable(f"WhatsApp answered with error {code}.")
    advice = _ADVICE.get(code, "See the error codes of WhatsApp's Cloud API.")
    return DeliveryRefused(
        f"WhatsApp refused the message: {code or reply.status}. {advice}",
        reason=str(code or f"http_{reply.status}"),
    )


_DIALECT = Dialect(
    escape=lambda text: text,
    bold=("*", "*"),
    italic=("_", "_"),
    struck=("~", "~"),
    code=("`", "`"),
    quote=("> ", ""),
    link=lambda label, url: f"{label} ({url})" if label else url,
    fence=lambda language: "```",
    fence_end="```",
)
