"""Bring a reply as messages that can be edited while they are written, at most one of them twice.

What is remembered of a delivery: `parts` (the platform's ids of complete messages, by number),
`draft` (the message in which part 0 is being written, and its text's digest).

Nothing can be looked up on these platforms. A part whose outcome is in doubt is sent again, so a
killed worker leaves at most one duplicate of one part; a draft in doubt is not begun again.
"""

import hashlib
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from turnmill.schemas.channels.buttons import RESUME, Button, reply_buttons
from turnmill.schemas.channels.deliveries import DeliveryKind
from turnmill.schemas.errors import ChannelUnavailable, DeliveryRefused
from turnmill.schemas.turns import TurnState
from turnmill.workers.delivery.base import Job, Look, Memory
from turnmill.workers.delivery.texts.markdown import split

#: A turn that waits is looked at so often, seconds.
WAIT_EVERY_S = 2.0


class PartsDelivery(ABC):
    """The steps that are the same everywhere; a platform adds its calls."""

    shows_progress = True
    #: What a message can hold, as `measure` counts it.
    limit: ClassVar[int]
    #: Seconds after which "typing" has to be said again.
    typing_every_s: ClassVar[float]
    #: The field of a job's target by which a platform limits what is sent.
    place: ClassVar[str]
    #: The reason of refused edits of a message that somebody deleted.
    deleted: ClassVar[str | None] = None

    def __init__(self) -> None:
        #: Places that asked for a pause, until when (`time.monotonic`).
        self._closed_until: dict[str, float] = {}
        self._lock = threading.Lock()

    @abstractmethod
    def write_every_s(self, job: Job) -> float | None:
        """Seconds between two changes of the message that is being written; None: there are
        none."""

    @abstractmethod
    def post(self, job: Job, number: int, part: str, buttons: tuple[Button, ...]) -> str:
        """Send a new message and return its id. Raises as `Delivery` says."""

    @abstractmethod
    def edit(self, job: Job, message: str, part: str, buttons: tuple[Button, ...]) -> None:
        """Replace the text of a message. Raises as `Delivery` says."""

    @abstractmethod
    def show_typing(self, job: Job) -> None:
        """Show that a reply is being written. Raises as `Delivery` says."""

    def measure(self, text: str) -> int:
        return len(text)

    def limit_of(self, job: Job) -> int:
        """`limit`, or less where the place takes less."""
        return self.limit

    def close(self) -> None:  # noqa: B027 - nothing is open
        """Every call has a connection of its own."""

    def send(self, job: Job, memory: Memory) -> bool:
        with self._pausing(job):
            return self.bring(job, memory)

    def show(self, job: Job, look: Look, memory: Memory) -> float | None:
        with self._pausing(job):
            return self._show(job, look, memory)

    def bring(self, job: Job, memory: Memory) -> bool:
        """Send what is missing of the text, as `send`, to a place that asked for no pause."""
        if job.text is None:
            # The turn was cancelled: what was shown stays.
            return "draft" in memory.value
        parts = split(job.text, self.limit_of(job), self.measure)
        for number, part in enumerate(parts):
            if str(number) not in memory.value.get("parts", {}):
                buttons = buttons_under(job) if number == len(parts) - 1 else ()
                message = self._complete(job, memory, number, part, buttons)
                memory.keep(parts=memory.value.get("parts", {}) | {str(number): message})
        return True

    def _show(self, job: Job, look: Look, memory: Memory) -> float | None:
        every_s = self.write_every_s(job)
        if look.text.strip() and every_s is not None and not _is_torn(memory):
            self.write(job, split(look.text, self.limit_of(job), self.measure)[0], memory)
            return every_s
        self.show_typing(job)
        is_running = look.state is TurnState.RUNNING
        return self.typing_every_s if is_running else max(WAIT_EVERY_S, self.typing_every_s)

    def write(self, job: Job, part: str, memory: Memory) -> None:
        """Bring the message that is being written up to date."""
        draft = memory.value.get("draft")
        if draft is None:
            memory.keep(draft={"message": None})
            try:
                draft = {"message": self.post(job, 0, part, ())}
            except ChannelUnavailable as error:
                if not error.is_doubtful:
                    memory.keep(draft=None)
                raise
        elif draft.get("digest") != digest(part):
            self.edit(job, draft["message"], part, ())
        memory.keep(draft={"message": draft["message"], "digest": digest(part)})

    def _complete(
        self, job: Job, memory: Memory, number: int, part: str, buttons: tuple[Button, ...]
    ) -> str:
        draft = memory.value.get("draft")
        if number or not draft or draft["message"] is None:
            return self.post(job, number, part, buttons)
        message = str(draft["message"])
        try:
            self.edit(job, message, part, buttons)
        except DeliveryRefused as error:
            if self.deleted is None or error.reason != self.deleted:
                raise
            memory.keep(draft=None)
            return self.post(job, number, part, buttons)
        return message

    @contextmanager
    def _pausing(self, job: Job) -> Iterator[None]:
        """Call nothing for a place before the pause is over that it asked for."""
        place = job.target.get(self.place, "")
        self.refuse_paused(place)
        try:
            yield
        except ChannelUnavailable as error:
            if error.retry_after_s is not None:
                self.pause(place, error.retry_after_s)
            raise

    def refuse_paused(self, place: str) -> None:
        """Raise `ChannelUnavailable` until the pause is over that a place asked for."""
        with self._lock:
            wait_s = self._closed_until.get(place, 0.0) - time.monotonic()
        if wait_s > 0:
            raise ChannelUnavailable("The platform asked to wait.", retry_after_s=wait_s)

    def pause(self, place: str, pause_s: float) -> None:
        now = time.monotonic()
        with self._lock:
            still = {each: until for each, until in self._closed_until.items() if until > now}
            self._closed_until = still | {place: now + pause_s}


def buttons_under(job: Job) -> tuple[Button, ...]:
    """What stands under the last message: of a reply, of a notice that a person will answer."""
    if job.kind is DeliveryKind.NOTICE and job.is_handed_off:
        return (RESUME,)
    return reply_buttons(job.turn_id) if job.is_reply and job.turn_id else ()


def digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _is_torn(memory: Memory) -> bool:
    """Whether a message was begun and nobody knows under which id."""
    draft = memory.value.get("draft")
    return draft is not None and draft["message"] is None
