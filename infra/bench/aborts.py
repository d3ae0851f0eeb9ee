"""How long an engine goes on with a turn after its abort: in seconds, and in steps.

Engines do not say what they generate for an aborted turn: nobody would read it. What they do say
is how many turns they hold (`Engine.held`), and the turns beside it tell how long a step takes.
"""

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

from turnmill.infra.bench.workload import short_chats
from turnmill.workers.engines.base import Engine, Prompt
from turnmill.workers.turn.abort import Abort

#: Turns that run beside the aborted one, at most.
NEIGHBOURS = 7
#: Aborts that are measured, and tried at most: a neighbour that joins or ends meanwhile spoils one.
ABORTS, TRIES = 20, 80
#: Tokens after which a turn is aborted.
TOKENS = 4
#: Tokens of a neighbour's reply, at most: long, so that few of them end.
LONG = 400
#: Seconds in which something happens in an engine that is in order.
PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class AbortTime:
    """Of one turn."""

    #: Until the engine no longer held the turn.
    took_s: float
    #: Between two tokens of a turn beside it, until all of them got one more; the mean, as steps
    #: that took long made `took_s` longer, too.
    step_s: float

    @property
    def steps(self) -> float:
        return self.took_s / self.step_s


class _Neighbours:
    """Turns without end; what their readers see."""

    def __init__(self, engine: Engine, count: int) -> None:
        self._engine = engine
        self.count = count
        self._is_over = Abort()
        #: When each of them got a token last; None between two replies.
        self._told_at: list[float | None] = [None] * count
        #: (when, seconds since the token before).
        self.gaps: list[tuple[float, float]] = []
        #: Replies begun and ended.
        self.changes = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        with ThreadPoolExecutor(self.count) as pool:
            threads = [pool.submit(self._run, number) for number in range(self.count)]
            try:
                yield
            finally:
                self._is_over.set()
            for thread in threads:
                thread.result()

    def have_spoken_since(self, at: float) -> bool:
        return all(told_at is not None and told_at > at for told_at in self._told_at)

    def step_s(self, begun_at: float, ended_at: float) -> float:
        return statistics.fmean(gap for at, gap in self.gaps if begun_at < at <= ended_at)

    def _run(self, number: int) -> None:
        for chat in short_chats(200 + number, 1_000, LONG):
            for chunk in self._engine.generate(Prompt(chat.messages), chat.params, self._is_over):
                self._note(number, time.perf_counter(), chunk.token_count)
            self._told_at[number] = None
            self.changes += 1
            if self._is_over.is_set():
                return

    def _note(self, number: int, now: float, tokens: int) -> None:
        before, self._told_at[number] = self._told_at[number], now
        if before is None:
            self.changes += 1
        elif tokens:
            self.gaps.append((now, (now - before) / tokens))


def abort_many(engine: Engine, batch_size: int) -> list[AbortTime]:
    """Turns aborted one after the other while others run, `batch_size` at most in all. None for an
    engine that does not say how many turns it holds, or that has one at a time.

    Raises:
        RuntimeError: the engine keeps an aborted turn, or stands still.
    """
    if batch_size < 2:
        return []
    chance, found = random.Random(7), list[AbortTime]()
    neighbours = _Neighbours(engine, min(NEIGHBOURS, batch_size - 1))
    with neighbours.running(), ThreadPoolExecutor(1) as reader:
        for seed in range(TRIES):
            _wait(lambda: neighbours.have_spoken_since(0))
            if "turns" not in engine.held:
                break
            if each := _abort_one(engine, neighbours, reader, seed, chance.random()):
                found.append(each)
            if len(found) == ABORTS:
                break
    return found


def _abort_one(
    engine: Engine, neighbours: _Neighbours, reader: ThreadPoolExecutor, seed: int, phase: float
) -> AbortTime | None:
    """`phase` of a step after a token. None: the turns beside it did not stay the same."""
    (chat,) = short_chats(seed, 1, LONG)
    abort, told_at = Abort(), list[float]()

    def read() -> None:
        for _ in engine.generate(Prompt(chat.messages), chat.params, abort):
            told_at.append(time.perf_counter())

    reading = reader.submit(read)
    _wait(lambda: len(told_at) >= TOKENS or reading.done())
    changes, held = neighbours.changes, engine.held["turns"]
    time.sleep(phase * _step_of(told_at))
    aborted_at = time.perf_counter()
    abort.set()
    _wait(lambda: engine.held["turns"] < held)
    freed_at = time.perf_counter()
    # One that ended in that moment is counted no more, either.
    _wait(lambda: neighbours.have_spoken_since(freed_at) or neighbours.changes > changes)
    reading.result()
    if neighbours.changes > changes or len(told_at) < TOKENS or held != neighbours.count + 1:
        return None
    return AbortTime(freed_at - aborted_at, neighbours.step_s(aborted_at, time.perf_counter()))


def _step_of(told_at: Sequence[float]) -> float:
    gaps = [after - before for before, after in pairwise(told_at)]
    return statistics.median(gaps or [0.0])


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"An aborted turn is kept, or the others stand: {PATIENCE_S:g} s.")
        time.sleep(0.0005)
