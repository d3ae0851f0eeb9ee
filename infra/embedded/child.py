"""One child process: how it is described, started, watched and stopped."""

import http.client
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from turnmill.schemas.process.dependent import stop
from turnmill.schemas.process.launch import launch_command

#: A log that is longer than this when its process starts is put aside as `<name>.log.1`.
LOG_LIMIT_BYTES = 16 * 1024 * 1024
#: How much of a log is read for its last lines.
_TAIL_BYTES = 16 * 1024
_PROBE_TIMEOUT_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Child:
    """What the supervisor needs to know of a process."""

    name: str
    command: Sequence[str]
    #: For people: "PostgreSQL", "the worker".
    title: str = ""
    #: Runs before every start of the process.
    prepare: Callable[[], None] | None = None
    #: Asked with the process id until it says yes, or a URL that must answer 200.
    ready: Callable[[int], bool] | str | None = None
    ready_timeout_s: float = 60.0
    ready_every_s: float = 0.2
    #: A step, not a service: it must end with exit code 0 before the next child starts.
    runs_once: bool = False
    #: The whole environment; the supervisor's own when left out.
    environment: Mapping[str, str] | None = None
    folder: Path | None = None
    uid: int | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    stop_timeout_s: float = 10.0
    #: What the kernel sends when the supervisor itself is killed.
    death_signal: signal.Signals = signal.SIGKILL


class ChildProcess:
    """A child's process, from start to start the same log."""

    def __init__(self, child: Child, logs: Path) -> None:
        self.child = child
        self.log = logs / f"{child.name}.log"
        self.started_at = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def spawn(self) -> None:
        if self.child.prepare is not None:
            self.child.prepare()
        command = launch_command(
            self.child.command, uid=self.child.uid, death_signal=self.child.death_signal
        )
        with self._open_log() as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.child.folder,
                env=None if self.child.environment is None else dict(self.child.environment),
                # Ctrl-C at the terminal is for the supervisor alone.
                start_new_session=True,
            )
        self.started_at = time.monotonic()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self.is_running else None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        return None if self._process is None else self._process.poll()

    def is_ready(self) -> bool:
        ready = self.child.ready
        if self.child.runs_once:
            return self.exit_code == 0
        if (pid := self.pid) is None:
            return False
        if isinstance(ready, str):
            return answers(ready)
        return ready is None or ready(pid)

    def last_lines(self, count: int = 12) -> list[str]:
        """What the process wrote last, since it was last started."""
        with suppress(OSError), self.log.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, end - _TAIL_BYTES))
            return log.read().decode(errors="replace").splitlines()[-count:]
        return []

    def stop(self, hurried: Callable[[], float | None]) -> None:
        """Ask, wait, then insist. `hurried` may shorten the wait while it runs."""
        if self._process is None or not self.is_running:
            return
        longest_s = self.child.stop_timeout_s
        stop(
            self._process,
            lambda: min(longest_s, hurried() or longest_s),
            self.child.stop_signal,
        )

    def _open_log(self) -> BinaryIO:
        if self.log.exists() and self.log.stat().st_size > LOG_LIMIT_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._log_start = os.fstat(descriptor).st_size
        return os.fdopen(descriptor, "ab", buffering=0)


def answers(url: str) -> bool:
    """Whether the URL answers 200, asked directly: a proxy has no business on loopback."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(
        parts.hostname or "", parts.port, timeout=_PROBE_TIMEOUT_S
    )
    try:
        connection.request("GET", parts.path or "/")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
