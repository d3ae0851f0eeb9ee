"""Whose failure it is: an engine that is away, or whose process dies, uses up no attempts."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from turnmill.producer.accept import accept, accept_many
from turnmill.producer.doctor.findings import Level, examine
from turnmill.producer.doctor.work import CHECKS
from turnmill.producer.turns import read_turn
from turnmill.schemas.errors import EngineAway, EngineBrokeOff, EngineDied, EngineUnavailable
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import Lane, TurnState
from turnmill.workers.consumer.availability import Availability
from turnmill.workers.consumer.process import running_worker
from turnmill.workers.engines.base import Prompt
from turnmill.workers.engines.echo import EchoEngine
from turnmill.workers.engines.lazy import LazyEngine
from turnmill.workers.engines.openai_http.errors import in_stream
from turnmill.workers.engines.remote.http_front import _unavailable as http_unavailable
from turnmill.workers.testing import InlineWorker
from turnmill.workers.turn.answer import answer_turn
from turnmill.workers.turn.leases import Leases
from turnmill.workers.upkeep.rescuer import sweep

Eventually = Callable[..., None]


@pytest.fixture
def system(make_system: Callable[..., Any], database_url: str) -> Any:
    return make_system(database_url, "amqp://nobody", rescue_every_s=60.0)


class Flaky(EchoEngine):
    """Raises `error` for every turn, and for its check if it is away."""

    def __init__(self) -> None:
        super().__init__(EngineSettings())
        self.error: EngineUnavailable | None = None
        self.calls = 0

    def check(self) -> None:
        if isinstance(self.error, EngineAway | EngineDied):
            raise self.error

    def generate(self, *arguments: Any) -> Any:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return super().generate(*arguments)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Flaky:
    flaky = Flaky()
    monkeypatch.setattr("turnmill.workers.consumer.process.create_engine", lambda _: flaky)
    return flaky


def has_rescued(system: Any, condition: str) -> bool:
    """Whether it holds for the only turn once the dead are swept; the worker's own thread may."""
    sweep(system.database, system.settings.worker)
    return bool(system.count(condition) == 1)


def row(system: Any) -> Any:
    (only,) = system.database.run("SELECT is_consuming, unavailable_because FROM worker_liveness")
    return only


def test_turns_wait_for_an_engine_that_is_away_and_use_up_no_attempts(
    system: Any, engine: Flaky, eventually: Eventually
) -> None:
    engine.error = EngineAway("it cannot be reached")
    turns = accept_many(system.database, [system.request(f"turn {n}") for n in range(20)])
    with InlineWorker(system.settings):
        eventually(lambda: row(system).unavailable_because is not None)
        assert not row(system).is_consuming, "a standby and other workers may take over"
        calls = engine.calls
        findings = list(examine({"engines away": CHECKS["engines away"]}, system))
        assert [finding.level for finding in findings] == [Level.BROKEN]
        assert "it cannot be reached" in findings[0].detail
        assert engine.calls - calls <= system.settings.worker.concurrency
        assert system.count("failures > 0 OR crashes > 0 OR state = 'parked'") == 0
        engine.error = None
        system.wait_until_settled(30)
        eventually(lambda: row(system).is_consuming)
    states = {read_turn(system.database, system.tenant_id, turn.turn_id).state for turn in turns}
    assert states == {TurnState.COMPLETED}


def test_a_failure_at_this_turn_counts(system: Any, engine: Flaky) -> None:
    engine.error = EngineUnavailable("it answers 500")
    turn = accept(system.database, system.request("hello"))
    with running_worker(system.settings) as (worker, _):
        answer_turn(worker, turn.turn_id)
    assert system.count("failures = 1 AND state = 'queued'") == 1


def test_an_engine_whose_process_dies_is_a_crash_and_leads_to_quarantine(
    system: Any, engine: Flaky, eventually: Eventually
) -> None:
    turn = accept(system.database, system.request("poison"))
    engine.error = EngineDied("Its process was killed.")
    limit = system.settings.worker.quarantine_after
    with running_worker(system.settings) as (worker, _):
        for crashes in range(1, limit + 1):
            answer_turn(worker, turn.turn_id)
            expected = f"crashes = {crashes} AND failures = 0 AND state = 'queued'"
            eventually(lambda expected=expected: has_rescued(system, expected))
    (hint,) = system.database.run("SELECT lane FROM outbox")
    assert hint.lane == Lane.QUARANTINE


def test_an_engine_that_died_before_the_turn_came_ends_its_worker_and_not_the_turn(
    system: Any, eventually: Eventually
) -> None:
    engine, ended = Flaky(), []
    leases = Leases(system.database, system.settings.worker, model="m", engine="echo")
    leases.on_hang = lambda: ended.append(True)
    availability = Availability(engine, leases)
    engine.error = EngineDied("Its process was killed.")
    availability.start()
    eventually(lambda: ended)
    availability.close()


def test_a_model_that_quarantine_cannot_load_is_no_turns_fault() -> None:
    def fail() -> Any:
        raise EngineUnavailable("no memory")

    lazy = LazyEngine(fail)
    lazy.check()
    with pytest.raises(EngineAway):
        lazy.count_tokens(Prompt(()))
    with pytest.raises(EngineAway):
        lazy.check()


class RemoteServer:
    """A server of OpenAI's API that can be killed, and started again at its address."""

    def __init__(self, folder: Path) -> None:
        standin = Path(__file__).parents[2] / "contract/openai_standin.py"
        program = standin.read_text().replace('("127.0.0.1", 0)', '("127.0.0.1", int(sys.argv[2]))')
        self._program = folder / "server.py"
        self._program.write_text(program)
        self.url = ""
        self.start()

    def start(self) -> None:
        port = self.url.rpartition(":")[2] or "0"
        command = [sys.executable, str(self._program), "0", port]
        self._server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._server.stdout is not None
        with self._server.stdout as said:
            self.url = said.readline().strip()

    def kill(self) -> None:
        self._server.kill()
        self._server.wait()

    @property
    def settings(self) -> dict[str, str]:
        return {
            "TURNMILL_ENGINE__NAME": "openai_http",
            "TURNMILL_ENGINE__ENDPOINTS": f'["{self.url}"]',
        }


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RemoteServer]:
    server = RemoteServer(tmp_path)
    yield server
    server.kill()


def test_a_remote_server_that_restarts_parks_nothing(
    make_system: Callable[..., Any], database_url: str, valkey_url: str, eventually: Eventually,
    server: RemoteServer,
) -> None:  # fmt: skip
    system = make_system(database_url, valkey_url)
    system.start("relay")
    worker = system.start_worker(**server.settings)
    accept(system.database, system.request("before"))
    system.wait_until_settled(30)
    server.kill()
    accept_many(system.database, [system.request(f"turn {n}") for n in range(12)])
    eventually(lambda: worker.says("engine.away"), 20)
    eventually(lambda: not row(system).is_consuming, 20)
    server.start()
    system.wait_until_settled(60)
    assert system.count("state = 'completed' AND failures = 0") == 13
    worker.send(signal.SIGTERM)
    assert worker.wait(timeout_s=20) == 0


def test_hints_of_a_worker_whose_engine_is_away_go_to_another_worker(
    make_system: Callable[..., Any], database_url: str, broker_url: str, eventually: Eventually,
    server: RemoteServer,
) -> None:  # fmt: skip
    """The relay would miss them after an hour only: the worker itself gives them back."""
    system = make_system(database_url, broker_url)
    system.start("relay", TURNMILL_WORKER__HINT_LOST_AFTER_S="3600")
    away = system.start_worker(**server.settings)
    server.kill()
    accept_many(system.database, [system.request(f"turn {n}") for n in range(20)])
    eventually(lambda: away.says("worker.consuming_paused"), 30)
    system.start_worker()
    system.wait_until_settled(60)
    assert system.count("state = 'completed' AND failures = 0 AND crashes = 0") == 20
    server.start()
    eventually(lambda: away.says("worker.consuming_resumed"), 30)


class BreaksOff(Flaky):
    """Says a word of each reply and breaks off; nothing at all for a turn that says "poison"."""

    def generate(self, prompt: Any, *arguments: Any) -> Any:
        self.calls += 1
        for chunk in super().generate(prompt, *arguments):
            if "poison" not in prompt.messages[-1].content:
                yield chunk
                if chunk.finish_reason:
                    return
            raise EngineBrokeOff("it ran out of memory")

    def close(self) -> None:
        """It serves several workers."""


@pytest.fixture
def breaks_off(monkeypatch: pytest.MonkeyPatch) -> BreaksOff:
    engine = BreaksOff()
    monkeypatch.setattr("turnmill.workers.consumer.process.create_engine", lambda _: engine)
    return engine


def test_a_turn_that_progresses_though_its_engine_breaks_off_is_continued_and_counts_nothing(
    system: Any, breaks_off: BreaksOff, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("turnmill.workers.turn.answer.AWAY_CAP_S", 0.02)
    words = " ".join(f"w{n}" for n in range(2 * system.settings.worker.max_attempts))
    turn = accept(system.database, system.request(words))
    with InlineWorker(system.settings):
        system.wait_until_settled(30)
    assert read_turn(system.database, system.tenant_id, turn.turn_id).reply.content == words
    assert system.count("failures = 0 AND crashes = 0") == 1


def test_quarantine_decides_about_a_turn_at_which_the_engine_breaks_off_without_progress(
    system: Any, breaks_off: BreaksOff, eventually: Eventually
) -> None:
    turn = accept(system.database, system.request("poison"))
    limit = system.settings.worker.quarantine_after
    lanes = (Lane.QUARANTINE,)
    alone = system.settings.model_copy(
        update={"worker": system.settings.worker.model_copy(update={"lanes": lanes})}
    )
    with running_worker(system.settings) as (worker, _):
        for crashes in range(1, limit + 1):
            assert answer_turn(worker, turn.turn_id)
            expected = f"crashes = {crashes} AND failures = 0 AND state = 'queued'"
            eventually(lambda expected=expected: has_rescued(system, expected))
    with running_worker(alone) as (worker, _):

        def is_parked() -> bool:
            answer_turn(worker, turn.turn_id)
            return has_rescued(system, "state = 'parked'")

        eventually(is_parked)
    ended = read_turn(system.database, system.tenant_id, turn.turn_id)
    assert (ended.state, ended.error_code) == (TurnState.PARKED, "worker_lost")


def test_a_remote_server_that_dies_in_mid_stream_uses_up_no_attempts() -> None:
    """Whatever the words for it are: a reset, a cut stream, an error within the stream."""
    broken = [
        http_unavailable(httpx.ReadError("reset by peer")),
        http_unavailable(httpx.RemoteProtocolError("peer closed connection")),
        in_stream({"message": "EngineCore encountered an issue", "code": 500}),
        in_stream("CUDA out of memory"),
    ]
    assert {type(error) for error in broken} == {EngineBrokeOff}
    assert type(http_unavailable(httpx.ConnectError("refused"))) is EngineAway
