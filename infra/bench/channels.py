"""`turnmill bench channels`: a storm of signed Slack events while the broker is down.

One API process, PostgreSQL and the sender share the machine. Events are sent by the clock, whether
earlier ones were answered or not, and a time counts from when its event was due: a server that
stalls pays for all that waits behind. Then the broker is started, and every turn must be answered
exactly once.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import psutil
from rich.console import Console
from rich.table import Table

from turnmill.infra.bench.servers import BROKERS, turnmill, wait_for
from turnmill.infra.embedded.postgres import EmbeddedPostgres
from turnmill.infra.embedded.server import EmbeddedServer
from turnmill.infra.migrations import upgrade
from turnmill.infra.mocks.sending import DEADLINE_S, Signed
from turnmill.infra.mocks.slack.events import sign_callback
from turnmill.infra.mocks.slack.payloads import Workspace
from turnmill.producer.tenants import ensure_defaults
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import CONFIG_FILE, Settings, load_settings

console = Console(width=110)

SECRET = "bench-signing-secret"  # noqa: S105 - of this benchmark alone
PATH = "/channels/bench"
#: Connections of the sender. A server that stalls has at most so many calls open.
SENDERS = 64
#: Of the events of a storm, one in so many is sent twice.
DOUBLED = 10
#: A rate is too high when this share of its events takes longer than this.
QUANTILE, SLOW_S = 0.99, 1.0

_CONFIGURATION = """
[channels.bench]
kind = "slack"
bot = "echo"
signing_secret = { file = "secret" }
bot_token = { file = "secret" }
"""


class _Result(NamedTuple):
    turns: int
    completed: int
    texts: int
    replies: int
    answers: int


#: Turns, those that were answered, and those that were answered by one attempt alone.
_RESULT = """
SELECT count(*) AS turns, count(*) FILTER (WHERE state = 'completed') AS completed,
       count(DISTINCT input->0->>'content') AS texts,
       (SELECT count(*) FROM replies) AS replies,
       (SELECT count(*) FROM attempts WHERE outcome = 'answered') AS answers
FROM turns
"""


@dataclass(frozen=True, slots=True)
class Storm:
    """How a storm was answered."""

    rate: float
    #: Seconds from when each event was due to its answer, in order of length.
    durations: Sequence[float]
    #: Answers that were no 2xx, or none.
    refused: int

    def quantile(self, share: float) -> float:
        return self.durations[int(share * (len(self.durations) - 1))]

    @property
    def is_too_fast(self) -> bool:
        return bool(self.refused) or self.quantile(QUANTILE) > SLOW_S

    @property
    def late(self) -> int:
        """Events that Slack would send again."""
        return self.refused + sum(each > DEADLINE_S for each in self.durations)


def run_channels(broker: str, rate: float, duration_s: float, rates: Sequence[float]) -> None:
    """Run the storm, let every turn be answered, then look for the rate that is too high."""
    table = Table("events/s", "events", "p50", "p99", "longest", "no 2xx within 3 s")
    with _system(broker) as (settings, server, url):
        storm = _storm(url, rate, duration_s)
        _add(table, storm)
        server.start()
        lines = _answer_all(settings, round(rate * duration_s))
        server.stop()
        for faster in rates:
            storm = _storm(url, faster, duration_s / 3)
            _add(table, storm)
            if storm.is_too_fast:
                break
    console.print(f"{psutil.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB")
    console.print(table)
    for line in lines:
        console.print(line)


@contextmanager
def _system(broker: str) -> Iterator[tuple[Settings, EmbeddedServer, str]]:
    """PostgreSQL, an API with a channel, and a relay that looks for its broker, which is down."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="turnmill-bench-")))
        folder.chmod(0o755)
        postgres = stack.enter_context(EmbeddedPostgres(folder / "postgres"))
        make: Callable[[Path], EmbeddedServer] = BROKERS[broker]
        server = make(folder / broker)
        server.start()
        stack.callback(server.stop)
        upgrade(postgres.url)
        (folder / "secret").write_text(SECRET)
        (folder / CONFIG_FILE).write_text(_CONFIGURATION)
        settings = load_settings(
            data=folder,
            database={"url": postgres.url},
            broker={"url": server.url},
            engine={"name": "echo", "model": "echo"},
            api={"port": 0},
        )
        with closing(Database(settings.database)) as database:
            ensure_defaults(database, settings)
        server.stop()
        stack.enter_context(turnmill(settings, "relay", ready="relay.started"))
        log = stack.enter_context(turnmill(settings, "api", ready="api.started"))
        yield settings, server, _address(log)


def _address(log: Path) -> str:
    """`host:port` of the API, from the line that says where it listens."""
    line = next(line for line in log.read_text().splitlines() if "api.started" in line)
    return f"127.0.0.1:{json.loads(line)['port']}"


def _storm(address: str, rate: float, duration_s: float) -> Storm:
    """Send mentions, each in a thread of its own, at times that do not depend on the answers."""
    workspace = Workspace()
    events = [
        sign_callback(SECRET, workspace.callback(workspace.mention(f"{rate:g}/s, number {n}")))
        for n in range(round(rate * duration_s))
    ]
    sent = [each for n, event in enumerate(events) for each in [event] * (1 + (n % DOUBLED == 0))]
    numbers, lock = count(), threading.Lock()
    durations: list[float] = []
    refused: list[int] = []
    pace = len(sent) / duration_s
    started_at = time.perf_counter() + 0.5

    def send_in_turn() -> None:
        link = HTTPConnection(address, timeout=60)
        while True:
            with lock:
                number = next(numbers)
            if number >= len(sent):
                break
            due_at = started_at + number / pace
            time.sleep(max(0.0, due_at - time.perf_counter()))
            status = _post(link, sent[number])
            durations.append(time.perf_counter() - due_at)
            if not 200 <= status < 300:
                refused.append(status)
        link.close()

    senders = [threading.Thread(target=send_in_turn) for _ in range(SENDERS)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    return Storm(pace, sorted(durations), len(refused))


def _post(link: HTTPConnection, event: Signed) -> int:
    """Send on a connection that is kept, as Slack's are. 0: there was no answer."""
    try:
        link.request("POST", PATH, event.body, event.headers)
        answer = link.getresponse()
        answer.read()
    except (OSError, HTTPException):
        link.close()
        return 0
    return answer.status


def _answer_all(settings: Settings, events: int) -> list[str]:
    """Run a worker until every turn is answered.

    Raises:
        RuntimeError: one was lost or doubled.
    """
    with closing(Database(settings.database)) as database:
        started_at = time.perf_counter()
        with turnmill(settings, "worker", ready="worker.consuming"):
            wait_for(lambda: _is_all_answered(database), 600, every_s=0.1)
        elapsed_s = time.perf_counter() - started_at
        (row,) = database.fetch(_Result, _RESULT)
    if set(row) != {events}:
        raise RuntimeError(f"{events} events became {row}")
    return [
        f"{events:,} events, one in {DOUBLED} sent twice: {row.turns:,} turns, each answered once, "
        f"the last {elapsed_s:.0f} s after the broker was back."
    ]


def _is_all_answered(database: Database) -> bool:
    rows = database.run(
        "SELECT 1 FROM turns WHERE state IN ('waiting', 'queued', 'running') LIMIT 1"
    )
    return not rows


def _add(table: Table, storm: Storm) -> None:
    table.add_row(
        f"{storm.rate:,.0f}",
        f"{len(storm.durations):,}",
        *(f"{1000 * storm.quantile(share):,.0f} ms" for share in (0.5, QUANTILE, 1.0)),
        f"{storm.late:,}",
    )
