"""Bring replies to Feishu: in a card that is updated while it is written, and never twice.

Each part is sent with a `uuid` of its own. Feishu takes at most one message with the same one
within an hour, and answers a repetition with the message that is there (the latter is relied on,
and not documented): https://open.feishu.cn/document/server-docs/im-v1/message/reply
"""

from urllib.parse import quote

from turnmill.schemas.channels.buttons import Button
from turnmill.schemas.channels.sections.base import ChannelSection
from turnmill.schemas.channels.sections.feishu import FeishuSection
from turnmill.schemas.errors import DeliveryRefused
from turnmill.schemas.settings import DeliverySettings
from turnmill.workers.delivery.base import Job, Memory
from turnmill.workers.delivery.feishu.calls import Calls
from turnmill.workers.delivery.feishu.cards import MAX_CARD, card, size
from turnmill.workers.delivery.parts import PartsDelivery

#: A message may be updated five times a second.
WRITE_EVERY_S = 1.0

#: The card cannot be shown, as one with too many tables. As plain text it can.
_BAD_CARD = "230099"


class FeishuDelivery(PartsDelivery):
    """One app's way out."""

    limit = MAX_CARD
    typing_every_s = 2.0
    place = "thread"

    def __init__(self, name: str, section: ChannelSection, settings: DeliverySettings) -> None:
        assert isinstance(section, FeishuSection)
        super().__init__()
        self._calls = Calls(section, settings.timeout_s)
        self.shows_progress = section.streams

    def write_every_s(self, job: Job) -> float | None:
        return WRITE_EVERY_S

    def measure(self, text: str) -> int:
        return size(text)

    def post(self, job: Job, number: int, part: str, buttons: tuple[Button, ...]) -> str:
        given: dict[str, object] = {
            "msg_type": "interactive",
            "uuid": f"{job.delivery_id.hex}-{number}",
            "reply_in_thread": "in_thread" in job.target,
        }
        path = f"im/v1/messages/{job.target['message']}/reply"
        answer = self._send_card("POST", path, given, job, part, buttons)
        return str(answer.get("message_id", ""))

    def edit(self, job: Job, message: str, part: str, buttons: tuple[Button, ...]) -> None:
        self._send_card("PATCH", f"im/v1/messages/{message}", {}, job, part, buttons)

    def fetch(self, ref: str, max_bytes: int) -> bytes:
        """https://open.feishu.cn/document/uAjLw4CM/ukTMukTMukTM/reference/im-v1/message-resource/get"""
        message, key, kind = (quote(part, safe="") for part in ref.split("/"))
        path = f"im/v1/messages/{message}/resources/{key}?type={kind}"
        return self._calls.fetch(path, max_bytes)

    def show_typing(self, job: Job) -> None:
        """Feishu has no such sign."""

    def _complete(
        self, job: Job, memory: Memory, number: int, part: str, buttons: tuple[Button, ...]
    ) -> str:
        draft = memory.value.get("draft")
        if number == 0 and draft and draft["message"] is None:
            # It may stand there, with a part of the text. The same uuid finds it.
            memory.keep(draft={"message": self.post(job, 0, part, ())})
        return super()._complete(job, memory, number, part, buttons)

    def _send_card(
        self,
        method: str,
        path: str,
        given: dict[str, object],
        job: Job,
        part: str,
        buttons: tuple[Button, ...],
    ) -> dict[str, object]:
        thread = job.target["thread"]
        try:
            content = card(part, buttons, thread)
            return self._calls.call(method, path, {**given, "content": content})
        except DeliveryRefused as error:
            if error.reason != _BAD_CARD:
                raise
            content = card(part, buttons, thread, is_plain=True)
            return self._calls.call(method, path, {**given, "content": content})
