"""The worker process: puts its parts together, and takes them apart again."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Event
from typing import Protocol

import structlog

from turnmill.schemas.broker import own_lanes
from turnmill.schemas.embedders.embedders import Embedders
from turnmill.schemas.files.opening import open_files, open_storage
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import EngineSettings, Settings
from turnmill.schemas.turns import Lane
from turnmill.workers.consumer.availability import Availability
from turnmill.workers.engines.base import Engine
from turnmill.workers.engines.lazy import LazyEngine
from turnmill.workers.engines.registry import create_engine, resolve_engine_name
from turnmill.workers.media.opening import open_media
from turnmill.workers.media.transcriptions import Stenographer
from turnmill.workers.search.searches import Searches
from turnmill.workers.turn.answer import Worker
from turnmill.workers.turn.leases import Leases
from turnmill.workers.turn.settle import Settler
from turnmill.workers.turn.stream import Stream
from turnmill.workers.upkeep.erasures import Eraser
from turnmill.workers.upkeep.indexer import Indexer
from turnmill.workers.upkeep.pruner import Pruner
from turnmill.workers.upkeep.rescuer import Rescuer
from turnmill.workers.upkeep.standby import warm_up

log = structlog.get_logger()


class _Part(Protocol):
    """What runs beside the turns in threads of its own."""

    def start(self) -> None: ...
    def close(self) -> None: ...


@contextmanager
def running_worker(settings: Settings) -> Iterator[tuple[Worker, Rescuer]]:
    """A worker with its engine started and its threads running, ready to answer turns.

    Raises:
        SettingsError: there is no such engine, model or search connector.
    """
    engine_settings = settings.engine.model_copy(update={"models_dir": settings.models_dir})
    engine_name = resolve_engine_name(engine_settings)
    model = settings.engine.model_name
    threads = settings.worker.concurrency * len(settings.worker.lanes)
    database = Database(
        settings.database.model_copy(
            update={"pool_size": min(settings.database.pool_size, threads + 6)}
        )
    )
    engine = _engine(engine_settings, settings.worker.lanes)
    leases = Leases(
        database, settings.worker, model=model, engine=engine_name, own_lanes=own_lanes(settings)
    )
    stream = Stream(database, settings.worker.flush_s)
    rescuer = Rescuer(database, settings.worker, leases)
    pruner = Pruner(database, settings.retention, open_storage(settings))
    eraser = Eraser(database, open_storage(settings), settings.ledger_path)
    embedders = Embedders(settings.embedder)
    searches = Searches(settings.search)
    indexer = Indexer(
        *(database, open_files(database, settings), settings.worker.lease_s, embedders),
        clock=leases.clock,
    )
    give_up = Event()
    settler = Settler(database, max_attempts=settings.worker.max_attempts, give_up=give_up)
    availability = Availability(engine, leases)
    shares = (settings.worker.summary_share, settings.worker.documents_share)
    media = open_media(database, settings)
    worker = Worker(
        *(database, engine, leases, stream, settler, availability, give_up, media, *shares),
        embedders=embedders,
        searches=searches,
    )
    with ExitStack() as stack:
        stack.callback(database.close)
        stack.callback(engine.close)
        stack.callback(embedders.close)
        engine.start()
        if not isinstance(engine, LazyEngine):
            able = media.extend(engine.capabilities)
            leases.capabilities = able.model_copy(update={"documents": True})
        if settings.worker.mode == "standby":
            warm_up(engine)
        parts: list[_Part] = [leases, stream, availability, rescuer, pruner, eraser, indexer]
        if media.transcriber is not None and not isinstance(engine, LazyEngine):
            lease_s = settings.worker.lease_s
            draining, clock = leases.draining, leases.clock
            parts.append(Stenographer(media, media.transcriber, lease_s, draining, clock))
        for part in parts:
            stack.callback(part.close)
            part.start()
        log.info("worker.started", engine=engine_name, model=model, device=engine_settings.device)
        yield worker, rescuer


def _engine(settings: EngineSettings, lanes: tuple[Lane, ...]) -> Engine:
    if lanes == (Lane.QUARANTINE,):
        return LazyEngine(lambda: create_engine(settings))
    return create_engine(settings)
