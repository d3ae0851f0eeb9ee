"""Group commit: what many threads ask of Postgres at the same time, it is asked once.

While one thread's statement is under way, the others queue up; the one that comes next takes
all of them along. A lone caller waits for nobody, so this costs no latency, and under load
a transaction serves as many turns as there are threads.
"""

from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

from turnmill.schemas.errors import TurnmillError

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class _Call(Generic[ItemT, ResultT]):
    __slots__ = ("error", "item", "results", "turn")

    def __init__(self, item: ItemT) -> None:
        self.item = item
        #: Held until this call is answered, or its thread is to lead the next batch.
        self.turn = Lock()
        self.turn.acquire()
        self.results: list[ResultT] | None = None
        self.error: BaseException | None = None


class Coalescer(Generic[ItemT, ResultT]):
    """Calls `run` with the items of all threads that wait, one call at a time.

    `run` maps a list of items to as many results, all or nothing. What it raises of ours all
    its callers get; anything else may be one item's fault, so each is then run alone.
    """

    def __init__(self, run: Callable[[list[ItemT]], list[ResultT]], max_size: int = 64) -> None:
        self._run = run
        self._max_size = max_size
        self._waiting: list[_Call[ItemT, ResultT]] = []
        self._is_led = False
        self._lock = Lock()

    def __call__(self, item: ItemT) -> ResultT:
        call: _Call[ItemT, ResultT] = _Call(item)
        with self._lock:
            self._waiting.append(call)
            is_leader, self._is_led = not self._is_led, True
        if not is_leader:
            call.turn.acquire()
        if call.results is None and call.error is None:
            self._lead()
        if isinstance(call.error, TurnmillError):
            raise call.error
        return call.results[0] if call.results else self._run([item])[0]

    def _lead(self) -> None:
        """Run the batch this thread's call stands in, then leave the lead to who waits longest."""
        with self._lock:
            batch = self._waiting[: self._max_size]
            del self._waiting[: self._max_size]
        try:
            results = self._run([call.item for call in batch])
            for call, result in zip(batch, results, strict=True):
                call.results = [result]
        except BaseException as error:
            for call in batch:
                call.error = error
        with self._lock:
            self._is_led = bool(self._waiting)
            next_leader = self._waiting[0] if self._waiting else None
        if next_leader is not None:
            next_leader.turn.release()
        for call in batch:
            call.turn.release()
