"""What a remote server says of one turn harms that turn alone; what it says of all harms none."""

import time
from collections.abc import Callable, Iterator
from threading import Event
from typing import Any

import pytest

from tests.contract.odd_server import OddServer, serving
from turnmill.producer.accept import accept, accept_many
from turnmill.producer.turns import read_turn
from turnmill.schemas.errors import EngineBusy
from turnmill.schemas.settings import EngineSettings
from turnmill.workers.consumer.availability import Availability
from turnmill.workers.engines.echo import EchoEngine
from turnmill.workers.testing import InlineWorker
from turnmill.workers.turn.backoff import POSTPONED
from turnmill.workers.turn.leases import Leases

Eventually = Callable[..., None]

POISON = "turns.input::text LIKE '%POISON%'"
#: Seconds in which neighbours are answered beside as many turns that the server refuses.
PROMPTLY_S = 60


@pytest.fixture
def odd() -> Iterator[OddServer]:
    with serving() as server:
        yield server


def refusing(status: int, word: str = "") -> Callable[[dict[str, Any]], Any]:
    """Refuse the prompts with the word in them; all, if there is none."""
    error = {"message": "no", "code": status}

    def refuse(body: dict[str, Any]) -> Any:
        return (status, {"error": error}) if word in body["messages"][-1]["content"] else None

    return refuse


@pytest.fixture
def make(make_system: Callable[..., Any], database_url: str, odd: OddServer) -> Any:
    """A system whose engine asks the server."""

    def make(broker_url: str = "amqp://nobody", **worker: Any) -> Any:
        system = make_system(database_url, broker_url, **worker)
        engine = EngineSettings(
            name="openai_http", endpoints=(odd.url,), remote_model="m", context_window=512
        )
        system.settings = system.settings.model_copy(update={"engine": engine})
        return system

    return make


def submit(system: Any, *words: str) -> None:
    accept_many(
        system.database, [system.request(f"{word} {n}") for n in range(20) for word in words]
    )


@pytest.mark.parametrize("status", [403, 429, 500])
def test_prompts_that_a_server_refuses_leave_their_neighbours_alone(
    make: Any, valkey_url: str, odd: OddServer, eventually: Eventually, status: int
) -> None:
    system = make(valkey_url)
    odd.refuses = refusing(status, "POISON")
    system.start("relay")
    system.start_worker(
        TURNMILL_ENGINE__NAME="openai_http",
        TURNMILL_ENGINE__ENDPOINTS=f'["{odd.url}"]',
        TURNMILL_ENGINE__REMOTE_MODEL="m",
        TURNMILL_ENGINE__CONTEXT_WINDOW="512",
    )
    submit(system, "POISON", "Hi")
    answered = "state = 'completed' AND failures = 0 AND crashes = 0"
    eventually(lambda: system.count(answered) == 20, PROMPTLY_S)
    assert system.count(f"{answered} AND {POISON}") == 0
    if status != 429:
        eventually(lambda: system.count(f"failures > 0 AND {POISON}") == 20, PROMPTLY_S)


@pytest.mark.parametrize("status", [403, 504])
def test_a_prompt_that_is_always_refused_is_parked_though_nobody_else_asks(
    make: Any, odd: OddServer, status: int
) -> None:
    system = make(max_attempts=3)
    odd.refuses = refusing(status, "POISON")
    accept(system.database, system.request("POISON"))
    with InlineWorker(system.settings):
        system.wait_until_settled(30)
    assert system.count("state = 'parked' AND error_code = 'attempts_used_up'") == 1


def test_a_turn_for_which_a_busy_server_never_has_room_costs_nothing_for_long_and_ends(
    make: Any, odd: OddServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, most = 3, 2
    monkeypatch.setattr("turnmill.workers.turn.backoff.FREE_POSTPONEMENTS", free)
    system = make(max_attempts=most)
    odd.refuses = refusing(429, "POISON")
    accept(system.database, system.request("POISON"))
    with InlineWorker(system.settings):
        system.wait_until_settled(60)
    assert system.count(f"state = 'parked' AND attempt = {free + most}") == 1
    rows = system.database.run("SELECT outcome, error FROM attempts ORDER BY number")
    handed_back = [("handed_back", POSTPONED)] * free
    assert [(row.outcome, row.error) for row in rows[:free]] == handed_back


def test_a_turn_for_which_a_server_has_no_room_waits_as_long_as_it_asks(
    make: Any, odd: OddServer, eventually: Eventually
) -> None:
    system = make()
    odd.headers, odd.refuses = {"Retry-After": "20"}, refusing(429, "POISON")
    accept(system.database, system.request("POISON"))
    with InlineWorker(system.settings):
        eventually(lambda: system.count("state = 'queued' AND attempt = 1"))
        (hint,) = system.database.run(
            "SELECT extract(epoch FROM due_at - clock_timestamp())::float AS left_s FROM outbox"
        )
        accept(system.database, system.request("Hi"))
        eventually(lambda: system.count("state = 'completed'"))
    assert 15 < hint.left_s < 21


def test_a_turn_ends_at_its_deadline_though_the_server_that_counts_its_prompt_is_silent(
    make: Any, odd: OddServer, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("turnmill.workers.engines.remote.http_front.SHORT_S", 120)
    odd.models = [{"id": "m", "owned_by": "vllm", "max_model_len": 512}]
    odd.refuses = lambda body: None if "stream" in body else (200, {"count": 3})
    system, is_over = make(), Event()
    first = accept(system.database, system.request("Hi"))
    with InlineWorker(system.settings):
        eventually(lambda: system.count("state = 'completed'") == 1)
        odd.refuses = lambda body: None if "stream" in body else is_over.wait() and None
        request = system.request("more", conversation_id=first.conversation_id, timeout_s=2.0)
        second = accept(system.database, request)
        try:
            eventually(lambda: system.count("state = 'failed'") == 1, 30)
        finally:
            is_over.set()
    turn = read_turn(system.database, system.tenant_id, second.turn_id)
    assert turn.error_code == "deadline_exceeded"
    rows = system.database.run("SELECT count(*) AS n FROM attempts WHERE outcome = 'failed'")
    assert rows[0].n == 1, "the attempt itself ended the turn"


def test_a_worker_pauses_if_its_engine_has_no_room_for_one_turn_after_the_other(make: Any) -> None:
    system = make()
    leases = Leases(system.database, system.settings.worker, model="m", engine="echo")
    availability = Availability(EchoEngine(EngineSettings()), leases)
    for _ in range(3):
        availability.report_busy(EngineBusy("it answers 429"))
        assert leases.unavailable_because is None
        availability.took(time.monotonic())
    availability.report_busy(EngineBusy("it answers 429"))
    availability.report_busy(EngineBusy("it answers 429"))
    assert leases.unavailable_because == "it answers 429"


@pytest.mark.parametrize("status", [401, 429, 503])
def test_turns_wait_for_a_server_that_refuses_every_prompt_though_it_lists_its_models(
    make: Any, odd: OddServer, eventually: Eventually, status: int
) -> None:
    system = make(max_attempts=1)
    odd.refuses = refusing(status)
    submit(system, "Hi")
    with InlineWorker(system.settings):
        eventually(lambda: system.count("attempt > 0") == 20, 30)
        eventually(lambda: system.count("attempt > 1") > 0, 30)
        assert system.count("state IN ('queued', 'running') AND failures = 0") == 20
        odd.refuses = lambda body: None
        system.wait_until_settled(60)
    assert system.count("state = 'completed' AND failures = 0 AND crashes = 0") == 20
