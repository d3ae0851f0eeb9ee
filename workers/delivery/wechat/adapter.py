"""Bring replies to WeChat, as customer-service messages of an official account.

https://developers.weixin.qq.com/doc/service/api/customer/message/api_sendcustommessage

Messages cannot be edited, looked up or sent with a key of ours. WeChat takes five after each
message of the person's, for 48 hours. Relied on and not documented: a text holds 2,047 bytes, as
that of an answer does (https://github.com/dodgepudding/wechat-php-sdk/issues/363).
"""

from contextlib import suppress

from turnmill.schemas.channels.buttons import Button
from turnmill.schemas.channels.sections.base import ChannelSection
from turnmill.schemas.channels.sections.wechat import WeChatSection
from turnmill.schemas.errors import ChannelUnavailable, DeliveryRefused
from turnmill.schemas.settings import DeliverySettings
from turnmill.workers.delivery.base import Job, Look, Memory
from turnmill.workers.delivery.parts import PartsDelivery
from turnmill.workers.delivery.texts.plain import to_plain
from turnmill.workers.delivery.wechat.calls import Calls

#: Bytes of a text.
MAX_TEXT = 2047

#: "Typing" stands there already; the person's last message is older than 30 s.
_TYPING, _TOO_LATE = "45081", "45080"


class WeChatDelivery(PartsDelivery):
    """One account's way out. Messages cannot be edited, so none is shown before it is whole."""

    limit = MAX_TEXT
    #: https://developers.weixin.qq.com/doc/service/api/customer/message/api_typing
    typing_every_s = 15.0
    place = "user"

    def __init__(self, name: str, section: ChannelSection, settings: DeliverySettings) -> None:
        assert isinstance(section, WeChatSection)
        super().__init__()
        self._calls = Calls(section, settings.timeout_s)

    def measure(self, text: str) -> int:
        return len(to_plain(text).encode())

    def write_every_s(self, job: Job) -> float | None:
        return None

    def show(self, job: Job, look: Look, memory: Memory) -> float | None:
        try:
            return super().show(job, look, memory)
        except DeliveryRefused as error:
            if error.reason not in (_TYPING, _TOO_LATE):
                raise
            return self.typing_every_s if error.reason == _TYPING else None

    def post(self, job: Job, number: int, part: str, buttons: tuple[Button, ...]) -> str:
        text = {"content": to_plain(part)}
        message = {"touser": job.target["user"], "msgtype": "text", "text": text}
        self._calls.post("message/custom/send", message)
        return ""

    def edit(self, job: Job, message: str, part: str, buttons: tuple[Button, ...]) -> None:
        raise DeliveryRefused("WeChat edits no messages.", reason="no_edits")

    def fetch(self, ref: str, max_bytes: int) -> bytes:
        """https://developers.weixin.qq.com/doc/service/api/material/temporary/api_getmedia"""
        return self._calls.fetch("media/get", {"media_id": ref}, max_bytes)

    def show_typing(self, job: Job) -> None:
        """Show the sign, unless it has a limit: the reply is not to wait for that."""
        with suppress(ChannelUnavailable):
            self._calls.post(
                "message/custom/typing", {"touser": job.target["user"], "command": "Typing"}
            )
