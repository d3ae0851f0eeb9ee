"""Bring replies to Telegram: https://core.telegram.org/bots/api

In private chats a reply is streamed with `sendMessageDraft` (Bot API 9.5, for all bots), a preview
of 30 seconds that leaves no message behind. Elsewhere, and on older servers, one message is edited
while it is written. Telegram has no key that makes `sendMessage` idempotent, and bots cannot read
what they sent.
"""

import time
from typing import Any
from urllib.parse import quote

from turnmill.schemas.channels.buttons import Button
from turnmill.schemas.channels.sections.base import ChannelSection
from turnmill.schemas.channels.sections.telegram import TelegramSection
from turnmill.schemas.errors import ChannelUnavailable, DeliveryRefused
from turnmill.schemas.settings import DeliverySettings
from turnmill.workers.delivery.base import Job, Memory, pause_s
from turnmill.workers.delivery.calls.downloads import download
from turnmill.workers.delivery.calls.rest import Reply, call, send_form
from turnmill.workers.delivery.parts import PartsDelivery
from turnmill.workers.delivery.telegram.html import to_html

#: Of a message, in UTF-16 code units after its markup is read.
MAX_TEXT = 4096
#: A group takes 20 messages a minute from a bot, a chat one a second.
#: https://core.telegram.org/bots/faq#my-bot-is-hitting-limits-how-do-i-avoid-this
GROUP_EVERY_S, PRIVATE_EVERY_S = 3.5, 1.2
#: A preview is taken away after 30 seconds.
PREVIEW_EVERY_S = 20.0
#: Of a 429 that does not say how long to wait.
_RETRY_AFTER_S = 5.0

_UNCHANGED = "message is not modified"
#: The marks cannot be read, or nothing is left without them: the plain text is sent.
_UNFORMATTED = ("can't parse entities", "message text is empty")

#: What to do about refusals, by a part of their description.
_ADVICE = {
    "unauthorized": "The bot token is wrong or revoked. Copy it again from @BotFather.",
    "bot was blocked": "The user blocked the bot. Drop the delivery.",
    "bot was kicked": "The bot was removed from the group. Add it again, or drop the delivery.",
    "user is deactivated": "The account is gone. Drop the delivery.",
    "chat not found": "The chat is gone, or the bot was never in it. Drop the delivery.",
    "not enough rights": "The group does not let the bot write. Change its permissions.",
    "voice_messages_forbidden": "The user takes no voice messages, by their privacy settings.",
    "topic_closed": "The topic is closed. Open it, or drop the delivery.",
    "thread not found": "The topic is gone. Drop the delivery.",
}


class TelegramDelivery(PartsDelivery):
    """One bot's way out."""

    limit = MAX_TEXT
    #: Telegram shows it for five seconds.
    typing_every_s = 4.5
    place = "chat"
    deleted = "message to edit not found"

    def __init__(self, name: str, section: ChannelSection, settings: DeliverySettings) -> None:
        assert isinstance(section, TelegramSection)
        super().__init__()
        token = section.bot_token.read().get_secret_value()
        self._url = f"{section.api_url.rstrip('/')}/bot{token}"
        self._timeout_s = settings.timeout_s
        self._streams = section.streams

    def measure(self, text: str) -> int:
        """What is shown is never longer than the Markdown that it is made of."""
        return len(text.encode("utf-16-le")) // 2

    def bring(self, job: Job, memory: Memory) -> bool:
        preview = memory.value.get("preview")
        if job.text is None and preview and "0" not in memory.value.get("parts", {}):
            # The turn was cancelled, and its preview would vanish: what was shown is to stay.
            memory.keep(parts={"0": self.post(job, 0, preview["text"], ())})
            return True
        return super().bring(job, memory)

    def fetch(self, ref: str, max_bytes: int) -> bytes:
        """Fetch a file: https://core.telegram.org/bots/api#getfile"""
        url, timeout_s = f"{self._url}/getFile", self._timeout_s
        reply = call("Telegram", "POST", url, {"file_id": ref}, {}, timeout_s)
        if not reply.is_good or not reply.data.get("ok"):
            raise _error("getFile", reply)
        path = quote(str((reply.data.get("result") or {}).get("file_path") or ""))
        base, _, bot = self._url.rpartition("/")
        return download("Telegram", f"{base}/file/{bot}/{path}", {}, timeout_s, max_bytes)

    def write_every_s(self, job: Job) -> float | None:
        if not self._streams:
            return None
        return PRIVATE_EVERY_S if _is_private(job) else GROUP_EVERY_S

    def write(self, job: Job, part: str, memory: Memory) -> None:
        if not _is_private(job) or memory.value.get("is_previewless"):
            super().write(job, part, memory)
            return
        known, now = memory.value.get("preview") or {}, time.time()
        if known.get("text") == part and now - known["at"] < PREVIEW_EVERY_S:
            return
        # The same number at each call: Telegram changes the preview that it shows already.
        draft_id = job.delivery_id.int % (2**31 - 1) + 1
        try:
            self._formatted(job, "sendMessageDraft", part, draft_id=draft_id)
        except DeliveryRefused:
            memory.keep(is_previewless=True)
            return
        memory.keep(preview={"text": part, "at": now})

    def post(self, job: Job, number: int, part: str, buttons: tuple[Button, ...]) -> str:
        more: dict[str, object] = {"link_preview_options": {"is_disabled": True}}
        if number == 0 and not _is_private(job) and "message" in job.target:
            more["reply_parameters"] = {
                "message_id": int(job.target["message"]),
                "allow_sending_without_reply": True,
            }
        sent = self._formatted(job, "sendMessage", part, **more, **_keyboard(buttons))
        return str(sent["message_id"])

    def edit(self, job: Job, message: str, part: str, buttons: tuple[Button, ...]) -> None:
        try:
            self._formatted(
                job, "editMessageText", part, message_id=int(message), **_keyboard(buttons)
            )
        except DeliveryRefused as error:
            if error.reason != _UNCHANGED:
                raise

    def say(self, job: Job, sound: bytes) -> str:
        """https://core.telegram.org/bots/api#sendvoice"""
        fields = {"chat_id": job.target["chat"]}
        if "topic" in job.target:
            fields["message_thread_id"] = job.target["topic"]
        file = ("voice", "reply.ogg", "audio/ogg", sound)
        reply = send_form("Telegram", f"{self._url}/sendVoice", fields, file, {}, self._timeout_s)
        if not reply.is_good or not reply.data.get("ok"):
            raise _error("sendVoice", reply)
        return str((reply.data.get("result") or {}).get("message_id", ""))

    def show_typing(self, job: Job) -> None:
        self._call(job, "sendChatAction", action="typing")

    def _formatted(self, job: Job, method: str, part: str, **fields: object) -> dict[str, object]:
        """Call with formatted text, or with the plain one if Telegram cannot read its marks."""
        try:
            return self._call(job, method, text=to_html(part), parse_mode="HTML", **fields)
        except DeliveryRefused as error:
            if error.reason not in _UNFORMATTED:
                raise
            return self._call(job, method, text=part, **fields)

    def _call(self, job: Job, method: str, **fields: Any) -> dict[str, Any]:
        place: dict[str, object] = {"chat_id": int(job.target["chat"])}
        if "topic" in job.target and method != "editMessageText":
            place["message_thread_id"] = int(job.target["topic"])
        given = place | fields
        reply = call("Telegram", "POST", f"{self._url}/{method}", given, {}, self._timeout_s)
        if not reply.is_good or not reply.data.get("ok"):
            raise _error(method, reply)
        result = reply.data.get("result")
        return result if isinstance(result, dict) else {}


def _is_private(job: Job) -> bool:
    return job.target.get("type") == "private"


def _keyboard(buttons: tuple[Button, ...]) -> dict[str, object]:
    """https://core.telegram.org/bots/api#inlinekeyboardmarkup"""
    if not buttons:
        return {}
    row = [{"text": button.label, "callback_data": button.value} for button in buttons]
    return {"reply_markup": {"inline_keyboard": [row]}}


def _error(method: str, reply: Reply) -> ChannelUnavailable | DeliveryRefused:
    """https://core.telegram.org/bots/api#responseparameters"""
    description = str(reply.data.get("description", ""))
    said = description.lower()
    if reply.status == 429:
        parameters = reply.data.get("parameters") or {}
        after_s = parameters.get("retry_after") or reply.retry_after_s or _RETRY_AFTER_S
        return ChannelUnavailable(
            f"Telegram's limit of {method}", retry_after_s=pause_s(float(after_s))
        )
    for known in (_UNCHANGED, TelegramDelivery.deleted, *_UNFORMATTED):
        if known in said:
            return DeliveryRefused(f"Telegram refused {method}: {known}.", reason=known)
    advice = next((advice for part, advice in _ADVICE.items() if part in said), "")
    return DeliveryRefused(
        f"Telegram refused {method}: {description or reply.status}. {advice}".rstrip(),
        reason=f"http_{reply.status}",
        told=f"Telegram refused {method}: {reply.status}. {advice}".rstrip(),
    )
