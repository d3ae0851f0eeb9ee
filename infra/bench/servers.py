"""The servers and processes a benchmark runs on, started and stopped here."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from turnmill.infra.embedded.postgres import EmbeddedPostgres
from turnmill.infra.embedded.rabbitmq import EmbeddedRabbitMQ
from turnmill.infra.embedded.valkey import EmbeddedValkey
from turnmill.infra.migrations import upgrade
from turnmill.schemas.process.dependent import dependent
from turnmill.schemas.settings import EngineSettings, Settings, load_settings

BROKERS = {"rabbitmq": EmbeddedRabbitMQ, "valkey": EmbeddedValkey}


@contextmanager
def servers(
    broker: str, concurrency: int, engine: EngineSettings | None = None
) -> Iterator[Settings]:
    """A durable PostgreSQL and a broker, migrated and empty; the settings to reach them."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="turnmill-bench-")))
        folder.chmod(0o755)
        postgres = stack.enter_context(EmbeddedPostgres(folder / "postgres"))
        server = stack.enter_context(BROKERS[broker](folder / broker))
        upgrade(postgres.url)
        yield load_settings(
            data=folder,
            database={"url": postgres.url},
            broker={"url": server.url},
            engine=(engine or EngineSettings(name="echo")).model_dump(),
            worker={"concurrency": concurrency},
        )


@contextmanager
def process(settings: Settings, *command: str, ready: str) -> Iterator[Path]:
    """A child that has printed `ready` when the block begins; its log. Gone after the block."""
    environment = os.environ | {
        "TURNMILL_DATA": str(settings.data),
        "TURNMILL_DATABASE__URL": settings.database.url.get_secret_value(),
        "TURNMILL_BROKER__URL": settings.broker.url.get_secret_value(),
        "TURNMILL_WORKER__CONCURRENCY": str(settings.worker.concurrency),
        "TURNMILL_API__PORT": str(settings.api.port),
        "TURNMILL_LOG__LEVEL": "info",
        "BENCH_BROKER_URL": settings.broker.url.get_secret_value(),
    }
    environment |= {
        f"TURNMILL_ENGINE__{name.upper()}": str(value)
        for name, value in settings.engine.model_dump(exclude_defaults=True).items()
    }
    names = [Path(word).stem for word in command if not word.startswith("-")]
    log = settings.data / f"{'-'.join(names)}.log"
    with (
        log.open("wb") as output,
        dependent(
            [sys.executable, *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            grace_s=30,
        ) as child,
    ):
        wait_for(lambda: ready in log.read_text() or child.poll() is not None, 180)
        if child.poll() is not None:
            raise RuntimeError(f"{command} ended:\n{log.read_text()}")
        yield log


def turnmill(settings: Settings, *command: str, ready: str) -> AbstractContextManager[Path]:
    return process(settings, "-m", "turnmill.producer.cli", *command, ready=ready)


def wait_for(condition: Callable[[], bool], timeout_s: float, every_s: float = 0.01) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing after {timeout_s} s")
        time.sleep(every_s)
