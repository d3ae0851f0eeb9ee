"""A worker whose wall clock is wrong, or jumps."""

from collections.abc import Callable
from typing import Any

from turnmill.infra.chaos.breaking.clock import STEP
from turnmill.producer.accept import accept_many
from turnmill.schemas.turns import Lane

Eventually = Callable[..., None]


def test_a_worker_whose_clock_is_an_hour_wrong_doubles_nothing(
    make_system: Callable[..., Any],
    database_url: str,
    valkey_url: str,
    eventually: Eventually,
) -> None:
    """On Redis each worker gives away the hints that its own clock calls old, its fellows' too."""
    system = make_system(database_url, valkey_url)
    system.start("relay")
    system.start_worker()
    wrong = system.start("3600", "worker", module="turnmill.infra.chaos.breaking.clock")
    eventually(lambda: wrong.says("worker.consuming"), 30)
    accepted = accept_many(
        system.database,
        [system.request(f"[[wait=1]] turn {n}", lane=Lane.BATCH) for n in range(64)],
    )
    eventually(lambda: system.count("state = 'completed'") >= 16)
    wrong.send(STEP)
    eventually(lambda: system.count("state = 'completed'") >= 40)
    wrong.send(STEP)
    system.wait_until_settled()
    system.assert_answered_once_and_in_order(accepted)
    assert system.count("attempt > 1") == 0
