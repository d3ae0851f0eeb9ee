"""What a made-up workspace holds: messages, streams, statuses."""

import time
from dataclasses import dataclass, field
from threading import RLock

from turnmill.infra.mocks.sending import Payload
from turnmill.infra.mocks.slack.payloads import Workspace, new_ts

#: A status without a message vanishes after so long:
#: https://docs.slack.dev/reference/methods/assistant.threads.setStatus
STATUS_S = 120.0


@dataclass
class Posted:
    """A message of the app, as the workspace shows it."""

    channel: str
    ts: str
    text: str
    thread_ts: str | None = None
    blocks: list[Payload] = field(default_factory=list)
    metadata: Payload | None = None
    is_streaming: bool = False
    #: Every text that the message had, oldest first.
    history: list[str] = field(default_factory=list)
    #: Of somebody else's message.
    user: str | None = None

    @property
    def shown(self) -> str:
        """What people read. A message with sections shows them instead of its text."""
        sections = [b["text"]["text"] for b in self.blocks if b.get("type") == "section"]
        return "".join(sections) or self.text


@dataclass
class Board:
    """Everything that is posted, under one lock."""

    workspace: Workspace = field(default_factory=Workspace)
    messages: list[Posted] = field(default_factory=list)
    lock: RLock = field(default_factory=RLock)
    _statuses: dict[tuple[str, str], tuple[str, float]] = field(default_factory=dict)

    def add(self, message: Posted) -> Posted:
        with self.lock:
            message.history.append(message.text)
            self.messages.append(message)
            if message.thread_ts is not None:
                self._statuses.pop((message.channel, message.thread_ts), None)
        return message

    def say(self, text: str, channel: str | None = None, thread_ts: str | None = None) -> Posted:
        """A person writes."""
        place = channel or self.workspace.channel
        user = self.workspace.user
        return self.add(Posted(place, new_ts(), text, thread_ts, user=user))

    def find(self, channel: str, ts: str) -> Posted | None:
        with self.lock:
            return next((m for m in self.messages if (m.channel, m.ts) == (channel, ts)), None)

    def thread(self, channel: str, ts: str) -> list[Posted]:
        """A thread, its first message included, in order."""
        with self.lock:
            return [m for m in self.messages if m.channel == channel and ts in (m.ts, m.thread_ts)]

    def replies(self, channel: str, ts: str) -> list[str]:
        """What the app said in a thread, as people read it."""
        return [m.shown for m in self.thread(channel, ts) if m.user is None]

    def set_status(self, channel: str, ts: str, status: str) -> None:
        with self.lock:
            self._statuses[channel, ts] = (status, time.monotonic())

    def status(self, channel: str, ts: str) -> str | None:
        """The status that is shown under a thread now."""
        with self.lock:
            status, since = self._statuses.get((channel, ts), ("", 0.0))
        return status if status and time.monotonic() - since < STATUS_S else None
