"""The supervisor, with tiny real processes."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from turnmill.infra.embedded.child import Child, answers
from turnmill.infra.embedded.supervisor import Backoff, ChildEvent, ChildEventKind, Supervisor
from turnmill.schemas.errors import StackError

Eventually = Callable[..., None]

FOREVER = "import time\nprint('up', flush=True)\ntime.sleep(600)"
STUBBORN = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FOREVER


def python(name: str, code: str, **options: Any) -> Child:
    return Child(name=name, command=[sys.executable, "-c", code], **options)


def says_up(supervisor_logs: Path, name: str) -> Callable[[int], bool]:
    return lambda pid: "up" in (supervisor_logs / f"{name}.log").read_text()


def quick_backoff() -> Backoff:
    return Backoff(first_s=0.05, longest_s=0.2)


@contextmanager
def supervised(
    *children: Child, logs: Path, notify: Callable[[ChildEvent], None] | None = None
) -> Iterator[Supervisor]:
    supervisor = Supervisor(children, logs, notify=notify, backoff=quick_backoff)
    try:
        supervisor.start()
        yield supervisor
    finally:
        supervisor.stop(hurry=True)


def test_children_start_in_order_and_stop_in_reverse(tmp_path: Path) -> None:
    events: list[tuple[str, str]] = []
    children = [python(name, FOREVER) for name in ("first", "second", "third")]
    with supervised(
        *children, logs=tmp_path, notify=lambda e: events.append((e.kind, e.child.name))
    ):
        pass
    started = [name for kind, name in events if kind is ChildEventKind.STARTING]
    stopped = [name for kind, name in events if kind is ChildEventKind.STOPPED]
    assert started == ["first", "second", "third"]
    assert stopped == ["third", "second", "first"]


def test_a_child_starts_only_when_the_one_before_is_ready(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    first = python("first", f"open({str(flag)!r}, 'w').close()\n" + FOREVER)
    seen: list[bool] = []
    second = python("second", FOREVER, prepare=lambda: seen.append(flag.exists()))
    ready = Child(name="first", command=first.command, ready=lambda pid: flag.exists())
    with supervised(ready, second, logs=tmp_path):
        assert seen == [True]


def test_a_dead_child_is_started_again_and_its_last_lines_are_shown(
    tmp_path: Path, eventually: Eventually
) -> None:
    deaths: list[ChildEvent] = []

    def note(event: ChildEvent) -> None:
        if event.kind is ChildEventKind.DIED:
            deaths.append(event)

    child = python("worker", FOREVER, ready=says_up(tmp_path, "worker"))
    with supervised(child, logs=tmp_path, notify=note) as supervisor:
        first = supervisor.pid_of("worker")
        assert first is not None
        os.kill(first, signal.SIGKILL)
        eventually(lambda: supervisor.pid_of("worker") not in (None, first))
    assert [(d.exit_code, list(d.last_lines)) for d in deaths] == [(-9, ["up"])]


def test_a_child_that_keeps_dying_waits_longer_each_time(
    tmp_path: Path, eventually: Eventually
) -> None:
    delays: list[float] = []

    def note(event: ChildEvent) -> None:
        if event.restart_in_s is not None:
            delays.append(event.restart_in_s)

    with supervised(python("broken", "raise SystemExit(3)"), logs=tmp_path, notify=note):
        eventually(lambda: len(delays) >= 4)
    assert delays[:4] == [0.05, 0.1, 0.2, 0.2]


def test_backoff_starts_over_after_a_healthy_life() -> None:
    backoff = Backoff()
    assert [backoff.after(1.0) for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert backoff.after(61.0) == 0.5
    assert backoff.after(1.0) == 1.0


def test_a_child_that_dies_before_it_is_ready_fails_the_start(tmp_path: Path) -> None:
    bystander = python("bystander", FOREVER)
    broken = python(
        "broken", "print('no such model'); raise SystemExit(3)", ready=lambda pid: False
    )
    supervisor = Supervisor([bystander, broken], tmp_path)
    with pytest.raises(StackError, match=r"broken ended with exit code 3(.|\n)*no such model"):
        supervisor.start()
    assert supervisor.pid_of("bystander") is None


def test_a_child_that_is_not_ready_in_time_fails_the_start(tmp_path: Path) -> None:
    slow = python("slow", FOREVER, ready=lambda pid: False, ready_timeout_s=0.3)
    supervisor = Supervisor([slow], tmp_path)
    with pytest.raises(StackError, match="was not ready after"):
        supervisor.start()
    assert supervisor.pid_of("slow") is None


def test_a_step_must_succeed_before_the_next_child_starts(tmp_path: Path) -> None:
    step = python("step", "print('done')", runs_once=True)
    with supervised(step, python("after", FOREVER), logs=tmp_path) as supervisor:
        assert supervisor.pid_of("step") is None
        assert supervisor.pid_of("after") is not None
    failing = Supervisor([python("step", "raise SystemExit(1)", runs_once=True)], tmp_path)
    with pytest.raises(StackError, match="exit code 1"):
        failing.start()


def test_a_stop_in_the_middle_of_the_start_is_obeyed_at_once(
    tmp_path: Path, eventually: Eventually
) -> None:
    slow = python("slow", FOREVER, ready=lambda pid: False)
    supervisor = Supervisor([slow, python("never", FOREVER)], tmp_path)
    result: list[bool] = []
    starter = threading.Thread(target=lambda: result.append(supervisor.start()))
    starter.start()
    eventually(lambda: supervisor.pid_of("slow") is not None)
    asked_at = time.monotonic()
    supervisor.request_stop()
    starter.join()
    assert time.monotonic() - asked_at < 10
    assert result == [False]
    assert supervisor.pid_of("slow") is None
    assert not (tmp_path / "never.log").exists()


def test_a_child_that_ignores_the_signal_is_killed_after_its_deadline(tmp_path: Path) -> None:
    child = python("stubborn", STUBBORN, stop_timeout_s=0.2, ready=says_up(tmp_path, "stubborn"))
    with supervised(child, logs=tmp_path) as supervisor:
        pid = supervisor.pid_of("stubborn")
        supervisor.stop()
    assert pid is not None
    assert not psutil.pid_exists(pid)


def test_a_hurried_stop_cuts_the_deadline_short(tmp_path: Path) -> None:
    child = python("stubborn", STUBBORN, stop_timeout_s=600, ready=says_up(tmp_path, "stubborn"))
    with supervised(child, logs=tmp_path) as supervisor:
        supervisor.request_stop()
        assert not supervisor.wait(0.3)
        asked_at = time.monotonic()
        supervisor.stop(hurry=True)
        assert time.monotonic() - asked_at < 10


def test_children_die_with_a_killed_supervisor(tmp_path: Path, eventually: Eventually) -> None:
    code = f"""
import sys, time
from pathlib import Path
from turnmill.infra.embedded.child import Child
from turnmill.infra.embedded.supervisor import Supervisor
child = Child(name="child", command=[sys.executable, "-c", {STUBBORN!r}])
supervisor = Supervisor([child], Path({str(tmp_path)!r}))
supervisor.start()
print(supervisor.pid_of("child"), flush=True)
time.sleep(600)
"""
    with psutil.Popen([sys.executable, "-c", code], stdout=-1) as owner:
        child = psutil.Process(int(owner.stdout.readline()))
        owner.kill()
        owner.wait()
        eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_a_ctrl_c_at_the_terminal_does_not_reach_the_children(tmp_path: Path) -> None:
    with supervised(python("child", FOREVER), logs=tmp_path) as supervisor:
        pid = supervisor.pid_of("child")
        assert pid is not None
        assert os.getsid(pid) == pid


def test_an_error_in_a_callback_stops_everything_and_is_raised(tmp_path: Path) -> None:
    def fail(event: ChildEvent) -> None:
        if event.kind is ChildEventKind.READY:
            raise ValueError("the caller's own mistake")

    supervisor = Supervisor([python("child", FOREVER)], tmp_path, notify=fail)
    with pytest.raises(ValueError, match="own mistake"):
        supervisor.start()
    assert supervisor.pid_of("child") is None


@pytest.mark.parametrize("error", [BrokenPipeError(), SystemExit(1)])
def test_a_listener_that_is_gone_keeps_nothing_from_stopping(
    tmp_path: Path, error: BaseException
) -> None:
    def fail(event: ChildEvent) -> None:
        if event.kind in (ChildEventKind.STOPPING, ChildEventKind.STOPPED):
            raise error

    children = [python(name, FOREVER) for name in ("first", "second")]
    supervisor = Supervisor(children, tmp_path, notify=fail)
    supervisor.start()
    stopping = threading.Thread(target=supervisor.stop, daemon=True)
    stopping.start()
    stopping.join(30)
    assert not stopping.is_alive()
    assert [supervisor.pid_of(child.name) for child in children] == [None, None]


def test_a_long_log_is_put_aside_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("turnmill.infra.embedded.child.LOG_LIMIT_BYTES", 10)
    log = tmp_path / "child.log"
    log.write_text("x" * 11)
    with supervised(python("child", FOREVER, ready=says_up(tmp_path, "child")), logs=tmp_path):
        assert log.read_text() == "up\n"
    assert (tmp_path / "child.log.1").read_text() == "x" * 11


def test_a_url_is_ready_when_it_answers_200() -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/readyz" else 503)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert answers(f"{address}/readyz")
        assert not answers(f"{address}/other")
        server.shutdown()
    assert not answers(f"{address}/readyz")
