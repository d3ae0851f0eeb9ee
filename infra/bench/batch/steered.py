"""`turnmill bench batch`: a large batch, and whether it can be watched and steered while it runs.

A process of its own submits rows that it makes as it goes. Meanwhile, the status is read, the batch
is paused, resumed and cancelled, and results are written. Times are PostgreSQL's.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple
from uuid import UUID

from rich.console import Console
from rich.table import Table

from turnmill.infra.bench.servers import process, servers, turnmill, wait_for
from turnmill.producer.batches.control import cancel_batch, pause, resume
from turnmill.producer.batches.lookup import list_batches
from turnmill.producer.batches.progress import summarize
from turnmill.producer.batches.results import results, write_results
from turnmill.producer.tenants import ensure_defaults
from turnmill.schemas.batches import Batch, BatchProgress
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import DatabaseSettings, Settings

#: How long the batch runs between two decisions, seconds.
RUN_S = 30.0


class _Starts(NamedTuple):
    last_s: float
    first_s: float


_LAST_START = """
SELECT coalesce(extract(epoch FROM max(started_at) - %(since)s), 0)::float AS last_s,
    coalesce(extract(epoch FROM min(started_at) FILTER (WHERE started_at > %(since)s)
        - %(since)s), 'NaN')::float AS first_s
FROM turns WHERE batch_id = %(batch)s AND started_at > %(since)s - interval '1 minute'
"""


class _Now(NamedTuple):
    at: datetime


@dataclass(slots=True)
class Figures:
    """What was measured: a name and a text for each line of the table."""

    console: Console
    rows: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str, text: str) -> None:
        """Show it, too: a large batch takes many minutes, and may be ended."""
        self.rows.append((name, text))
        self.console.print(f"{name}: {text}", style="dim", soft_wrap=True)

    def table(self) -> Table:
        table = Table("figure", "measured")
        for row in self.rows:
            table.add_row(*row)
        return table


class Watched:
    """The batch, its status read every second by a thread that times each reading."""

    def __init__(self, database: Database, tenant_id: UUID, batch: Batch) -> None:
        self.database, self.batch = database, batch
        self._tenant_id = tenant_id
        self.took_s: list[float] = []
        self.seen: list[tuple[float, BatchProgress]] = []

    def read(self) -> BatchProgress:
        started_at = time.monotonic()
        now = summarize(self.database, self._tenant_id, self.batch.batch_id)
        self.took_s.append(time.monotonic() - started_at)
        self.seen.append((started_at, now))
        return now

    @contextmanager
    def watching(self) -> Iterator[None]:
        stopping = Event()

        def watch() -> None:
            while not stopping.wait(1.0):
                self.read()

        thread = Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            thread.join()

    def time_decision(self, decide: Callable[[Database, Batch], bool]) -> tuple[float, float]:
        """Decide; seconds until the command returned, and until the last turn that started."""
        (began,) = self.database.fetch(_Now, "SELECT clock_timestamp() AS at")
        started_at = time.monotonic()
        decide(self.database, self.batch)
        took_s = time.monotonic() - started_at
        return took_s, self._starts(began.at)[0]

    def time_resumption(self) -> tuple[float, float]:
        """Resume; seconds until the command returned, and until the first turn started."""
        (began,) = self.database.fetch(_Now, "SELECT clock_timestamp() AS at")
        started_at = time.monotonic()
        resume(self.database, self.batch)
        took_s = time.monotonic() - started_at
        wait_for(lambda: self._starts(began.at)[1] > 0, 60, every_s=0.1)
        return took_s, self._starts(began.at)[1]

    def _starts(self, since: datetime) -> tuple[float, float]:
        (row,) = self.database.fetch(
            _Starts, _LAST_START, {"since": since, "batch": self.batch.batch_id}
        )
        return max(0.0, row.last_s), row.first_s


def run_batch(broker: str, rows: int, concurrency: int, console: Console) -> None:
    """Run the batch and print the figures."""
    figures = Figures(console)
    with (
        servers(broker, concurrency) as settings,
        closing(Database(_patient(settings))) as database,
        turnmill(settings, "relay", ready="relay.started"),
        turnmill(settings, "worker", ready="worker.consuming"),
    ):
        program = str(Path(__file__).with_name("made_rows.py"))
        started_at = time.monotonic()
        with process(settings, program, str(rows), ready="submitting") as log:
            watched = _found(settings, database)
            with watched.watching():
                wait_for(lambda: "submitted" in log.read_text(), 3600, every_s=0.5)
                took_s = time.monotonic() - started_at
                figures.add("submitting", f"{rows:,} rows in {took_s:.0f} s")
                figures.add("memory of the submitter", _memory(log.read_text()))
                _steer(watched, settings.data / "results.jsonl", figures)
        _add_readings(watched, figures)
    console.print(figures.table())


def _patient(settings: Settings) -> DatabaseSettings:
    """On a busy machine a disk may stand still: that is a long reading, and not the end."""
    return settings.database.model_copy(update={"answer_timeout_s": 120.0})


def _found(settings: Settings, database: Database) -> Watched:
    tenant_id = ensure_defaults(database, settings)
    wait_for(lambda: bool(list_batches(database, tenant_id)), 60, every_s=0.1)
    return Watched(database, tenant_id, list_batches(database, tenant_id)[0])


def _steer(watched: Watched, path: Path, figures: Figures) -> None:
    time.sleep(RUN_S)
    returned_s, last_s = watched.time_decision(pause)
    figures.add("pause", f"last turn started {last_s:.2f} s after it; command {returned_s:.1f} s")
    returned_s, first_s = watched.time_resumption()
    figures.add("resume", f"first turn started after {first_s:.2f} s; command {returned_s:.1f} s")
    started_at = time.monotonic()
    batch = watched.batch
    count = write_results(path, results(watched.database, batch.tenant_id, batch.batch_id))
    took_s = time.monotonic() - started_at
    figures.add("results while it runs", f"{count:,} rows in {took_s:.0f} s")
    time.sleep(RUN_S)
    returned_s, last_s = watched.time_decision(cancel_batch)
    figures.add("cancel", f"last turn started {last_s:.2f} s after it; command {returned_s:.1f} s")
    end = watched.read()
    figures.add("in the end", ", ".join(f"{n:,} {state}" for state, n in end.states.items()))


def _memory(log: str) -> str:
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    first, last = lines[0], lines[-1]
    return f"{first['peak_mib']} MiB at {first['rows']:,} rows, {last['peak_mib']} MiB at the end"


def _add_readings(watched: Watched, figures: Figures) -> None:
    took = sorted(watched.took_s)
    p95 = took[int(0.95 * (len(took) - 1))]
    figures.add(
        "reading the status",
        f"p50 {statistics.median(took):.2f} s, p95 {p95:.2f} s, longest {took[-1]:.2f} s "
        f"of {len(took)} readings",
    )
    ratios = _rate_ratios(watched.seen)
    if ratios:
        figures.add(
            "rate said ÷ rate of the next 20 s",
            f"{min(ratios):.2f} to {max(ratios):.2f}, median {statistics.median(ratios):.2f}",
        )


def _rate_ratios(seen: list[tuple[float, BatchProgress]]) -> list[float]:
    """How the rate that was said compares with what came, wherever the batch ran all the time."""
    ratios = []
    for at, progress in seen:
        later = [each for each in seen if at + 20 <= each[0] < at + 25]
        if not later or progress.turns_per_s is None:
            continue
        between = [each for moment, each in seen if at <= moment <= later[0][0]]
        came = (later[0][1].settled - progress.settled) / (later[0][0] - at)
        if came > 0 and not any(each.is_paused for each in between):
            ratios.append(progress.turns_per_s / came)
    return ratios
