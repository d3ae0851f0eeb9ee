"""A process ends at each step of the protocol; what it left behind is answered exactly once."""

import http.client
import json
from collections.abc import Callable
from typing import Any

import pytest

from turnmill.infra.chaos.breaking.crash import CRASHED
from turnmill.infra.embedded.child import answers
from turnmill.infra.embedded.ports import claim_port
from turnmill.producer.accept import accept_many
from turnmill.producer.tenants import create_key
from turnmill.schemas.ids import new_id
from turnmill.schemas.turns import AcceptedTurn

Eventually = Callable[..., None]

MODULE = "turnmill.infra.chaos.breaking.crash"
QUICK = {"TURNMILL_WORKER__HINT_LOST_AFTER_S": "1", "TURNMILL_WORKER__RESCUE_EVERY_S": "0.3"}
#: One turn at a time, generated slowly enough to be kept in pieces.
ALONE = {
    "TURNMILL_WORKER__CONCURRENCY": "1",
    "TURNMILL_WORKER__LANES": '["interactive"]',
    "TURNMILL_ENGINE__ECHO_TOKEN_S": "0.02",
}
TEXT = "[[tokens=30]]"

#: Point, and how the attempts of the turn that was hit ended: it had added text, or had not.
WORKER_POINTS = {
    "before-claim": ["answered"],
    "after-claim": ["crashed", "answered"],
    "before-first-chunk": ["crashed", "answered"],
    "mid-generation": ["crashed", "answered"],
    "after-flush": ["interrupted", "answered"],
    "before-settle": ["interrupted", "answered"],
    "before-settle-commit": ["interrupted", "answered"],
    "after-settle-commit": ["answered"],
    "before-ack": ["answered"],
}
#: What the broker sees of a worker's crash differs at these only.
ON_BOTH = ("before-claim", "before-ack")
WORKER_CASES = [
    *((point, "valkey_url") for point in WORKER_POINTS),
    *((point, "rabbitmq_vhost_url") for point in ON_BOTH),
]
RELAY_CASES = [
    ("before-publish", "valkey_url"),
    ("before-confirm", "valkey_url"),
    ("before-confirm", "rabbitmq_vhost_url"),
    ("after-confirm", "rabbitmq_vhost_url"),
]


def accept_conversation(system: Any) -> list[AcceptedTurn]:
    """Three turns that must be answered in order, and one beside them."""
    conversation = new_id()
    return accept_many(
        system.database,
        [
            *(system.request(TEXT, conversation_id=conversation) for _ in range(3)),
            system.request(TEXT),
        ],
    )


def check_replies(system: Any, accepted: list[AcceptedTurn]) -> None:
    system.assert_answered_once_and_in_order(accepted)
    texts = system.database.run("SELECT DISTINCT content FROM replies")
    assert [row.content for row in texts] == [" ".join(f"w{n}" for n in range(1, 31))]


def endings(system: Any) -> list[list[str]]:
    """How the attempts of each turn ended."""
    rows = system.database.run(
        "SELECT array_agg(outcome ORDER BY number) AS outcomes FROM attempts GROUP BY turn_id"
    )
    return [row.outcomes for row in rows]


@pytest.mark.parametrize(("point", "broker"), WORKER_CASES)
def test_a_worker_may_end_at_any_step(
    point: str,
    broker: str,
    request: pytest.FixtureRequest,
    make_system: Callable[..., Any],
    database_url: str,
) -> None:
    system = make_system(database_url, request.getfixturevalue(broker))
    system.start("relay")
    doomed = system.start(point, "worker", module=MODULE, **ALONE)
    accepted = accept_conversation(system)
    assert doomed.wait(timeout_s=30) == CRASHED, doomed.log.read_text()
    system.start("worker", **QUICK)
    system.wait_until_settled()
    check_replies(system, accepted)
    hit = WORKER_POINTS[point]
    unhit = [["answered"]] * 4
    assert sorted(endings(system)) == sorted(unhit if hit == ["answered"] else [hit, *unhit[1:]])


@pytest.mark.parametrize(("point", "broker"), RELAY_CASES)
def test_a_relay_may_end_at_any_step(
    point: str,
    broker: str,
    request: pytest.FixtureRequest,
    make_system: Callable[..., Any],
    database_url: str,
) -> None:
    system = make_system(database_url, request.getfixturevalue(broker))
    doomed = system.start(point, "relay", module=MODULE)
    accepted = accept_conversation(system)
    assert doomed.wait(timeout_s=30) == CRASHED, doomed.log.read_text()
    system.start("worker", **QUICK)
    system.start("relay")
    system.wait_until_settled()
    check_replies(system, accepted)
    assert endings(system) == [["answered"]] * 4


@pytest.mark.parametrize("point", ["before-accept-commit", "after-accept-commit"])
def test_an_api_may_end_before_and_after_it_has_accepted(
    point: str,
    make_system: Callable[..., Any],
    database_url: str,
    valkey_url: str,
    eventually: Eventually,
) -> None:
    system = make_system(database_url, valkey_url)
    key = create_key(system.database, system.tenant_id, "test")
    port = claim_port()
    listening = {"TURNMILL_API__PORT": str(port.port)}
    doomed = system.start(point, "api", module=MODULE, **listening)
    eventually(lambda: answers(f"http://127.0.0.1:{port.port}/readyz"))
    with pytest.raises((OSError, http.client.HTTPException)):
        ask(system, port.port, key)
    assert doomed.wait(timeout_s=30) == CRASHED, doomed.log.read_text()
    assert system.count("true") == (1 if point == "after-accept-commit" else 0)
    system.start("api", **listening)
    system.start("relay")
    system.start("worker", **QUICK)
    eventually(lambda: answers(f"http://127.0.0.1:{port.port}/readyz"))
    assert ask(system, port.port, key) == "hello"
    assert system.count("state = 'completed'") == system.count("true") == 1
    port.release()


def ask(system: Any, port: int, key: str) -> str:
    """The client's call, always with the same idempotency key."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    body = {
        "model": system.settings.engine.model_name,
        "messages": [{"role": "user", "content": "hello"}],
    }
    headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": "the same"}
    try:
        link.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = json.loads(link.getresponse().read())
    finally:
        link.close()
    content: str = answer["choices"][0]["message"]["content"]
    return content
