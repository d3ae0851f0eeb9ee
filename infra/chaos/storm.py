"""One storm: a client, a site, faults from a plan, and the checker's word at the end."""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import structlog

from turnmill.infra.chaos.breaking.actions import Action, available_actions
from turnmill.infra.chaos.breaking.engine import generated_tokens
from turnmill.infra.chaos.channels.channels import Channels, open_channels
from turnmill.infra.chaos.channels.events import SlackSubmitter
from turnmill.infra.chaos.channels.verdict import check_channels
from turnmill.infra.chaos.checker import Verdict, check
from turnmill.infra.chaos.client import Client, Load, Submit
from turnmill.infra.chaos.neighbours import neighbours
from turnmill.infra.chaos.observed import Observed, observe
from turnmill.infra.chaos.plan import Strike, follow, make_plan
from turnmill.infra.chaos.record import Entry, Fault, Record, now, read_record
from turnmill.infra.chaos.site import Servers, Site, Size, open_networks
from turnmill.infra.chaos.turns import TurnSubmitter
from turnmill.producer.tenants import create_key, ensure_defaults
from turnmill.schemas.errors import DatabaseUnavailable
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.postgres.rows import Count
from turnmill.schemas.settings import DatabaseSettings, EngineSettings, SecretUrl, Settings

log = structlog.get_logger()

#: Each part has an index: the run's settled turns are many, and this is asked all the time.
_OPEN = """
SELECT (SELECT count(*) FROM outbox WHERE model = %(model)s)
     + (SELECT count(*) FROM turns WHERE model = %(model)s AND state = 'running')
     + (SELECT count(*) FROM turns WHERE model = %(model)s AND state = 'waiting') AS n
"""

#: A turn of a channel is over when its reply is sent.
_UNSENT = """
SELECT count(*) AS n FROM deliveries
WHERE channel = ANY(%(channels)s) AND state IN ('pending', 'queued', 'sending')
"""


class _WorkerId(NamedTuple):
    id: str


_WORKER = """
SELECT id::text AS id FROM worker_liveness WHERE pid = %s ORDER BY started_at DESC LIMIT 1
"""

#: After the last fault everything must be answered within this time.
SETTLE_S = 180.0
#: A second message of one that is sent already would come within this time.
_ECHO_S = 3.0
_POLL_S = 0.25
_REPORT_S = 10.0


@dataclass(frozen=True, slots=True)
class Storm:
    """What one run does; the same values, the same run, as far as chance is ours."""

    name: str
    load: Load
    size: Size = field(default_factory=Size)
    #: Seconds between faults, on average.
    fault_every_s: float = 4.0
    #: The faults to draw from, all that are possible when empty.
    faults: tuple[str, ...] = ()
    #: These strikes, and no others, instead of a drawn plan.
    script: tuple[Strike, ...] = ()
    #: Whether others use the same broker and database: see `neighbours`.
    has_neighbours: bool = False
    #: Whether turns come and go through channels: see `channels`.
    has_channels: bool = False
    #: What share of the turns, those around the faults aside, must go to the worker that holds
    #: their conversation.
    least_hit_rate: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a storm left behind."""

    storm: Storm
    verdict: Verdict
    observed: Observed
    record: list[Entry]
    generated_tokens: int
    began_at: float
    took_s: float
    faults: list[Fault] = field(default_factory=list)


def run_storm(
    storm: Storm, servers: Servers, folder: Path, progress: Callable[[str], None]
) -> Outcome:
    """Run until every turn is settled, or `SETTLE_S` after the last fault; then judge.

    Raises:
        StackError: a process of the site does not start.
    """
    model = f"chaos-{storm.load.seed}"
    database = Database(DatabaseSettings(url=SecretUrl(servers.database_url), pool_size=24))
    tenant_id = ensure_defaults(
        database, Settings(engine=EngineSettings(name="echo", served_name=model))
    )
    began_at = now()
    with ExitStack() as stack:
        stack.callback(database.close)
        record = stack.enter_context(Record(folder / "record.jsonl"))
        networks = stack.enter_context(open_networks(servers))
        channels = _channels(stack, storm, folder, model)
        site = stack.enter_context(Site(folder, servers, model, storm.size, networks, channels))
        made = neighbours(folder, servers, model, storm.load) if storm.has_neighbours else ()
        others = [stack.enter_context(each) for each in made]
        watch = stack.enter_context(_Watch(database, model, channels))
        submit: Submit
        if channels is not None:
            submit = SlackSubmitter(channels, site.api_urls, storm.load.seed)
        else:
            submit = TurnSubmitter(
                storm.load,
                record,
                database=database,
                tenant_id=tenant_id,
                model=model,
                api_urls=site.api_urls,
                api_key=create_key(database, tenant_id, model),
            )
        client = Client(
            storm.load, record, submit, run_name=model, count_open=lambda: watch.open_count
        )
        _Run(storm, site, client, watch, record, database, progress).until_settled()
        if isinstance(submit, SlackSubmitter):
            time.sleep(_ECHO_S)
            for shown in submit.shown():
                record.add(shown)
        observed = observe(database, tenant_id, model)
        verdicts = {other.name: other.verdict(SETTLE_S) for other in others}
    entries = list(read_record(record.path))
    verdict = (check_channels if channels else check)(entries, observed, model)
    for name, theirs in verdicts.items():
        verdict.add(name, theirs)
    return Outcome(
        storm=storm,
        verdict=verdict,
        observed=observed,
        record=entries,
        generated_tokens=generated_tokens(site.tokens_dir),
        began_at=began_at,
        took_s=now() - began_at,
        faults=[entry for entry in entries if isinstance(entry, Fault)],
    )


def _channels(stack: ExitStack, storm: Storm, folder: Path, model: str) -> Channels | None:
    if not storm.has_channels:
        return None
    return stack.enter_context(open_channels(folder, model, storm.load.seed))


class _Watch:
    """Counts the open turns from outside, in a thread of its own."""

    def __init__(self, database: Database, model: str, channels: Channels | None) -> None:
        self.open_count = 0
        self._database = database
        self._query = _UNSENT if channels else _OPEN
        self._params = {"model": model, "channels": channels.names if channels else []}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(_POLL_S):
            try:
                self.open_count = self._database.fetch(Count, self._query, self._params)[0].n
            except DatabaseUnavailable:
                continue


class _Run:
    """The moving parts of a storm while it lasts."""

    def __init__(
        self,
        storm: Storm,
        site: Site,
        client: Client,
        watch: _Watch,
        record: Record,
        database: Database,
        progress: Callable[[str], None],
    ) -> None:
        self._storm = storm
        self._site = site
        self._client = client
        self._watch = watch
        self._record = record
        self._database = database
        self._progress = progress
        self._actions = self._chosen()
        self._began_at = time.monotonic()
        self._strikes = 0
        self._report_at = 0.0
        #: Turns accepted, and since when it has been so many.
        self._moved = 0, self._began_at

    def until_settled(self) -> None:
        with ThreadPoolExecutor(1) as one:
            submitting = one.submit(asyncio.run, self._client.run())
            try:
                follow(
                    self._plan(),
                    self._strike,
                    lambda: self._is_on(submitting),
                    {name for name, action in self._actions.items() if action.stops_all},
                )
            finally:
                self._client.stop()
        error = submitting.exception()
        if error is not None and not isinstance(error, asyncio.CancelledError):
            raise error
        deadline = time.monotonic() + SETTLE_S
        self._watch.open_count = -1
        while self._watch.open_count != 0 and time.monotonic() < deadline:
            self._report()
            time.sleep(_POLL_S)
        self._report(is_last=True)

    def _moves(self) -> bool:
        """False when the client could submit nothing for so long that it never will."""
        if self._client.accepted_count != self._moved[0]:
            self._moved = self._client.accepted_count, time.monotonic()
        return time.monotonic() - self._moved[1] < SETTLE_S

    def _chosen(self) -> dict[str, Action]:
        actions = available_actions(self._site)
        return {
            name: action
            for name, action in actions.items()
            if not self._storm.faults or name in self._storm.faults
        }

    def _plan(self) -> Iterable[Strike]:
        storm = self._storm
        # Faults that are asked for by their names come equally often.
        weights = {
            name: 1.0 if storm.faults else action.weight for name, action in self._actions.items()
        }
        return storm.script or make_plan(storm.load.seed, weights, storm.fault_every_s)

    def _is_on(self, submitting: Future[None]) -> bool:
        self._report()
        return not submitting.done() and self._moves()

    def _strike(self, strike: Strike) -> None:
        chance = random.Random(strike.seed)
        pids = {name: self._site.pid_of(name) for name in self._site.workers}
        at = now()
        try:
            target = self._actions[strike.name].strike(self._site, chance)
        except Exception as error:
            # A fault on top of another one may find nothing left to break.
            log.info("fault.failed", fault=strike.name, error=f"{type(error).__name__}: {error}")
            return
        self._strikes += 1
        self._record.add(Fault(strike.name, target, at, now(), self._worker_ids(pids.get(target))))

    def _worker_ids(self, pid: int | None) -> tuple[str, ...]:
        """What the process called itself; its row outlives it by an hour."""
        try:
            rows = [] if pid is None else self._database.fetch(_WorkerId, _WORKER, (pid,))
        except DatabaseUnavailable:
            return ()
        return tuple(row.id for row in rows)

    def _report(self, *, is_last: bool = False) -> None:
        elapsed_s = time.monotonic() - self._began_at
        if not is_last and elapsed_s < self._report_at:
            return
        self._report_at = elapsed_s + _REPORT_S
        self._progress(
            f"{self._storm.name}: {elapsed_s:4.0f} s, {self._client.accepted_count} of "
            f"{self._storm.load.turns} turns accepted, {max(self._watch.open_count, 0)} open, "
            f"{self._strikes} faults"
        )
