"""Processes of the system: the command line in one that has imported the system already.

Those imports take more than a second of a core, and the tests start hundreds of processes.
"""

import atexit
import gc
import os
import runpy
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

COMMAND_LINE = "turnmill.producer.cli"
#: What its commands import. None of them may start a thread or open a connection.
_PRELOADED = [
    "turnmill.producer.cli.app",
    "turnmill.producer.cli.entry",
    "turnmill.producer.cli.processes",
    "turnmill.producer.api.app",
    "turnmill.producer.relay.process",
    "turnmill.schemas.files.local",
    "turnmill.schemas.observability.telemetry",
    "turnmill.schemas.postgres.suitability",
    "turnmill.workers.consumer.main",
    "turnmill.workers.engines.checks",
    "turnmill.workers.engines.echo",
    # What Celery, kombu, uvicorn and sockets import by their names.
    "celery.app.amqp",
    "celery.app.control",
    "celery.app.events",
    "celery.app.log",
    "celery.app.routes",
    "celery.apps.worker",
    "celery.backends.base",
    "celery.concurrency.thread",
    "celery.fixups.django",
    "celery.worker.autoscale",
    "celery.worker.components",
    "celery.worker.consumer",
    "celery.worker.strategy",
    "encodings.idna",
    "kombu.pidbox",
    "kombu.transport.pyamqp",
    "kombu.transport.redis",
    "uvicorn.lifespan.on",
    "uvicorn.loops.asyncio",
]


class Process:
    """One `turnmill` command, or that of a module that wraps it from outside.

    Such a module must come before everything that it wraps, and gets an interpreter of its own.
    So does Flower: a test reads its command line.
    """

    def __init__(
        self, module: str, arguments: list[str], environment: dict[str, str], log: Path
    ) -> None:
        self.log = log
        is_forked = module == COMMAND_LINE and arguments[0] != "flower"
        start = _fork if is_forked else _spawn
        self._process = start(module, arguments, os.environ | environment, log)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        if self.is_running:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send(signal.SIGCONT)
        self.send(signal.SIGKILL)
        self._process.wait()

    def wait(self, timeout_s: float) -> int:
        return int(self._process.wait(timeout_s))

    def says(self, text: str) -> bool:
        """Whether it has printed that by now."""
        return text.encode() in self.log.read_bytes()

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None


def _spawn(
    module: str, arguments: list[str], environment: dict[str, str], log: Path
) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _fork(module: str, arguments: list[str], environment: dict[str, str], log: Path) -> "_Forked":
    limits = (os.nice(0), os.sched_getaffinity(0))
    process = _server().Process(
        target=_run, args=(module, arguments, environment, str(log), *limits), daemon=True
    )
    process.start()
    return _Forked(process)


@cache
def _server() -> ForkServerContext:
    context = get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


@dataclass(frozen=True, slots=True)
class _Forked:
    """A process of the fork server, with the interface of `subprocess.Popen`."""

    process: ForkServerProcess

    @property
    def pid(self) -> int | None:
        return self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        status = self.process.exitcode
        if status is None:
            raise TimeoutError(f"The process has not ended within {timeout} s.")
        return status


def _run(
    module: str,
    arguments: list[str],
    environment: dict[str, str],
    log: str,
    niceness: int,
    cores: Any,
) -> None:
    """Become what `python -m` would start, in a session of its own."""
    # What the fork server has loaded is here to stay. To look at it would copy all of its pages.
    gc.freeze()
    os.setsid()
    os.nice(niceness - os.nice(0))
    os.sched_setaffinity(0, cores)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for standard in (sys.stdout, sys.stderr):
        os.dup2(output, standard.fileno())
    os.close(output)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        # The fork server's processes end without them.
        atexit._run_exitfuncs()


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
