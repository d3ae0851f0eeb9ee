"""The line that a worker logs for each settled turn names its error by the code."""

from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from turnmill.producer.accept import accept
from turnmill.producer.turns import read_turn
from turnmill.schemas.turns import TurnState
from turnmill.workers.consumer.process import running_worker
from turnmill.workers.turn.answer import answer_turn

WORDS = "xylophone-4711"


@pytest.mark.parametrize(
    ("text", "max_attempts", "state", "expected"),
    [
        ("[[fail]]", 3, TurnState.FAILED, {"outcome": "failed", "error": "engine_failure"}),
        (
            "[[unavailable]]",
            3,
            TurnState.QUEUED,
            {"outcome": "snoozed", "error": "engine_unavailable"},
        ),
        (
            "[[unavailable]]",
            1,
            TurnState.PARKED,
            {"outcome": "snoozed", "error": "attempts_used_up", "cause": "engine_unavailable"},
        ),
        ("fine", 3, TurnState.COMPLETED, {"outcome": "answered"}),
    ],
)
def test_a_settled_turn_logs_the_code_of_its_error(
    make_system: Callable[..., Any],
    database_url: str,
    text: str,
    max_attempts: int,
    state: TurnState,
    expected: dict[str, str],
) -> None:
    system = make_system(database_url, "amqp://nobody", max_attempts=max_attempts)
    turn = accept(system.database, system.request(f"{text} {WORDS}"))
    with running_worker(system.settings) as (worker, _), capture_logs() as lines:
        assert answer_turn(worker, turn.turn_id)
    stored = read_turn(system.database, system.tenant_id, turn.turn_id)
    assert stored.state is state
    (line,) = (line for line in lines if line["event"] == "turn.settled")
    noted = {key: line[key] for key in ("outcome", "error", "cause") if key in line}
    assert noted == expected
    if state in {TurnState.FAILED, TurnState.PARKED}:
        assert noted["error"] == stored.error_code
    assert WORDS not in repr(lines)
