"""Speak a reply beside its text, where its bot answers voice by voice.

The text is sent first, and in any case. The voice is an addition: no platform lets us find out
whether one arrived, so one in doubt is not sent again, and one that fails fails no delivery.
"""

import re
from collections import OrderedDict
from threading import Lock

import structlog

from turnmill.schemas.errors import ChannelUnavailable, DeliveryRefused
from turnmill.workers.delivery.base import Delivery, Job, Memory, Speaks
from turnmill.workers.delivery.texts.plain import to_plain
from turnmill.workers.media.base import Synthesizer

log = structlog.get_logger()

#: Characters of a reply that is spoken, some two minutes. Longer ones are only read.
MAX_SPOKEN = 2_000
#: Tries, as while a platform limits us.
MAX_TRIES = 3
#: Before another try, where the platform does not say, seconds.
_RETRY_S = 2.0
#: Sounds that a process keeps for another try; one has some hundred kilobytes.
_KEPT = 16

_FENCED = re.compile(r"^[ \t]*(```|~~~).*?(^[ \t]*\1|\Z)", re.DOTALL | re.MULTILINE)
_CITED = re.compile(r"\s*\[\d+\](?!\()")
_ADDRESS = re.compile(r"\(?\bhttps?://\S+")


class Speaker:
    """Speaks the replies of one process."""

    def __init__(self, synthesizer: Synthesizer | None) -> None:
        self._synthesizer = synthesizer
        #: Made sounds by their text, the oldest first.
        self._made: OrderedDict[str, bytes | None] = OrderedDict()
        self._lock = Lock()
        self._has_warned = False

    def speak(self, delivery: Delivery, job: Job, memory: Memory) -> None:
        """Speak a reply whose text was sent.

        Raises:
            ChannelUnavailable: again later.
            LeaseLost, DatabaseUnavailable: as `Memory.keep`.
        """
        known = memory.value.get("voice") or {}
        if not job.is_spoken or known.get("is_over") or not isinstance(delivery, Speaks):
            return
        if known.get("is_begun"):
            # Its process died of it, or before it knew.
            memory.keep(voice={"is_over": True})
            return
        if (sound := self._sound(spoken_text(job))) is None:
            return
        tries = known.get("tries", 0) + 1
        memory.keep(voice={"tries": tries, "is_begun": True})
        try:
            message = delivery.say(job, sound)
        except (ChannelUnavailable, DeliveryRefused) as error:
            self._after(error, tries, job, memory)
            return
        memory.keep(voice={"is_over": True, "message": message})

    def _sound(self, text: str) -> bytes | None:
        """The sound of a text, made once; None: it is not spoken."""
        if not 0 < len(text) <= MAX_SPOKEN:
            return None
        with self._lock:
            if text not in self._made:
                self._made[text] = self._make(text)
                while len(self._made) > _KEPT:
                    self._made.popitem(last=False)
            return self._made[text]

    def _make(self, text: str) -> bytes | None:
        if self._synthesizer is None:
            if not self._has_warned:
                log.warning("voice.unavailable", remedy="pip install 'turnmill[speech]'")
            self._has_warned = True
            return None
        try:
            return self._synthesizer.speak(text)
        except Exception as error:
            # Whatever its libraries raise, which may quote the text: that was sent.
            log.error("voice.not_made", error=type(error).__name__)
            return None

    def _after(
        self, error: ChannelUnavailable | DeliveryRefused, tries: int, job: Job, memory: Memory
    ) -> None:
        is_later = isinstance(error, ChannelUnavailable) and not error.is_doubtful
        if isinstance(error, ChannelUnavailable) and is_later and tries < MAX_TRIES:
            memory.keep(voice={"tries": tries})
            wait_s = error.retry_after_s or _RETRY_S
            # It counts as no failure of the delivery, whose text has arrived.
            raise ChannelUnavailable(error.message, retry_after_s=wait_s) from None
        memory.keep(voice={"is_over": True})
        log.warning("voice.not_sent", delivery_id=job.delivery_id.hex, reason=error.message)


def spoken_text(job: Job) -> str:
    """What is spoken of a reply: no code, no addresses, no numbers of sources."""
    text = (job.text or "").removesuffix(job.below)
    plain = to_plain(_FENCED.sub("", text))
    return _ADDRESS.sub("", _CITED.sub("", plain)).strip()
