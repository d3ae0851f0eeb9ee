"""Bring replies to Chatwoot as an agent bot, and conversations to people and back.

Each part carries its delivery and number in `content_attributes`. Bots may not list messages, but a
conversation comes with its last ones (`_conversation.json.jbuilder`), where a part is looked for
whose outcome is in doubt.
"""

from contextlib import suppress
from typing import Any

from turnmill.schemas.channels.buttons import Button
from turnmill.schemas.channels.deliveries import DeliveryKind
from turnmill.schemas.channels.events import Answering, Side
from turnmill.schemas.channels.sections.base import ChannelSection
from turnmill.schemas.channels.sections.chatwoot import ChatwootSection
from turnmill.schemas.errors import ChannelUnavailable, DeliveryRefused
from turnmill.schemas.settings import DeliverySettings
from turnmill.workers.delivery.base import Job, Memory
from turnmill.workers.delivery.chatwoot.calls import NOT_FOR_BOTS, Calls
from turnmill.workers.delivery.chatwoot.texts import to_content
from turnmill.workers.delivery.parts import PartsDelivery

#: Characters of a message: what the dashboard lets people write. Chatwoot itself takes 150,000.
MAX_TEXT = 10_000
#: What the platforms behind some inboxes take. Chatwoot does not split.
_MAX_OF_INBOX = {
    "Channel::FacebookPage": 1000,
    "Channel::Instagram": 1000,
    "Channel::Line": 5000,
    "Channel::Sms": 1600,
    "Channel::Telegram": 4096,
    "Channel::TwilioSms": 1600,
    "Channel::Whatsapp": 4096,
}
_MARK = "turnmill"


class ChatwootDelivery(PartsDelivery):
    """One bot's way out. Bots edit no messages, so none is shown before it is whole."""

    limit = MAX_TEXT
    #: The widget shows it for 30 seconds.
    typing_every_s = 20.0
    place = "conversation"

    def __init__(self, name: str, section: ChannelSection, settings: DeliverySettings) -> None:
        assert isinstance(section, ChatwootSection)
        super().__init__()
        self._calls = Calls(section, settings.timeout_s)
        self._may_type = True

    def limit_of(self, job: Job) -> int:
        return _MAX_OF_INBOX.get(job.target.get("inbox", ""), MAX_TEXT)

    def write_every_s(self, job: Job) -> float | None:
        return None

    def bring(self, job: Job, memory: Memory) -> bool:
        is_sent = job.text != "" and super().bring(job, memory)
        if job.kind is DeliveryKind.NOTICE:
            return self._pass(job, memory) or is_sent
        if is_sent:
            with suppress(ChannelUnavailable, DeliveryRefused):
                self._type(job, "off")
        return is_sent

    def post(self, job: Job, number: int, part: str, buttons: tuple[Button, ...]) -> str:
        return self._say(job, str(number), part)

    def edit(self, job: Job, message: str, part: str, buttons: tuple[Button, ...]) -> None:
        raise DeliveryRefused("Chatwoot lets bots edit no messages.", reason="no_edits")

    def show_typing(self, job: Job) -> None:
        self._type(job, "on")

    def _say(self, job: Job, name: str, text: str, *, is_note: bool = False) -> str:
        """Write a message, or a note that the team alone sees, unless it is there."""
        mark = f"{job.delivery_id.hex}-{name}"
        if job.is_doubtful and (known := self._find(job, mark)) is not None:
            return known
        sent = self._calls.post(
            job.target["conversation"],
            "messages",
            content=to_content(text),
            message_type="outgoing",
            private=is_note,
            content_attributes={_MARK: mark},
        )
        return str(sent.get("id", ""))

    def _type(self, job: Job, status: str) -> None:
        """Bots may from 4.12 on."""
        if not self._may_type:
            return
        try:
            self._calls.post(
                job.target["conversation"], "toggle_typing_status", typing_status=status
            )
        except DeliveryRefused as error:
            if error.reason != NOT_FOR_BOTS:
                raise
            self._may_type = False

    def _pass(self, job: Job, memory: Memory) -> bool:
        """Tell Chatwoot who answers from now on, where it knows it otherwise, and the team why."""
        known = Answering.of(job.target)
        is_peoples = known is not None and known.by is Side.PEOPLE
        if known is None or job.is_handed_off == is_peoples:
            return False
        if job.text and job.is_handed_off and job.because and "note" not in memory.value:
            memory.keep(note=self._say(job, "note", job.because, is_note=True))
        status = "open" if job.is_handed_off else "pending"
        self._calls.post(job.target["conversation"], "toggle_status", status=status)
        return True

    def _find(self, job: Job, mark: str) -> str | None:
        """Find a part that was sent before, among the last messages of its conversation."""
        try:
            shown = self._calls.read(job.target["conversation"])
        except DeliveryRefused as error:
            if error.reason != NOT_FOR_BOTS:
                raise
            return None
        for message in (*_messages(shown.get("messages")), shown.get("last_non_activity_message")):
            if _mark_of(message) == mark:
                return str(message["id"])
        return None


def _messages(shown: object) -> list[Any]:
    return shown if isinstance(shown, list) else []


def _mark_of(message: object) -> str | None:
    attributes = message.get("content_attributes") if isinstance(message, dict) else None
    return attributes.get(_MARK) if isinstance(attributes, dict) else None
