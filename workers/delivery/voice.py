"""Speak a reply beside its text, where its bot answers voice by voice.

The text is sent first, and in any case. The voice is an addition: it is tried once, holds its
delivery up for less than a lease, and puts none back, for the conversation's next text waits. Where
it is late, limited by the platform or in doubt, the text has to do.
"""

import re
import time
from threading import Lock

import structlog

from turnmill.schemas.errors import ChannelUnavailable, DeliveryRefused
from turnmill.workers.delivery.base import Delivery, Job, Memory, Speaks
from turnmill.workers.delivery.metrics import VOICE_REPLIES
from turnmill.workers.delivery.texts.plain import to_plain
from turnmill.workers.media.base import Synthesizer
from turnmill.workers.turn.abort import Interrupted

log = structlog.get_logger()

#: Characters of a reply that is spoken, some minute: up to 9 s of two busy cores. Longer ones are
#: only read.
MAX_SPOKEN = 1_000
#: Of a lease: how long another reply's voice is waited for, and until when a voice must be made.
_WAIT_SHARE, _MAKE_SHARE = 1 / 6, 1 / 2

_FENCED = re.compile(r"^[ \t]*(```|~~~).*?(^[ \t]*\1|\Z)", re.DOTALL | re.MULTILINE)
_CITED = re.compile(r"\s*\[\d+\](?!\()")
_ADDRESS = re.compile(r"\(?\bhttps?://\S+")


class _NoVoice(Exception):
    """Why a reply is not spoken: `busy`, `late` or `failed`."""


class Speaker:
    """Speaks the replies of one process."""

    def __init__(self, synthesizer: Synthesizer | None, lease_s: float) -> None:
        """`lease_s`: of the deliveries, which a voice must not outlast."""
        self._synthesizer = synthesizer
        self._wait_s = lease_s * _WAIT_SHARE
        self._make_s = lease_s * _MAKE_SHARE
        self._lock = Lock()
        self._has_warned = False

    def speak(self, delivery: Delivery, job: Job, memory: Memory) -> None:
        """Speak a reply whose text was sent, unless it was begun before.

        Raises:
            LeaseLost, DatabaseUnavailable: as `Memory.keep`.
        """
        if not job.is_spoken or memory.value.get("voice") or not isinstance(delivery, Speaks):
            return
        text = spoken_text(job)
        if not 0 < len(text) <= MAX_SPOKEN or (synthesizer := self._available()) is None:
            return
        # A whole lease from here on; who dies of it leaves the voice to nobody.
        memory.keep(voice={"is_begun": True})
        try:
            if (sound := self._sound(synthesizer, text)) is None:
                return
            message = delivery.say(job, sound)
        except _NoVoice as error:
            self._skip(job, str(error))
        except ChannelUnavailable as error:
            is_limit = error.retry_after_s is not None
            self._skip(job, "limited" if is_limit else "not_sent", error.message)
        except DeliveryRefused as error:
            self._skip(job, "not_sent", error.message)
        else:
            VOICE_REPLIES.labels("sent").inc()
            memory.keep(voice={"is_begun": True, "message": message})

    def _available(self) -> Synthesizer | None:
        if self._synthesizer is None and not self._has_warned:
            log.warning("voice.unavailable", remedy="pip install 'turnmill[speech]'")
            self._has_warned = True
        return self._synthesizer

    def _sound(self, synthesizer: Synthesizer, text: str) -> bytes | None:
        """The sound of a text; None: it is in no language of the voice. Raises `_NoVoice`."""
        until = time.monotonic() + self._make_s
        if not self._lock.acquire(timeout=self._wait_s):
            raise _NoVoice("busy")
        try:
            return synthesizer.speak(text, until)
        except Interrupted:
            raise _NoVoice("late") from None
        except Exception as error:
            # Whatever its libraries raise, which may quote the text: that was sent.
            log.error("voice.not_made", error=type(error).__name__)
            raise _NoVoice("failed") from None
        finally:
            self._lock.release()

    def _skip(self, job: Job, result: str, reason: str = "") -> None:
        VOICE_REPLIES.labels(result).inc()
        said = {"reason": reason} if reason else {}
        log.warning("voice.skipped", delivery_id=job.delivery_id.hex, result=result, **said)


def spoken_text(job: Job) -> str:
    """What is spoken of a reply: no code, no addresses, no numbers of sources."""
    text = (job.text or "").removesuffix(job.below)
    plain = to_plain(_FENCED.sub("", text))
    return _ADDRESS.sub("", _CITED.sub("", plain)).strip()
