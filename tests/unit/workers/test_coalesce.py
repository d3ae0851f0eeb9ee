"""Group commit: one call for all that wait, each with its own result, and nobody forgotten."""

import random
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from turnmill.schemas.errors import DatabaseUnavailable
from turnmill.workers.turn.coalesce import Coalescer

Eventually = Callable[..., None]


class Desk:
    """What a coalescer calls: doubles numbers, one batch at a time when it is let."""

    def __init__(self, *, is_open: bool = True) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.at_once = 0
        self.is_busy = threading.Lock()
        if is_open:
            self.gate.set()

    def run(self, items: list[int]) -> list[int]:
        assert self.is_busy.acquire(blocking=False), "two calls at a time"
        try:
            self.batches.append(items)
            assert self.gate.wait(20)
            return [2 * item for item in items]
        finally:
            self.is_busy.release()


def ask_while_busy(
    desk: Desk, ask: Coalescer[int, int], count: int, pool: ThreadPoolExecutor, wait: Eventually
) -> list[Future[int]]:
    """`count` calls that all queue up, in order, behind call 0, which is under way."""
    futures = [pool.submit(ask, 0)]
    wait(lambda: desk.batches)
    for number in range(1, count + 1):
        futures.append(pool.submit(ask, number))
        wait(lambda number=number: len(ask._waiting) == number)
    return futures


@pytest.fixture
def pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(32)


def test_a_lone_caller_is_served_at_once_and_alone() -> None:
    desk = Desk()
    ask = Coalescer(desk.run)
    assert [ask(1), ask(2)] == [2, 4]
    assert desk.batches == [[1], [2]]


def test_all_who_wait_are_served_by_one_call_each_with_its_own_result(
    pool: ThreadPoolExecutor, eventually: Eventually
) -> None:
    desk = Desk(is_open=False)
    ask = Coalescer(desk.run)
    with pool:
        futures = ask_while_busy(desk, ask, 20, pool, eventually)
        desk.gate.set()
        assert [future.result(20) for future in futures] == [2 * n for n in range(21)]
    assert desk.batches == [[0], list(range(1, 21))]


def test_who_came_first_is_served_first_and_no_call_exceeds_the_limit(
    pool: ThreadPoolExecutor, eventually: Eventually
) -> None:
    desk = Desk(is_open=False)
    ask = Coalescer(desk.run, max_size=8)
    with pool:
        futures = ask_while_busy(desk, ask, 20, pool, eventually)
        desk.gate.set()
        assert [future.result(20) for future in futures] == [2 * n for n in range(21)]
    order = list(range(1, 21))
    assert desk.batches == [[0], order[:8], order[8:16], order[16:]]


def test_an_error_of_ours_reaches_all_who_shared_the_call(
    pool: ThreadPoolExecutor, eventually: Eventually
) -> None:
    desk = Desk(is_open=False)

    def run(items: list[int]) -> list[int]:
        results = desk.run(items)
        if len(items) > 1:
            raise DatabaseUnavailable
        return results

    ask = Coalescer(run)
    with pool:
        first, *others = ask_while_busy(desk, ask, 6, pool, eventually)
        desk.gate.set()
        assert first.result(20) == 0
        for future in others:
            with pytest.raises(DatabaseUnavailable):
                future.result(20)
    assert len(desk.batches) == 2
    assert ask(7) == 14


def test_a_foreign_error_hits_only_the_item_that_caused_it(
    pool: ThreadPoolExecutor, eventually: Eventually
) -> None:
    desk = Desk(is_open=False)

    def run(items: list[int]) -> list[int]:
        is_alone = len(items) == 1 and items != [0]
        results = [2 * items[0]] if is_alone else desk.run(items)
        if 3 in items:
            raise ValueError("item 3")
        return results

    ask = Coalescer(run)
    with pool:
        futures = ask_while_busy(desk, ask, 6, pool, eventually)
        desk.gate.set()
        for number, future in enumerate(futures):
            if number == 3:
                with pytest.raises(ValueError, match="item 3"):
                    future.result(20)
            else:
                assert future.result(20) == 2 * number


def test_a_wrong_number_of_results_is_nobodys_result() -> None:
    ask: Coalescer[int, int] = Coalescer(lambda items: [])
    with pytest.raises((ValueError, IndexError)):
        ask(1)


@pytest.mark.parametrize("error", [None, DatabaseUnavailable, ValueError, MemoryError])
def test_nobody_is_left_waiting_when_64_threads_ask_at_once(
    error: type[BaseException] | None,
) -> None:
    chance = random.Random(7)

    def run(items: list[int]) -> list[int]:
        if error is not None and chance.random() < 0.2:
            raise error
        return [2 * item for item in items]

    ask = Coalescer(run, max_size=16)
    wrong: list[object] = []
    start = threading.Barrier(64)

    def work(thread: int) -> None:
        start.wait()
        for number in range(100):
            item = thread * 1000 + number
            try:
                if (result := ask(item)) != 2 * item:
                    wrong.append((item, result))
            except BaseException as raised:
                if error is None or not isinstance(raised, error):
                    wrong.append(raised)

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []
    assert ask._waiting == []
