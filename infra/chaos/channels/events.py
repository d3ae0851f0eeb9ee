"""Send events as Slack does: signed, again when no 2xx came in three seconds, and twice at times.

A conversation is a thread, or the direct messages of one person. Its next message is sent when the
last one was taken, so the order in which it is to be answered is known.
"""

import asyncio
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import httpx

from turnmill.infra.chaos.channels import handing
from turnmill.infra.chaos.channels.channels import Channels
from turnmill.infra.chaos.channels.handing import asked_text, is_handed
from turnmill.infra.chaos.client import Promised
from turnmill.infra.chaos.record import Intent, Shown, now
from turnmill.infra.mocks.sending import DEADLINE_S, Payload, Signed
from turnmill.infra.mocks.slack.events import sign_callback, sign_interaction
from turnmill.infra.mocks.slack.messages import Posted
from turnmill.infra.mocks.slack.payloads import Workspace, new_ts

_RETRY_S = 0.2
#: Of the conversations, one in so many is a direct message, and one belongs to the bot that
#: collects.
_DIRECT_EVERY, _COLLECTING_EVERY = 4, 5
#: Threads of one room: an answer can end up in another one of them.
_THREADS = 3
#: Ends the keys of events that are no messages of the load.
ASIDE = "#"
#: Shares of the events that reach two replicas at once, and that come again though they were taken.
_TWIN, _AGAIN = 0.1, 0.05


def is_collecting(conversation: str) -> bool:
    """Whether the bot that collects answers this conversation."""
    return int(conversation[1:]) % _COLLECTING_EVERY == 0


@dataclass
class _Thread:
    workspace: Workspace
    is_direct: bool
    #: The timestamp of the message that began it.
    root: str | None = None

    def event(self, text: str, chance: random.Random) -> Payload:
        """The next message: one that mentions the bot, or need not."""
        if self.is_direct:
            return self.workspace.direct_message(text)
        if self.root is None:
            event = self.workspace.mention(text)
            self.root = str(event["ts"])
            return event
        make = chance.choice((self.workspace.mention, self.workspace.message))
        return make(text, thread_ts=self.root)


@dataclass
class SlackSubmitter:
    """Submits each turn as an event of Slack, and knows what is where."""

    channels: Channels
    api_urls: list[str]
    seed: int
    _threads: dict[str, _Thread] = field(default_factory=dict)

    async def __call__(self, http: httpx.AsyncClient, intent: Intent, promised: Promised) -> None:
        chance = random.Random(f"{self.seed}/{intent.key}")
        thread = self._thread(intent.conversation)
        urls = self._urls(intent.conversation, chance)
        text = intent.text
        if is_handed(intent.conversation):
            await self._hand_over(http, urls, thread, intent)
            text = asked_text(text, intent.number)
        event = thread.event(text, chance)
        callback = self._write(thread, event, f"Ev{intent.key}")
        request = partial(sign_callback, self.channels.secret, callback)
        if event["type"] == "app_mention":
            # Slack sends it to apps that read the room as a message, too.
            double = thread.workspace.callback(
                {**event, "type": "message", "channel_type": "channel"}
            )
            await self._send(http, next(urls), sign_callback(self.channels.secret, double), 0)
        twin = None
        if chance.random() < _TWIN:
            twin = asyncio.create_task(self._send(http, next(urls), request(), 1))
        began_at, tries = await self._until_taken(http, urls, request)
        promised("", began_at, tries)
        if twin is not None:
            await twin
        if chance.random() < _AGAIN:
            await self._send(http, next(urls), request(), 2)

    async def _hand_over(
        self, http: httpx.AsyncClient, urls: Iterator[str], thread: _Thread, intent: Intent
    ) -> None:
        """What happens in a thread before a message where a person answers for a while."""
        workspace, secret = thread.workspace, self.channels.secret
        match intent.number:
            case handing.HAND_OFF_AT:
                event = workspace.message("human", thread_ts=thread.root)
            case handing.PERSON_AT:
                text = handing.person_text(intent.conversation)
                event = workspace.message(text, thread_ts=thread.root, user="U0PERSON")
            case handing.RESUME_AT:
                pressed = workspace.pressed(
                    {"action_id": "turnmill_resume"}, ts=new_ts(), thread_ts=thread.root
                )
                await self._until_taken(http, urls, partial(sign_interaction, secret, pressed))
                return
            case _:
                return
        callback = self._write(thread, event, f"Ev{intent.key}{ASIDE}")
        await self._until_taken(http, urls, partial(sign_callback, secret, callback))

    def _write(self, thread: _Thread, event: Payload, event_id: str) -> Payload:
        """Show somebody's message on the platform, and wrap it as the event that tells of it."""
        message = Posted(
            channel=str(event["channel"]),
            ts=str(event["ts"]),
            text=str(event["text"]),
            thread_ts=event.get("thread_ts"),
            user=str(event["user"]),
        )
        self.channels.platform.board.add(message)
        return thread.workspace.callback(event, event_id)

    def shown(self) -> Iterator[Shown]:
        """Everything that the bots said, as people see it in the end."""
        places = {
            (thread.workspace.direct, None)
            if thread.is_direct
            else (thread.workspace.channel, thread.root): name
            for name, thread in self._threads.items()
        }
        board = self.channels.platform.board
        with board.lock:
            posted = [message for message in board.messages if message.user is None]
        for message in posted:
            yield _shown(message, places)

    def _thread(self, conversation: str) -> _Thread:
        if conversation not in self._threads:
            number = int(conversation[1:])
            self._threads[conversation] = _Thread(
                Workspace(
                    user=f"U0{number}", channel=f"C0{number // _THREADS}", direct=f"D0{number}"
                ),
                is_direct=number % _DIRECT_EVERY == 1,
            )
        return self._threads[conversation]

    def _urls(self, conversation: str, chance: random.Random) -> Iterator[str]:
        channels = self.channels
        name = channels.collecting if is_collecting(conversation) else channels.enqueuing
        urls = chance.sample(self.api_urls, len(self.api_urls))
        return itertools.cycle([f"{url}/channels/{name}" for url in urls])

    async def _until_taken(
        self, http: httpx.AsyncClient, urls: Iterator[str], request: Callable[[], Signed]
    ) -> tuple[float, int]:
        """Send until a 2xx came in time; when the last try began, and how many it took."""
        for tries in itertools.count(1):
            began_at = now()
            if await self._send(http, next(urls), request(), tries - 1):
                return began_at, tries
            await asyncio.sleep(_RETRY_S)
        raise AssertionError

    async def _send(self, http: httpx.AsyncClient, url: str, request: Signed, retries: int) -> bool:
        """Send once; whether a 2xx came in time."""
        headers = dict(request.headers)
        if retries:
            headers["X-Slack-Retry-Num"] = str(min(retries, 3))
            headers["X-Slack-Retry-Reason"] = "http_timeout"
        try:
            async with asyncio.timeout(DEADLINE_S):
                answer = await http.post(url, content=request.body, headers=headers)
        except (TimeoutError, httpx.HTTPError):
            return False
        return answer.is_success


def _shown(message: Posted, places: dict[tuple[str, str | None], str]) -> Shown:
    is_direct = message.channel.startswith("D")
    place = message.channel, None if is_direct else message.thread_ts
    return Shown(
        conversation=places.get(place, ""),
        message=f"{message.channel}/{message.ts}",
        text=message.shown,
        is_whole=not message.is_streaming,
    )
