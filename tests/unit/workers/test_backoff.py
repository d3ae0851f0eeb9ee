"""Backoff: it grows, it is spread, and it never exceeds its cap however often is tried."""

import pytest

from turnmill.workers.turn.backoff import backoff_s


@pytest.mark.parametrize("tries", [1, 2, 3, 4, 5, 6])
def test_each_try_waits_up_to_twice_as_long_as_the_one_before(tries: int) -> None:
    ceiling = 0.5 * 2 ** (tries - 1)
    waits = [backoff_s(tries) for _ in range(500)]
    assert ceiling / 2 <= min(waits) <= max(waits) <= ceiling


@pytest.mark.parametrize("tries", [7, 33, 10_000])
def test_no_number_of_tries_exceeds_the_cap(tries: int) -> None:
    waits = [backoff_s(tries, cap_s=5.0) for _ in range(500)]
    assert 2.5 <= min(waits) <= max(waits) <= 5.0


def test_workers_that_failed_together_do_not_come_back_together() -> None:
    assert len({backoff_s(3) for _ in range(100)}) > 90
