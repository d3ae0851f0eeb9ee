"""Bring replies to WeCom: https://developer.work.weixin.qq.com/document/path/90236

WeCom drops a request that is the same as an earlier one of the last hours
(`enable_duplicate_check`), so a part in doubt is sent again and stands there once. Parts that say
the same differ all the same: each ends with a mark of its delivery that nobody sees. WeCom's own
Markdown is not shown in WeChat, where many read these messages, so they are plain text.
"""

import hashlib

from turnmill.schemas.channels.buttons import Button
from turnmill.schemas.channels.sections.base import ChannelSection
from turnmill.schemas.channels.sections.wecom import WeComSection
from turnmill.schemas.errors import ChannelUnavailable, DeliveryRefused
from turnmill.schemas.settings import DeliverySettings
from turnmill.workers.delivery.base import Job
from turnmill.workers.delivery.calls.pace import Pace
from turnmill.workers.delivery.parts import PartsDelivery
from turnmill.workers.delivery.texts.plain import to_plain
from turnmill.workers.delivery.wecom.calls import Calls

#: Bytes of a text that WeCom shows; what is longer it cuts.
MAX_TEXT = 2048
#: Messages to one person in a minute: WeCom drops, without a word, what is more than thirty.
MAX_A_MINUTE = 25
#: How long WeCom remembers a request, seconds: the most there is.
DUPLICATE_CHECK_S = 4 * 60 * 60

#: Characters without width: each stands for two bits of a mark.
_INVISIBLE = "\u200b\u200c\u200d\u2060"
_MARK_CHARACTERS = 16


class WeComDelivery(PartsDelivery):
    """One application's way out. Messages cannot be edited, so none is shown before it is whole."""

    shows_progress = False
    limit = MAX_TEXT
    typing_every_s = 60.0
    place = "user"

    def __init__(self, name: str, section: ChannelSection, settings: DeliverySettings) -> None:
        assert isinstance(section, WeComSection)
        super().__init__()
        self._calls = Calls(section, settings.timeout_s)
        self._agent_id = section.agent_id
        self._pace = Pace(MAX_A_MINUTE, 60.0)

    def measure(self, text: str) -> int:
        return len((to_plain(text) + mark("")).encode())

    def write_every_s(self, job: Job) -> float | None:
        return None

    def post(self, job: Job, number: int, part: str, buttons: tuple[Button, ...]) -> str:
        if (wait_s := self._pace.take(job.target["user"])) > 0:
            raise ChannelUnavailable("WeCom's limit of messages a minute", retry_after_s=wait_s)
        text = to_plain(part) + mark(f"{job.delivery_id.hex}/{number}")
        return self._calls.send(
            {
                "touser": job.target["user"],
                "agentid": self._agent_id,
                "msgtype": "text",
                "text": {"content": text},
                "enable_duplicate_check": 1,
                "duplicate_check_interval": DUPLICATE_CHECK_S,
            }
        )

    def edit(self, job: Job, message: str, part: str, buttons: tuple[Button, ...]) -> None:
        raise DeliveryRefused("WeCom edits no messages.", reason="no_edits")

    def fetch(self, ref: str, max_bytes: int) -> bytes:
        """https://developer.work.weixin.qq.com/document/path/90254"""
        return self._calls.fetch("media/get", {"media_id": ref}, max_bytes)

    def show_typing(self, job: Job) -> None:
        """WeCom has no such sign."""


def mark(name: str) -> str:
    """Write 32 bits of a name in characters that are not seen."""
    digest = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big")
    return "".join(_INVISIBLE[digest >> 2 * n & 3] for n in range(_MARK_CHARACTERS))
