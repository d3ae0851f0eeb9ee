"""docs/deployment.md: two models on one database and broker, and what happens when one is gone."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.pages.commands import Command, commands, run
from tests.processes import free_port
from turnmill.producer.accept import accept
from turnmill.producer.tenants import create_key
from turnmill.schemas.turns import Lane, Message, Role, TurnRequest

PAGE = "deployment.md"
WORKERS, SETUP, REPLACING = (
    [line for line in commands(PAGE, "## Several models") if line.endswith("turnmill worker")],
    [line for line in commands(PAGE, "## Several models") if "bots save" in line],
    commands(PAGE, "### When a model has no worker"),
)
ASKING = [line for line in commands(PAGE, "## Several models") if line.startswith("turnmill ask")]
SMALL, LARGE = "smollm2-135m-instruct", "qwen2.5-1.5b-instruct"
Eventually = Callable[..., None]


@pytest.fixture
def system(make_system: Callable[..., Any], database_url: str, valkey_url: str) -> Any:
    return make_system(database_url, valkey_url)


@pytest.fixture
def models(system: Any) -> dict[str, Any]:
    """The page's two workers, whose engine repeats the question, a relay, and the page's bots."""
    system.start("relay")
    started = {}
    for line in WORKERS:
        command = Command.of(line)
        worker = system.start_worker(*command.words[1:], **command.variables)
        started[command.variables["TURNMILL_ENGINE__MODEL"]] = worker
    for line in SETUP:
        run(line, system.variables, Path.cwd())
    return started


@pytest.fixture
def call(system: Any, eventually: Eventually) -> Iterator[Callable[[str], httpx.Response]]:
    """Call a bot by the API; its workers may be away for half a second, and it answers in five."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    waits = {"TURNMILL_API__MODEL_GRACE_S": "0.5", "TURNMILL_API__WAIT_S": "5"}
    system.start("api", TURNMILL_API__PORT=str(port), **waits)
    eventually(lambda: _answers(url), 30)
    key = create_key(system.database, system.tenant_id, "test")
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}) as client:

        def post(bot: str) -> httpx.Response:
            body = {"model": bot, "messages": [{"role": "user", "content": "hello"}]}
            return client.post("/v1/chat/completions", json=body, timeout=60)

        yield post


def test_the_pages_bots_are_answered_by_the_worker_of_their_model(
    system: Any, models: dict[str, Any]
) -> None:
    assert set(models) == {SMALL, LARGE}
    for line in ASKING:
        assert Command.of(line).words[1] in run(line, system.variables, Path.cwd())
    rows = system.database.run("""
        SELECT t.model, w.model AS served, count(*) AS n
        FROM turns t JOIN worker_liveness w ON w.id = t.worker_id GROUP BY 1, 2 ORDER BY 1""")
    assert [(row.model, row.served, row.n) for row in rows] == [
        (LARGE, LARGE, 1),
        (SMALL, SMALL, 1),
    ]
    said = run("turnmill status", system.variables, Path.cwd())
    assert SMALL in said and LARGE in said


def test_a_model_without_worker_is_refused_by_the_api_waits_elsewhere_and_harms_no_other(
    system: Any,
    models: dict[str, Any],
    call: Callable[[str], httpx.Response],
    eventually: Eventually,
) -> None:
    assert call("research").status_code == 200
    models[LARGE].kill()
    eventually(lambda: call("research").status_code == 503, 30, 0.2)
    refused = call("research")
    assert refused.json()["error"]["code"] == "model_unavailable"
    assert call("support").status_code == 200

    waiting = accept(system.database, request(system, "research"))
    served = accept(system.database, request(system, "support"))
    eventually(lambda: state(system, served) == "completed")
    assert state(system, waiting) == "queued"
    said = run("turnmill status", system.variables, Path.cwd())
    assert f"TURNMILL_ENGINE__SERVED_NAME={LARGE} turnmill worker" in said

    # The bot changes its model; the turn that waits keeps its own.
    for line in REPLACING:
        run(line, system.variables, Path.cwd())
    assert call("research").status_code == 200
    assert state(system, waiting) == "queued"
    system.start_worker(TURNMILL_ENGINE__MODEL=LARGE)
    eventually(lambda: state(system, waiting) == "completed")


def request(system: Any, bot: str) -> TurnRequest:
    return TurnRequest(
        tenant_id=system.tenant_id,
        bot=bot,
        lane=Lane.INTERACTIVE,
        messages=(Message(role=Role.USER, content="hello"),),
    )


def state(system: Any, turn: Any) -> str:
    rows = system.database.run("SELECT state FROM turns WHERE id = %s", (turn.turn_id,))
    return str(rows[0].state)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").status_code == 200
    except httpx.TransportError:
        return False
