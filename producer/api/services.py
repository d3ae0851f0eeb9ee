"""What the handlers share: one database, one follower, and threads for the use cases.

The use cases block, so they run in threads of their own. These and the follower's threads
together never outnumber the database's connections: a call waits for a free thread, where
waiting costs nothing, and readers that poll cannot keep a new turn from being accepted. Nor can
images that strangers send: they are decoded in a thread of their own.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, ParamSpec, TypeVar
from uuid import UUID

from fastapi import Depends, Request, Response
from pydantic import BaseModel

from turnmill.producer.api.served import ServedModels
from turnmill.producer.api.watch import Interrupt, Watch
from turnmill.producer.follow import Follower
from turnmill.producer.knowledge.stores import Ask
from turnmill.schemas.embedders.embedders import Embedders
from turnmill.schemas.errors import TransientError
from turnmill.schemas.files.files import Files
from turnmill.schemas.files.parts import PartKeeper
from turnmill.schemas.files.storage import Storage
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import DatabaseSettings, Settings

#: Larger bodies are parsed beside the event loop. JSON of this size takes some 10 ms at worst.
LARGE_BODY_BYTES = 64 * 1024
#: Threads and connections of the lookout, and calls that may wait for them.
LOOKOUT_SIZE = 2
MAX_LOOKOUT_CALLS = 256
#: Calls with images, sound or files that are read or wait for it: their bodies stay in memory.
MAX_MEDIA_CALLS = 16
#: Threads and connections of searches in collections, and searches that may wait for them.
SEARCH_SIZE = 2
MAX_SEARCHES = 64
#: Threads and connections of what collections have, and calls that may wait for them.
STOCK_SIZE = 2
MAX_STOCK_CALLS = 64
#: Threads and connections of what stores and opens files, and calls that may wait for them.
TRANSFER_SIZE = 4
MAX_TRANSFERS = 64
#: One that has waited for longer goes by words alone, which take milliseconds, seconds.
MAX_SEARCH_WAIT_S = 5.0

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
    #: One thread: an image takes seconds, and hundreds of megabytes, while it is decoded.
    media: "Queue"
    lookout: "Lookout"
    searches: "Searches"
    stock: "FileThreads"
    transfers: "FileThreads"
    served: ServedModels
    storage: Storage
    files: Files
    parts: PartKeeper
    is_stopping: bool = False
    _watches: set[Watch] = field(default_factory=set)

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a use case in a thread."""
        return await _run(self.threads, partial(function, *args, **kwargs))

    async def show(
        self, function: Callable[P, BaseModel], *args: P.args, **kwargs: P.kwargs
    ) -> Response:
        """Answer with what a use case returns, as JSON that is made in the thread: that of a long
        conversation has many megabytes."""

        def render() -> str:
            return function(*args, **kwargs).model_dump_json()

        return Response(await self.call(render), media_type="application/json")

    async def parse(self, function: Callable[[bytes], T], body: bytes) -> T:
        """Parse a body: a small one at once, a large one beside the event loop in its turn."""
        if len(body) <= LARGE_BODY_BYTES:
            return function(body)
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


class Queue:
    """A few threads, and as many calls as may be in them or wait for them."""

    def __init__(self, threads: int, name: str, most: int, refusal: str) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._left = most
        self._refusal = refusal

    async def call(self, function: Callable[[], T]) -> T:
        """Run a use case. Raises `TransientError` when too many wait already."""
        if not self._left:
            raise TransientError(self._refusal)
        self._left -= 1
        try:
            return await _run(self._threads, function)
        finally:
            self._left += 1

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class Lookout:
    """Threads and connections for what must not take those that accept turns: probes, metrics, and
    keys that nobody has seen yet."""

    def __init__(self, settings: DatabaseSettings) -> None:
        self.database = Database(settings.model_copy(update={"pool_size": LOOKOUT_SIZE}))
        refusal = "The server has too much to look up. Try again shortly."
        self._queue = Queue(LOOKOUT_SIZE, "lookout", MAX_LOOKOUT_CALLS, refusal)
        #: Each gives what its use case does.
        self._shared: dict[object, asyncio.Task[Any]] = {}

    async def call(self, function: Callable[[Database], T]) -> T:
        """Run a use case. Raises `TransientError` when too many wait already."""
        return await self._queue.call(partial(function, self.database))

    async def share(self, function: Callable[[Database], T]) -> T:
        """Run a use case once for all who ask while it runs."""
        if (task := self._shared.get(function)) is None:
            task = asyncio.create_task(self.call(function))
            self._shared[function] = task
            task.add_done_callback(partial(self._end_sharing, function))
        return await asyncio.shield(task)

    def _end_sharing(self, function: object, task: asyncio.Task[object]) -> None:
        del self._shared[function]
        if not task.cancelled():
            # Nobody may be left to ask for it, and asyncio would complain.
            task.exception()

    def close(self) -> None:
        self._queue.close()
        self.database.close()


class Searches:
    """Threads, connections and embedders for searches of collections, which take longer than what
    accepts turns. An embedder is loaded by the first search that needs it.
    """

    def __init__(self, settings: Settings) -> None:
        own = settings.database.model_copy(update={"pool_size": SEARCH_SIZE})
        self._database = Database(own)
        self._embedders = Embedders(settings.embedder)
        refusal = "The server has too many searches to do. Try again shortly."
        self._queue = Queue(SEARCH_SIZE, "search", MAX_SEARCHES, refusal)

    async def call(self, function: Callable[[Database, Ask], T]) -> T:
        """Run a use case. Raises `TransientError` when too many wait already."""
        ask = partial(self._embedders.ask, begin_before=time.monotonic() + MAX_SEARCH_WAIT_S)
        return await self._queue.call(partial(function, self._database, ask))

    def close(self) -> None:
        self._queue.close()
        self._embedders.close()
        self._database.close()


class FileThreads:
    """Threads and connections for what takes long with files.

    `stock` adds documents to collections, deletes them, or reads all of one: there are thousands at
    once, and who changes them waits for workers that save passages. `transfers` store and open
    files: each waits for a bucket.
    """

    def __init__(
        self, settings: Settings, storage: Storage, threads: int, name: str, most: int, what: str
    ) -> None:
        own = settings.database.model_copy(update={"pool_size": threads})
        self.database = Database(own)
        self.files = Files(self.database, storage, settings.files.max_tenant_bytes)
        refusal = f"The server has too many files {what}. Try again shortly."
        self._queue = Queue(threads, name, most, refusal)

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a use case. Raises `TransientError` when too many wait already."""
        return await self._queue.call(partial(function, *args, **kwargs))

    def close(self) -> None:
        self._queue.close()
        self.database.close()


async def _run(threads: ThreadPoolExecutor, call: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(threads, copy_context().run, call)


@contextlib.asynccontextmanager
async def running_services(settings: Settings, storage: Storage) -> AsyncIterator[Services]:
    """The services of one app, on the running event loop. Needs no database to start."""
    database = Database(settings.database)
    half = max(1, settings.database.pool_size // 2)
    threads = ThreadPoolExecutor(half, thread_name_prefix="api")
    # The follower reads in the loop's default threads.
    readers = ThreadPoolExecutor(max(1, half - 1), thread_name_prefix="follow")
    asyncio.get_running_loop().set_default_executor(readers)
    parser = ThreadPoolExecutor(1, thread_name_prefix="parse")
    refusal = "The server has too many images and files to read. Try again shortly."
    media = Queue(1, "media", MAX_MEDIA_CALLS, refusal)
    lookout = Lookout(settings.database)
    searches = Searches(settings)
    seen_to, moved = "of vector stores to see to", "to store and to read"
    stock = FileThreads(settings, storage, STOCK_SIZE, "stock", MAX_STOCK_CALLS, seen_to)
    transfers = FileThreads(settings, storage, TRANSFER_SIZE, "transfer", MAX_TRANSFERS, moved)
    try:
        async with Follower(database) as follower:
            served = ServedModels(settings.api.model_grace_s)
            files = Files(database, storage, settings.files.max_tenant_bytes)
            yield Services(
                settings,
                database,
                follower,
                threads,
                parser,
                media,
                lookout,
                searches,
                stock,
                transfers,
                served,
                storage,
                files,
                PartKeeper(files, storage, settings),
            )
    finally:
        for pool in (threads, readers, parser):
            pool.shutdown(wait=False, cancel_futures=True)
        media.close()
        lookout.close()
        searches.close()
        stock.close()
        transfers.close()
        database.close()


async def _services(request: Request) -> Services:
    """Not a plain function: FastAPI would run that in a thread, at each call."""
    services: Services = request.app.state.services
    return services


ServicesOf = Annotated[Services, Depends(_services)]
