"""Children that end with the block that started them, and with this process, whatever ends it."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from turnmill.schemas.process.ending import hurried_by
from turnmill.schemas.process.launch import launch_command

_TICK_S = 0.05
#: How long a child may take to end, and how long once somebody is in a hurry.
_GRACE_S, _HURRY_S = 15.0, 1.0


@contextmanager
def dependent(
    command: Sequence[str], *, grace_s: float = _GRACE_S, **options: Any
) -> "Iterator[subprocess.Popen[Any]]":
    """Run a program during the block, in a session of its own: Ctrl-C is for this process alone.

    After the block it gets SIGTERM, and after `grace_s` its whole session SIGKILL. `options` are
    those of `subprocess.Popen`.
    """
    waits_s = [grace_s]
    with subprocess.Popen(launch_command(command), start_new_session=True, **options) as process:
        try:
            yield process
        finally:
            with hurried_by(lambda: waits_s.append(_HURRY_S)):
                stop(process, lambda: min(waits_s))


def run_dependent(
    command: Sequence[str], *, timeout_s: float | None = None, **options: Any
) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end, as `dependent` does; return its status and what it printed.

    Raises:
        subprocess.TimeoutExpired: it took longer than `timeout_s`.
    """
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with dependent(command, encoding="utf-8", **{**pipes, **options}) as process:
        out, errors = process.communicate(timeout=timeout_s)
    return subprocess.CompletedProcess(list(command), process.returncode, out, errors)


def stop(
    process: "subprocess.Popen[str] | subprocess.Popen[bytes]",
    grace_s: Callable[[], float],
    number: signal.Signals = signal.SIGTERM,
) -> None:
    """Ask the leader of a session to end, and wait; then kill all that is left of its session.

    `grace_s` is asked again and again: the wait may be cut short.
    """
    if process.poll() is None:
        process.send_signal(number)
    asked_at = time.monotonic()
    while process.poll() is None:
        if time.monotonic() - asked_at > grace_s():
            _kill_session(process)
        time.sleep(_TICK_S)
    _kill_session(process)


def _kill_session(process: "subprocess.Popen[str] | subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
