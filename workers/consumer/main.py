"""`turnmill worker`: one process that consumes the lanes of one model."""

import os
import signal
import socket
import time
from dataclasses import replace

import structlog
from celery import Celery
from celery.signals import worker_ready

from turnmill.schemas.broker import refuse_early_redelivery
from turnmill.schemas.observability.telemetry import Health, telemetry
from turnmill.schemas.process.garbage import spare_loaded
from turnmill.schemas.settings import Settings
from turnmill.schemas.store.fleet.deployment import read_deployment
from turnmill.workers.consumer.app import create_app
from turnmill.workers.consumer.drain import Drain
from turnmill.workers.consumer.health import watch_worker
from turnmill.workers.consumer.process import running_worker
from turnmill.workers.consumer.task_events import TaskEvents
from turnmill.workers.consumer.tasks import register_tasks
from turnmill.workers.upkeep.standby import wait_for_takeover

log = structlog.get_logger()


def run_worker(settings: Settings) -> int:
    """Consume until SIGTERM; the exit status.

    Raises:
        SettingsError: there is no such engine or model, or the times do not fit each other.
    """
    refuse_early_redelivery(settings)
    health = Health(unready=lambda: "the engine is loading")
    with (
        telemetry(settings, "worker", health, lanes="+".join(settings.worker.lanes)),
        running_worker(settings) as (worker, rescuer),
    ):
        watch_worker(health, worker.leases, settings.worker)
        deployment = read_deployment(worker.database)
        app = create_app(settings, deployment, worker.leases)
        events = TaskEvents(app, settings.engine.model_name)
        register_tasks(app, replace(worker, watcher=events), rescuer)
        drain = Drain(worker, settings.worker.drain_s)

        def on_ready(sender: object, **_: object) -> None:
            drain.consuming(sender)
            log.info("worker.consuming", lanes=[str(lane) for lane in settings.worker.lanes])

        worker.leases.on_hang = drain.on_hang
        worker.leases.on_drain = drain.start
        worker_ready.connect(on_ready, weak=False)
        drain.listen()
        if settings.worker.mode == "standby" and not wait_for_takeover(worker):
            return 0
        worker.leases.consumed_at = time.monotonic()
        lanes = "+".join(settings.worker.lanes)
        hostname = f"{lanes}-{os.getpid()}@{socket.gethostname()}"
        threads = settings.worker.concurrency * len(settings.worker.lanes)
        status = consume(app, hostname, threads, settings)
        worker.give_up.set()
    return status


def consume(app: Celery, hostname: str, threads: int, settings: Settings) -> int:
    """Run Celery's loop until it is told to end; the exit status."""
    consumer = app.Worker(
        hostname=hostname,
        concurrency=threads,
        without_gossip=True,
        without_mingle=True,
        loglevel=settings.log.level.upper(),
        quiet=True,
    )
    spare_loaded()
    consumer.start()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return int(consumer.exitcode or 0)
