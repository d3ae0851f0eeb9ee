"""The commands of operators, as a person and as a program read them."""

import io
import json
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from turnmill.producer.accept import accept
from turnmill.producer.api.resources.metrics import render_open
from turnmill.producer.cli.app import main
from turnmill.producer.doctor import diagnose
from turnmill.schemas.ids import new_id
from turnmill.workers.turn.leases import Leases

#: Run `turnmill` with these words: exit status, standard output and standard error.
Turnmill = Callable[..., tuple[int, str]]
Eventually = Callable[..., None]


@pytest.fixture
def system(
    make_system: Callable[..., Any],
    database_url: str,
    valkey_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    system = make_system(database_url, valkey_url)
    for name, value in system.variables.items():
        monkeypatch.setenv(name, value)
    return system


@pytest.fixture
def worker(system: Any) -> Iterator[Leases]:
    """A worker that lives and consumes two lanes."""
    model = system.settings.engine.model_name
    leases = Leases(system.database, system.settings.worker, model=model, engine="echo")
    leases.start()
    yield leases
    leases.close()


@pytest.fixture
def turnmill(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Turnmill:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "stdin", io.StringIO())

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["turnmill", *words])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out + said.err

    return run


def test_the_status_tells_what_waits_why_and_what_helps(system: Any, turnmill: Turnmill) -> None:
    turn = accept(system.database, system.request("my secret question"))
    status, said = turnmill("status")
    assert status == 0
    assert f"turn_{turn.turn_id.hex}, the oldest of interactive" in said
    assert "none consumes lane interactive" in said
    assert "→ turnmill worker --lane interactive" in said
    assert "No live workers" in said
    assert "secret" not in said


def test_a_paused_lane_is_told_by_status_lanes_doctor_and_metrics(
    system: Any, turnmill: Turnmill
) -> None:
    accept(system.database, system.request("hello"))
    status, said = turnmill("lanes", "pause", "interactive", "--reason", "GPU replaced")
    assert status == 0
    assert "turnmill lanes resume interactive" in said
    old = "due_at = due_at - interval '1 h'"
    system.database.run(f"UPDATE outbox SET {old}")
    for command in (("status",), ("lanes", "list")):
        _, said = turnmill(*command)
        assert "interactive (paused)" in said
        assert "Lane interactive of all models is paused since" in said
        assert "GPU replaced" in said
    findings = {finding.what: finding for finding in diagnose()}
    assert findings["lanes"].fix == "turnmill lanes resume interactive"
    assert "GPU replaced" in findings["lanes"].detail
    assert not {"workers", "relay"} & findings.keys(), "the pause alone explains what waits"
    shown = render_open(system.database).decode()
    assert 'turnmill_lane_pauses_count{lane="interactive"} 1.0' in shown
    assert "turnmill_outbox_unpublished_age_seconds 0.0" in shown
    assert turnmill("lanes", "resume", "interactive")[0] == 0
    assert turnmill("lanes", "resume", "interactive")[0] == 64
    assert "is paused" not in turnmill("status")[1]


def test_workers_are_listed_for_people_and_programs(
    system: Any, worker: Leases, turnmill: Turnmill
) -> None:
    status, said = turnmill("workers", "list")
    assert (status, "consuming" in said) == (0, True)
    _, said = turnmill("workers", "list", "--json")
    (shown,) = json.loads(said)
    assert shown["worker_id"] == f"worker_{worker.worker_id.hex}"
    assert (shown["state"], shown["busy"], shown["concurrency"]) == ("consuming", 0, 8)


def test_draining_a_worker_waits_for_its_end_and_a_dead_one_is_refused(
    system: Any, turnmill: Turnmill, eventually: Eventually
) -> None:
    process = system.start_worker()
    (row,) = system.database.run("SELECT id FROM worker_liveness")
    status, said = turnmill("workers", "drain", f"worker_{row.id.hex[:14]}")
    assert status == 0
    assert "It has ended." in said.splitlines()
    assert process.wait(10) == 0
    status, said = turnmill("workers", "drain", row.id.hex)
    assert (status, "There is nothing to drain" in said) == (64, True)


def test_a_worker_that_does_not_begin_to_drain_is_told_how_to_be_stopped(
    system: Any, worker: Leases, turnmill: Turnmill, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of an older release, which does not read what it is asked."""
    monkeypatch.setattr("turnmill.producer.cli.operations.workers._NOTICED_S", 0.1)
    status, said = turnmill("workers", "drain", worker.worker_id.hex)
    assert status == 1
    assert "It has not begun to drain" in said
    assert "kill -TERM" in said


def test_a_paused_worker_is_warned_of_and_told_to_be_killed(
    system: Any, turnmill: Turnmill, eventually: Eventually
) -> None:
    """SIGTERM waits until it goes on."""
    process = system.start_worker()
    process.send(signal.SIGSTOP)
    try:
        (row,) = system.database.run(
            "UPDATE worker_liveness SET seen_at = clock_timestamp() - interval '1 min' RETURNING id"
        )
        status, said = turnmill("workers", "drain", row.id.hex)
        assert (status, f"kill -KILL {process.pid}" in said) == (1, True)
        (finding,) = [f for f in diagnose() if f.what == "silent workers"]
        assert f"kill -KILL {process.pid}" in finding.fix
    finally:
        process.send(signal.SIGCONT)
    eventually(lambda: "silent workers" not in [f.what for f in diagnose()])


def test_a_watched_status_shows_a_line_for_each_look_to_programs(
    system: Any, turnmill: Turnmill, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([None, None])

    def sleep(_: float) -> None:
        if next(looks, 0) == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr("turnmill.producer.cli.operations.status.sleep", sleep)
    status, said = turnmill("status", "--watch", "--json")
    assert status == 0
    assert [json.loads(line)["workers"] for line in said.splitlines()] == [[], [], []]


def test_turns_are_listed_and_found_without_their_dialogue(system: Any, turnmill: Turnmill) -> None:
    request = system.request("my secret question", idempotency_key="order-4711")
    turn = f"turn_{accept(system.database, request).turn_id.hex}"
    for words in (
        ("turns", "list", "--state", "queued"),
        ("turns", "list", "--json"),
        ("turns", "find", "order-4711"),
        ("turns", "find", turn[:20], "--json"),
    ):
        status, said = turnmill(*words)
        assert (status, turn in said, "secret" in said) == (0, True, False), words
    assert "No such turns." in turnmill("turns", "list", "--older-than", "10m")[1]
    status, said = turnmill("turns", "find", "order-4712")
    assert (status, "order-4712" in said) == (64, True)


def test_an_open_turn_says_why_it_waits_wherever_it_is_shown(
    system: Any, turnmill: Turnmill
) -> None:
    turn = f"turn_{accept(system.database, system.request('hello')).turn_id.hex}"
    for words in (("turns", "find", turn), ("turns", "show", turn)):
        _, said = turnmill(*words)
        assert "waits for a worker: none consumes lane interactive" in said, words
        assert "turnmill worker --lane interactive" in said, words
    system.database.run("UPDATE turns SET state = 'completed'; DELETE FROM outbox")
    assert "waits" not in turnmill("turns", "find", turn)[1]


def test_a_reply_that_did_not_reach_its_channel_says_why_wherever_its_turn_is_shown(
    system: Any, turnmill: Turnmill
) -> None:
    made = accept(system.database, system.request("hello"))
    turn, delivery = f"turn_{made.turn_id.hex}", new_id()
    system.database.run("UPDATE turns SET state = 'completed'; DELETE FROM outbox")
    system.database.run(
        "INSERT INTO deliveries (id, tenant_id, conversation_id, turn_id, channel, target, kind, "
        "state, attempt, failures, error_code, error_message) "
        "VALUES (%s, %s, %s, %s, 'acme', '{}', 'reply', 'failed', 8, 1, 'x', 'It was revoked.')",
        (delivery, system.tenant_id, made.conversation_id, made.turn_id),
    )
    for words in (("turns", "find", turn), ("turns", "show", turn)):
        _, said = turnmill(*words)
        assert "failed on channel acme, because: It was revoked." in said, words
        assert f"turnmill deliveries retry dlv_{delivery.hex}; mend" in " ".join(said.split()), (
            words
        )
    found = json.loads(turnmill("turns", "find", turn, "--json")[1])
    assert [each["error_code"] for each in found["deliveries"]] == ["x"]
    _, said = turnmill("deliveries", "list")
    assert ("failures" in said, "attempts" in said) == (True, False)
    system.database.run("UPDATE deliveries SET state = 'sent'")
    for words in (("turns", "find", turn), ("turns", "show", turn)):
        _, said = turnmill(*words)
        assert ("sent on channel acme" in said, "retry" in said) == (True, False), words
