"""A watch over one turn: what `follow` yields, with a waiting that can be cut short.

Waiting for the next item of an async generator cannot be given up without breaking the
generator, so a task of its own moves the items to a queue. Watching never affects the turn.
"""

import asyncio
from collections.abc import AsyncIterator
from enum import Enum

from turnmill.producer.follow import Restart
from turnmill.schemas.turns import Turn


class Interrupt(Enum):
    """Why a watch ended before its turn."""

    #: The server stops.
    STOPPING = "stopping"
    #: The client hung up.
    LEFT = "left"
    #: Nothing came in the time given.
    TIMEOUT = "timeout"


Item = str | Restart | Turn | Interrupt


class Watch:
    """The texts of a reply, then its turn; or an `Interrupt`."""

    def __init__(self, items: AsyncIterator[str | Restart | Turn]) -> None:
        self._items = items
        self._queue: asyncio.Queue[Item | Exception] = asyncio.Queue()

    async def __aenter__(self) -> "Watch":
        self._pump = asyncio.create_task(self._move_items())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._pump.cancel()
        await asyncio.wait([self._pump])

    async def next(self, timeout_s: float | None = None) -> Item:
        """The next item. Raises what `follow` raises."""
        try:
            async with asyncio.timeout(timeout_s):
                item = await self._queue.get()
        except TimeoutError:
            return Interrupt.TIMEOUT
        if isinstance(item, Exception):
            raise item
        return item

    async def settled(self, timeout_s: float) -> Turn | Interrupt:
        """The turn once it has ended."""
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        while isinstance(item := await self.next(until - loop.time()), str | Restart):
            pass
        return item

    async def opening(self, timeout_s: float) -> Item:
        """The first item that says something; an empty text when there is none in time."""
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        while (item := await self.next(until - loop.time())) == "":
            pass
        return "" if item is Interrupt.TIMEOUT else item

    def interrupt(self, reason: Interrupt) -> None:
        self._queue.put_nowait(reason)

    async def _move_items(self) -> None:
        try:
            async for item in self._items:
                self._queue.put_nowait(item)
        except Exception as error:
            self._queue.put_nowait(error)
