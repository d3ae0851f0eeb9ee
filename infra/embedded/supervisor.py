"""The supervisor: starts children in order, revives the dead, stops all in reverse order.

One thread does all of it, because the kernel ties a child's life to the thread that started it.
Every other thread, and every signal handler, only leaves a wish (`request_stop`), which the
thread reads at each tick. It is a daemon: a program that just ends takes its children along.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import structlog

from turnmill.infra.embedded.child import Child, ChildProcess
from turnmill.schemas.errors import StackError
from turnmill.schemas.process.ending import hurried_by

_TICK_S = 0.1
#: How long a child may take to stop once the caller is in a hurry.
_HURRY_S = 2.0


class ChildEventKind(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DIED = "died"
    RESTARTED = "restarted"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True)
class ChildEvent:
    kind: ChildEventKind
    child: Child
    #: Of a child that died.
    exit_code: int | None = None
    last_lines: Sequence[str] = ()
    restart_in_s: float | None = None


@dataclass
class Backoff:
    """How long to wait before a dead child is started again."""

    first_s: float = 0.5
    longest_s: float = 30.0
    #: A child that lived this long is healthy: its next death counts as the first.
    healthy_s: float = 60.0
    _next_s: float = field(default=0.0, init=False)

    def after(self, lived_s: float) -> float:
        if lived_s >= self.healthy_s or not self._next_s:
            self._next_s = self.first_s
        delay = self._next_s
        self._next_s = min(delay * 2, self.longest_s)
        return delay


class _StopRequested(Exception):
    """Unwinds the supervising thread."""


@dataclass
class _Watched:
    process: ChildProcess
    backoff: Backoff
    restart_at: float | None = None


class Supervisor:
    def __init__(
        self,
        children: Sequence[Child],
        logs: Path,
        *,
        notify: Callable[[ChildEvent], None] | None = None,
        backoff: Callable[[], Backoff] = Backoff,
    ) -> None:
        self._processes = {child.name: ChildProcess(child, logs) for child in children}
        self._watched: list[_Watched] = []
        self._notify = notify or (lambda event: None)
        self._backoff = backoff
        self._thread: threading.Thread | None = None
        self._settled = threading.Event()
        # Not the thread's own end: Python 3.11 takes a thread for ended once a signal handler
        # has raised in its `join`. https://github.com/python/cpython/issues/90882
        self._ended = threading.Event()
        self._is_up = False
        self._stop_requested = False
        self._is_hurried = False
        self._error: BaseException | None = None

    def start(self) -> bool:
        """Start every child in turn. True: all are ready; False: a stop was requested.

        Raises `StackError`, with everything stopped again, when a child does not become ready.
        """
        self._thread = threading.Thread(target=self._supervise, name="supervisor", daemon=True)
        self._thread.start()
        try:
            self._settled.wait()
        except BaseException:
            self.stop()
            raise
        self._raise_error()
        return self._is_up

    def request_stop(self, *, hurry: bool = False) -> None:
        """Returns at once; safe in signal handlers. `hurry` cuts every child's deadline short."""
        self._is_hurried = self._is_hurried or hurry
        self._stop_requested = True

    def stop(self, *, hurry: bool = False) -> None:
        """Stop every child; returns when none is left."""
        self.request_stop(hurry=hurry)
        if self._thread is not None:
            with hurried_by(lambda: self.request_stop(hurry=True)):
                self._ended.wait()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until everything has stopped. Raises what ended the supervisor, if not a stop."""
        if self._thread is None:
            return True
        if not self._ended.wait(timeout_s):
            return False
        self._raise_error()
        return True

    @property
    def has_ended(self) -> bool:
        return self._ended.is_set()

    def pid_of(self, name: str) -> int | None:
        return self._processes[name].pid

    def log_of(self, name: str) -> Path:
        return self._processes[name].log

    def _raise_error(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _supervise(self) -> None:
        try:
            for process in self._processes.values():
                self._bring_up(process)
            self._is_up = True
            self._settled.set()
            while True:
                self._pause(_TICK_S)
        except _StopRequested:
            pass
        except BaseException as error:
            self._error = error
        finally:
            try:
                self._stop_all()
            finally:  # those who wait for the end must hear of it, whatever became of it
                self._settled.set()
                self._ended.set()

    def _bring_up(self, process: ChildProcess) -> None:
        child = process.child
        self._tell(ChildEventKind.STARTING, child)
        process.spawn()
        deadline = time.monotonic() + child.ready_timeout_s
        while not process.is_ready():
            if not process.is_running and not process.is_ready():
                raise _failure(process, f"ended with exit code {process.exit_code}")
            if time.monotonic() > deadline:
                raise _failure(process, f"was not ready after {child.ready_timeout_s:.0f} s")
            self._pause(child.ready_every_s)
        self._tell(ChildEventKind.READY, child)
        if not child.runs_once:
            self._watched.append(_Watched(process, self._backoff()))

    def _pause(self, seconds: float) -> None:
        """Every wait of the supervising thread: it obeys a stop and revives the dead."""
        until = time.monotonic() + seconds
        while True:
            if self._stop_requested:
                raise _StopRequested
            for watched in self._watched:
                self._look_after(watched)
            remaining = until - time.monotonic()
            if remaining <= 0:
                return
            time.sleep(min(remaining, _TICK_S))

    def _look_after(self, watched: _Watched) -> None:
        process = watched.process
        if watched.restart_at is None:
            if not process.is_running:
                self._bury(watched, process.exit_code, process.last_lines())
        elif time.monotonic() >= watched.restart_at:
            watched.restart_at = None
            self._revive(watched)

    def _revive(self, watched: _Watched) -> None:
        try:
            watched.process.spawn()
        except (OSError, StackError) as error:
            self._bury(watched, None, [str(error)])
        else:
            self._tell(ChildEventKind.RESTARTED, watched.process.child)

    def _bury(self, watched: _Watched, exit_code: int | None, last_lines: Sequence[str]) -> None:
        process = watched.process
        now = time.monotonic()
        delay = watched.backoff.after(now - process.started_at)
        watched.restart_at = now + delay
        structlog.get_logger(__name__).warning(
            "child.died",
            child=process.child.name,
            exit_code=exit_code,
            restart_in_s=delay,
            last_lines=list(last_lines),
        )
        self._tell(ChildEventKind.DIED, process.child, exit_code, last_lines, delay)

    def _stop_all(self) -> None:
        for process in reversed(self._processes.values()):
            if process.is_running:
                self._tell_quietly(ChildEventKind.STOPPING, process.child)
                process.stop(lambda: _HURRY_S if self._is_hurried else None)
                self._tell_quietly(ChildEventKind.STOPPED, process.child)

    def _tell_quietly(self, kind: ChildEventKind, child: Child) -> None:
        """Tell, where the others are stopped even if whoever listens is gone: a pipe that broke,
        which rich answers with `SystemExit`, or a full disk.
        """
        try:
            self._tell(kind, child)
        except (OSError, SystemExit) as error:
            self._error = self._error or error

    def _tell(
        self,
        kind: ChildEventKind,
        child: Child,
        exit_code: int | None = None,
        last_lines: Sequence[str] = (),
        restart_in_s: float | None = None,
    ) -> None:
        self._notify(ChildEvent(kind, child, exit_code, last_lines, restart_in_s))


def _failure(process: ChildProcess, what: str) -> StackError:
    lines = "".join(f"\n  {line}" for line in process.last_lines())
    name = process.child.title or process.child.name
    return StackError(f"{name} {what}. Its log, {process.log}, ends with:{lines or ' nothing'}")
