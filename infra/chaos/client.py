"""The client of a run: submits turns to many conversations and records what it is promised.

Of one conversation the next turn is submitted when the last one was accepted, not answered. By
which way turns are submitted is the submitter's business.
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

import httpx

from turnmill.infra.chaos.record import Intent, Promise, Record, now
from turnmill.schemas.process.clients import async_http_client
from turnmill.schemas.turns import Lane

#: Called with each answer that says the turn is accepted: its id where the answer names it, when
#: the call began, and how many calls it took so far.
Promised = Callable[[str, float, int], None]

#: Tries until the turn is accepted, and calls `Promised` then; returns when all answers are read.
Submit = Callable[[httpx.AsyncClient, Intent, Promised], Awaitable[None]]

_WORDS = ("parcel", "late", "order", "refund", "where", "when", "card", "login", "thanks", "hello")


@dataclass(frozen=True, slots=True)
class Load:
    """What is submitted."""

    turns: int
    conversations: int
    seed: int
    #: Turns per second that are offered, while no more than `max_open` are unanswered.
    rate: float
    max_open: int = 600
    #: Share of the turns that are sent through the API and read as streams.
    streamed: float = 0.05
    #: Turns of each kind that go wrong on purpose.
    poison: tuple[str, ...] = ()
    max_words: int = 12
    #: Of the turns that are not streamed.
    lane: Lane = Lane.BATCH
    #: Every conversation has as many turns as the others, one after the other in rounds.
    is_even: bool = False


class Client:
    """Submits one load; `run` returns when every turn is accepted and every stream has ended."""

    def __init__(
        self,
        load: Load,
        record: Record,
        submit: Submit,
        *,
        run_name: str,
        count_open: Callable[[], int],
    ) -> None:
        """Keys begin with the run's name, so that runs may share a database."""
        self.accepted_count = 0
        self._load = load
        self._record = record
        self._submit = submit
        self._run_name = run_name
        self._count_open = count_open
        self._random = random.Random(load.seed)
        self._running: tuple[asyncio.AbstractEventLoop | None, asyncio.Task[None] | None]
        self._running = None, None
        self._numbers: defaultdict[str, int] = defaultdict(int)
        #: Calls that began before a broken connection was noticed must not overtake.
        self._order: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def run(self) -> None:
        self._running = asyncio.get_running_loop(), asyncio.current_task()
        poison = self._poison()
        limits = httpx.Limits(max_connections=200)
        async with (
            # The APIs are on this machine, each called by its whole address.
            async_http_client("http://127.0.0.1", timeout=30, limits=limits) as http,
            asyncio.TaskGroup() as tasks,
        ):
            async for number in self._paced():
                intent = self._intent(number, poison.get(number, ""))
                tasks.create_task(self._submit_one(http, intent))

    def stop(self) -> None:
        """Give up what is not accepted yet; from another thread."""
        loop, task = self._running
        if loop is not None and task is not None:
            # A loop that has ended has nothing left to give up.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(task.cancel)

    async def _paced(self) -> AsyncIterator[int]:
        loop = asyncio.get_running_loop()
        due_at = loop.time()
        for number in range(self._load.turns):
            due_at = max(due_at + 1 / self._load.rate, loop.time() - 1)
            # Another thread counts; there is no event to wait for.
            while self._count_open() > self._load.max_open:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            await asyncio.sleep(max(0.0, due_at - loop.time()))
            yield number

    def _poison(self) -> dict[int, str]:
        """Which turns carry a magic word: spread over the middle of the run."""
        first, last = self._load.turns // 10, max(self._load.turns * 7 // 10, 1)
        numbers = self._random.sample(range(first, last), k=len(self._load.poison))
        return dict(zip(numbers, self._load.poison, strict=True))

    def _intent(self, number: int, magic: str) -> Intent:
        count = self._load.conversations
        conversation = f"c{number % count if self._load.is_even else self._random.randrange(count)}"
        self._numbers[conversation] += 1
        words = self._random.choices(_WORDS, k=self._random.randint(2, self._load.max_words))
        text = " ".join([f"{conversation}/{self._numbers[conversation]}", *words, magic]).strip()
        key = f"{self._run_name}/{number}"
        return Intent(key, conversation, self._numbers[conversation], text, now())

    async def _submit_one(self, http: httpx.AsyncClient, intent: Intent) -> None:
        """Holds the conversation's lock until the turn is accepted."""
        lock = self._order[intent.conversation]
        await lock.acquire()
        is_held = True

        def promised(turn_id: str, began_at: float, tries: int) -> None:
            nonlocal is_held
            if is_held:
                at = now()
                self._record.add(Promise(intent.key, turn_id, at, at - began_at, tries))
                self.accepted_count += 1
                lock.release()
                is_held = False

        self._record.add(intent)
        try:
            await self._submit(http, intent, promised)
        finally:
            if is_held:
                lock.release()
