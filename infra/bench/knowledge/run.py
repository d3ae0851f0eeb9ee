"""Time searches of made collections: by words, by vectors, and by both."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from math import nan
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple
from uuid import UUID

from turnmill.infra.bench.knowledge.made import Language, make_collection
from turnmill.infra.embedded.postgres import EmbeddedPostgres
from turnmill.infra.migrations import upgrade
from turnmill.producer.tenants import ensure_defaults
from turnmill.schemas.embedders.base import Embedder
from turnmill.schemas.embedders.embedders import Embedders
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import Settings, load_settings
from turnmill.schemas.store.knowledge.dense import nearest
from turnmill.schemas.store.knowledge.search import CANDIDATES, search
from turnmill.schemas.store.knowledge.spaces import Asked
from turnmill.schemas.store.knowledge.words import rank_words

#: Passages that a turn's search returns.
LIMIT = 10

Run = Callable[[str, Asked], object]


class Timed(NamedTuple):
    """Milliseconds of one search."""

    passages: int
    method: str
    p50: float
    p95: float
    #: Of these, the median that PostgreSQL and this process compute, which has the embedder: what
    #: other programs on the machine take of its processors does not count. NaN where the system
    #: does not tell.
    cpu: float


def run_knowledge(
    sizes: list[int], questions: int, seed: int, arrays: bool, note: Callable[[str], None]
) -> Iterator[Timed]:
    """Make a collection of each size, and yield what its searches take."""
    with _database() as (settings, database), closing(Embedders(settings.embedder)) as embedders:
        tenant_id = ensure_defaults(database, settings)
        embedder = embedders.load(settings.embedder.name)
        asked: list[tuple[str, Asked]] = []
        for size in sizes:
            language = Language(seed)
            note(f"making {size:,} passages")
            name = f"made-{size}"
            space = make_collection(database, tenant_id, name, size, language, arrays)
            for table in ("passages", "passage_vectors", "collection_terms", "documents"):
                _vacuum(database, table)
            asked = [
                (language.question(), Asked(space, language.vector())) for _ in range(questions)
            ]
            for method, run in _methods(database, tenant_id, name, embedder).items():
                yield _timed(size, method, run, asked, partial(_cpu_ms, database))
        run = partial(_embed, embedder)
        method = f"the question's vector, {settings.embedder.name}"
        yield _timed(1, method, run, asked, partial(_cpu_ms, database))


def _methods(database: Database, tenant_id: UUID, name: str, embedder: Embedder) -> dict[str, Run]:
    def find(question: str, asked: Asked) -> object:
        return search(database, tenant_id, name, question, LIMIT, asked)

    def embed_and_find(question: str, asked: Asked) -> object:
        # Its vector takes as long to compare as any.
        _embed(embedder, question, asked)
        return find(question, asked)

    return {
        "BM25": lambda question, _: rank_words(database, tenant_id, name, question, CANDIDATES),
        "vectors, exact": lambda _, asked: nearest(database, asked, CANDIDATES),
        "fused, with texts": find,
        "in all, with the question's vector": embed_and_find,
    }


def _embed(embedder: Embedder, question: str, asked: Asked) -> object:
    return embedder.embed_question(question)


def _timed(
    size: int,
    method: str,
    run: Run,
    asked: list[tuple[str, Asked]],
    cpu_ms: Callable[[], float],
) -> Timed:
    # After ten executions PostgreSQL may plan a statement for all values.
    for question, vector in asked[:12]:
        run(question, vector)
    times, cpu = [], []
    for question, vector in asked:
        began, cpu_began = time.perf_counter(), cpu_ms()
        run(question, vector)
        times.append(1000 * (time.perf_counter() - began))
        cpu.append(cpu_ms() - cpu_began)
    return _summary(size, method, times, cpu)


class _Backend(NamedTuple):
    pid: int


def _cpu_ms(database: Database) -> float:
    """CPU time of the pool's one connection (https://docs.kernel.org/scheduler/sched-stats.html),
    and of this process.
    """
    [row] = database.fetch(_Backend, "SELECT pg_backend_pid() AS pid")
    own_ms = 1000 * time.process_time()
    try:
        return own_ms + int(Path(f"/proc/{row.pid}/schedstat").read_text().split()[0]) / 1e6
    except OSError:
        return nan


def _summary(size: int, method: str, times: list[float], cpu: list[float]) -> Timed:
    cuts = quantiles(times, n=20)
    return Timed(size, method, cuts[9], cuts[18], median(cpu))


def _vacuum(database: Database, table: str) -> None:
    with closing(database.connect()) as link:
        link.execute(f"VACUUM ANALYZE {table}")


@contextmanager
def _database() -> Iterator[tuple[Settings, Database]]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="turnmill-bench-")))
        folder.chmod(0o755)
        postgres = stack.enter_context(EmbeddedPostgres(folder / "postgres"))
        upgrade(postgres.url)
        settings = load_settings(
            data=folder, database={"url": postgres.url, "answer_timeout_s": 600.0, "pool_size": 1}
        )
        database = stack.enter_context(closing(Database(settings.database)))
        yield settings, database
