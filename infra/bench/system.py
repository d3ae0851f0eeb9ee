"""`turnmill bench system`: what the system costs with an engine that costs nothing, as ratios.

Throughput: turns through the whole system (accept, relay, broker, worker, settle) over
no-op tasks through bare Celery on the same broker, both published and consumed in the run.
Latency: one turn at a time through the whole system, less the same turn asked of the engine
directly. Saturated lane: a backlog that never ends and turns that take their time; its rate over
what the worker's slots allow, and the hints in the broker beside the relay's window.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import psutil
from rich.console import Console
from rich.table import Table

from turnmill.infra.bench.noop import LAST, create_app
from turnmill.infra.bench.servers import process, servers, turnmill, wait_for
from turnmill.producer.accept import accept, accept_many
from turnmill.producer.follow import Follower
from turnmill.producer.relay.publisher import Publisher
from turnmill.producer.tenants import ensure_defaults
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.postgres.rows import Count
from turnmill.schemas.settings import EngineSettings, Settings
from turnmill.schemas.store.fleet.deployment import read_deployment
from turnmill.schemas.turns import DEFAULT_PARAMS, Lane, Message, Role, TurnRequest
from turnmill.workers.engines.base import Prompt
from turnmill.workers.engines.echo import EchoEngine
from turnmill.workers.turn.abort import Abort

console = Console(width=110)

TEXT = "The parcel has not arrived yet."
ACCEPT_SIZE = 250

#: How long a turn of the saturated lane takes. A full window then waits longer than
#: `TURNMILL_WORKER__HINT_LOST_AFTER_S`.
WAIT_S = 0.5


@dataclass(frozen=True, slots=True)
class Load:
    turns: int
    #: Turns asked one at a time.
    singles: int
    rounds: int
    #: Threads of the worker.
    concurrency: int
    #: How long a lane is kept full, seconds; 0: not at all.
    saturated_s: float


def run_system(brokers: Sequence[str], load: Load) -> None:
    table = Table("broker", "figure", "turnmill", "compared with", "ratio or difference")
    for broker in brokers:
        with servers(broker, load.concurrency) as settings:
            for _ in range(load.rounds):
                _throughput(table, broker, settings, load.turns)
            _latency(table, broker, settings, load.singles)
            if load.saturated_s:
                _saturated(table, broker, settings, load.saturated_s)
    console.print(f"{psutil.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB")
    console.print(table)


def _throughput(table: Table, broker: str, settings: Settings, count: int) -> None:
    noops = _noop_rate(settings, count)
    turns = _turn_rate(settings, count)
    table.add_row(
        broker, "end to end", f"{turns:,.0f} turns/s", f"{noops:,.0f} bare no-op tasks/s",
        f"{turns / noops:.2f}",
    )  # fmt: skip


def _latency(table: Table, broker: str, settings: Settings, count: int) -> None:
    system = sorted(_system_latencies(settings, count))
    engine = sorted(_engine_latencies(count))
    for name, at in (("p50", 0.5), ("p99", 0.99)):
        ours, direct = (values[int(at * (len(values) - 1))] for values in (system, engine))
        table.add_row(
            broker, f"latency {name}", f"{ours * 1e3:.1f} ms",
            f"{direct * 1e3:.2f} ms engine alone", f"+{(ours - direct) * 1e3:.1f} ms",
        )  # fmt: skip


def _saturated(table: Table, broker: str, settings: Settings, duration_s: float) -> None:
    allowed = settings.worker.concurrency / WAIT_S
    rate, depth = _saturated_lane(settings, duration_s, round(allowed * duration_s * 1.5))
    most = settings.relay.window + settings.worker.concurrency
    table.add_row(
        broker, f"saturated for {duration_s:g} s", f"{rate:,.0f} turns/s",
        f"{allowed:,.0f} turns/s its slots allow", f"{rate / allowed:.2f}",
    )  # fmt: skip
    table.add_row(
        broker, "hints in its queue, at most", f"{depth:,}",
        f"{most:,}, window and prefetched", f"{depth / most:.2f}",
    )  # fmt: skip


def _saturated_lane(settings: Settings, duration_s: float, count: int) -> tuple[float, int]:
    """Turns/s while the lane is full, and the most messages that its queue held."""
    database = Database(settings.database)
    tenant_id = ensure_defaults(database, settings)
    publisher, deployment = Publisher(settings), read_deployment(database).id
    depths = []
    text = f"[[wait={WAIT_S}]] {TEXT}"
    with (
        closing(database),
        closing(publisher),
        turnmill(settings, "relay", ready="relay.started"),
        turnmill(settings, "worker", ready="worker.consuming"),
    ):
        for start in range(0, count, ACCEPT_SIZE):
            size = min(ACCEPT_SIZE, count - start)
            requests = [_request(settings, tenant_id, Lane.BATCH, text) for _ in range(size)]
            accept_many(database, requests)
        before, started_at = _open_count(database), time.perf_counter()
        while time.perf_counter() - started_at < duration_s:
            depths.append(publisher.depth(Lane.BATCH, settings.engine.model_name, deployment))
            time.sleep(0.1)
        elapsed_s = time.perf_counter() - started_at
        return (before - _open_count(database)) / elapsed_s, max(depths)


def _noop_rate(settings: Settings, count: int) -> float:
    """Published while they are consumed, from one process, as the turns are."""
    app = create_app(settings.broker.url.get_secret_value())
    worker = (str(Path(__file__).parent / "noop.py"), str(settings.worker.concurrency))
    with process(settings, *worker, ready="ready.") as log:
        started_at = time.perf_counter()
        with app.producer_or_acquire() as producer:
            for number in range(count):
                app.send_task("noop", (count - number - 1,), producer=producer)
        wait_for(lambda: LAST in log.read_text(), 300)
        return count / (time.perf_counter() - started_at)


def _turn_rate(settings: Settings, count: int) -> float:
    database = Database(settings.database)
    tenant_id = ensure_defaults(database, settings)
    with (
        turnmill(settings, "relay", ready="relay.started"),
        turnmill(settings, "worker", ready="worker.consuming"),
    ):
        started_at = time.perf_counter()
        for start in range(0, count, ACCEPT_SIZE):
            size = min(ACCEPT_SIZE, count - start)
            accept_many(database, [_request(settings, tenant_id, Lane.BATCH) for _ in range(size)])
        wait_for(lambda: _open_count(database) == 0, 300, every_s=0.05)
        elapsed_s = time.perf_counter() - started_at
    database.close()
    return count / elapsed_s


def _open_count(database: Database) -> int:
    rows = database.fetch(
        Count,
        "SELECT (SELECT count(*) FROM outbox)"
        " + (SELECT count(*) FROM turns WHERE state = 'running') AS n",
    )
    return rows[0].n


def _system_latencies(settings: Settings, count: int) -> list[float]:
    database = Database(settings.database)
    tenant_id = ensure_defaults(database, settings)

    async def one(follower: Follower) -> float:
        started_at = time.perf_counter()
        request = _request(settings, tenant_id, Lane.INTERACTIVE)
        accepted = await asyncio.to_thread(accept, database, request)
        async for _ in follower.follow(tenant_id, accepted.turn_id):
            pass
        return time.perf_counter() - started_at

    async def all_of_them() -> list[float]:
        async with Follower(database) as follower:
            for _ in range(20):
                await one(follower)
            return [await one(follower) for _ in range(count)]

    with (
        turnmill(settings, "relay", ready="relay.started"),
        turnmill(settings, "worker", ready="worker.consuming"),
    ):
        return asyncio.run(all_of_them())


def _engine_latencies(count: int) -> list[float]:
    engine = EchoEngine(EngineSettings(name="echo"))
    prompt = Prompt(messages=(Message(role=Role.USER, content=TEXT),))
    latencies = []
    for _ in range(count):
        started_at = time.perf_counter()
        for _ in engine.generate(prompt, DEFAULT_PARAMS, Abort()):
            pass
        latencies.append(time.perf_counter() - started_at)
    return latencies


def _request(settings: Settings, tenant_id: UUID, lane: Lane, text: str = TEXT) -> TurnRequest:
    return TurnRequest(
        tenant_id=tenant_id,
        bot=settings.engine.model_name,
        messages=(Message(role=Role.USER, content=text),),
        lane=lane,
    )
