"""What the handlers share: one database, one follower, and threads for the use cases.

The use cases block, so they run in threads of their own. These and the follower's threads
together never outnumber the database's connections: a call waits for a free thread, where
waiting costs nothing, and readers that poll cannot keep a new turn from being accepted.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, ParamSpec, TypeVar
from uuid import UUID

from fastapi import Depends, Request

from turnmill.producer.api.watch import Interrupt, Watch
from turnmill.producer.follow import Follower
from turnmill.schemas.database import Database
from turnmill.schemas.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class Services:
    settings: Settings
    database: Database
    follower: Follower
    threads: ThreadPoolExecutor
    #: One thread: large bodies are parsed one after the other, so that together they take no more
    #: of the GIL from the event loop than one does.
    parser: ThreadPoolExecutor
    is_stopping: bool = False
    _watches: set[Watch] = field(default_factory=set)

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a use case in a thread."""
        return await _run(self.threads, partial(function, *args, **kwargs))

    async def parse(self, function: Callable[[bytes], T], body: bytes) -> T:
        """Parse a large body beside the event loop."""
        return await _run(self.parser, partial(function, body))

    @contextlib.asynccontextmanager
    async def watch(self, tenant_id: UUID, turn_id: UUID) -> AsyncIterator[Watch]:
        """Follow a turn; the watch is cut short when the server stops."""
        async with Watch(self.follower.follow(tenant_id, turn_id)) as watch:
            self._watches.add(watch)
            if self.is_stopping:
                watch.interrupt(Interrupt.STOPPING)
            try:
                yield watch
            finally:
                self._watches.discard(watch)

    def stop(self) -> None:
        """Let the open calls end: each tells its client where the reply will be."""
        self.is_stopping = True
        for watch in self._watches:
            watch.interrupt(Interrupt.STOPPING)


async def _run(threads: ThreadPoolExecutor, call: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(threads, copy_context().run, call)


@contextlib.asynccontextmanager
async def running_services(settings: Settings) -> AsyncIterator[Services]:
    """The services of one app, on the running event loop. Needs no database to start."""
    database = Database(settings.database)
    half = max(1, settings.database.pool_size // 2)
    threads = ThreadPoolExecutor(half, thread_name_prefix="api")
    # The follower reads in the loop's default threads.
    readers = ThreadPoolExecutor(half, thread_name_prefix="follow")
    asyncio.get_running_loop().set_default_executor(readers)
    parser = ThreadPoolExecutor(1, thread_name_prefix="parse")
    try:
        async with Follower(database) as follower:
            yield Services(settings, database, follower, threads, parser)
    finally:
        for pool in (threads, readers, parser):
            pool.shutdown(wait=False, cancel_futures=True)
        database.close()


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesOf = Annotated[Services, Depends(_services)]
