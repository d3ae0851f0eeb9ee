"""The same workloads through the whole system: accept, relay, broker, worker, settle, read."""

import asyncio
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from turnmill.infra.bench.measure import PROBES, Answer, Run, wait_until_full
from turnmill.infra.bench.servers import servers, turnmill, wait_for
from turnmill.infra.bench.workload import Chat, conversation, short_chats
from turnmill.producer.accept import accept, accept_many
from turnmill.producer.follow import Follower
from turnmill.producer.tenants import ensure_defaults
from turnmill.schemas.ids import new_id
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.postgres.rows import Count
from turnmill.schemas.settings import EngineSettings, Settings
from turnmill.schemas.turns import Lane, Turn, TurnRequest

_OPEN = "SELECT count(*) AS n FROM turns WHERE settled_at IS NULL"


class _Took(NamedTuple):
    took_s: float


_TOOK = "SELECT extract(epoch FROM max(settled_at) - %s)::float AS took_s FROM turns"


class _Now(NamedTuple):
    at: datetime


_ANSWERED = """
SELECT count(*) AS n FROM turns t
WHERE state = 'running' AND EXISTS (SELECT FROM chunks c WHERE c.turn_id = t.id)
"""


class _Usage(NamedTuple):
    chats: int
    tokens: int
    prompt_tokens: int
    cached_tokens: int


_USAGE = """
SELECT count(*) AS chats, coalesce(sum(completion_tokens), 0)::bigint AS tokens,
       coalesce(sum(prompt_tokens), 0)::bigint AS prompt_tokens,
       coalesce(sum(cached_tokens), 0)::bigint AS cached_tokens
FROM replies
"""


@dataclass(frozen=True, slots=True)
class System:
    settings: Settings
    database: Database
    tenant_id: UUID

    def request(
        self, chat: Chat, lane: Lane = Lane.INTERACTIVE, conversation_id: UUID | None = None
    ) -> TurnRequest:
        return TurnRequest(
            tenant_id=self.tenant_id,
            bot=self.settings.engine.model_name,
            messages=chat.messages,
            params=chat.params,
            lane=lane,
            conversation_id=conversation_id,
        )


@contextmanager
def system(engine: EngineSettings, broker: str) -> Iterator[System]:
    """A relay and one worker with the engine, warm; PostgreSQL commits to disk."""
    # As many threads as the engine takes turns, and one whose turn waits to join.
    with servers(broker, engine.max_batch_size + 8, engine) as settings:
        database = Database(settings.database)
        tenant_id = ensure_defaults(database, settings)
        with (
            turnmill(settings, "relay", ready="relay.started"),
            turnmill(settings, "worker", ready="worker.consuming"),
        ):
            yield System(settings, database, tenant_id)
        database.close()


def at_once(target: System, chats: Sequence[Chat], warm_up: Sequence[Chat]) -> Run:
    """All chats at once; from the first accept to the last settled reply."""
    _answer_all(target, warm_up)
    before = target.database.fetch(_Usage, _USAGE)[0]
    took_s = _answer_all(target, chats)
    after = target.database.fetch(_Usage, _USAGE)[0]
    return Run(
        tokens=after.tokens - before.tokens,
        prompt_tokens=after.prompt_tokens - before.prompt_tokens,
        cached_tokens=after.cached_tokens - before.cached_tokens,
        chats=after.chats - before.chats,
        took_s=took_s,
    )


def talk(target: System, turns: int, rounds: int) -> list[float]:
    """The median time to each turn's first text, from `accept` to a reader's hands."""

    async def one(follower: Follower, seed: int) -> list[float]:
        conversation_id = new_id()
        times = []
        for chat in conversation(seed, turns):
            request = target.request(chat, conversation_id=conversation_id)
            times.append((await _follow(target, follower, request)).first_token_s)
        return times

    async def all_of_them() -> list[list[float]]:
        async with Follower(target.database) as follower:
            return [await one(follower, seed) for seed in range(rounds)]

    columns = zip(*asyncio.run(all_of_them()), strict=True)
    return [statistics.median(each) for each in columns]


def lanes(target: System) -> tuple[list[float], list[float]]:
    """Times to the first text of interactive turns, idle and beside a full batch lane."""

    async def probes(seed: int) -> list[float]:
        async with Follower(target.database) as follower:
            return [
                (await _follow(target, follower, target.request(chat))).first_token_s
                for chat in short_chats(seed, PROBES, 8)
            ]

    idle = asyncio.run(probes(2))
    backlog = short_chats(100, 8 * target.settings.engine.max_batch_size, 96)
    accept_many(target.database, [target.request(chat, Lane.BATCH) for chat in backlog])
    wait_until_full(lambda: _answered_count(target), target.settings.engine.max_batch_size)
    busy = asyncio.run(probes(3))
    if not _open_count(target):
        raise RuntimeError("The batch lane ran dry while interactive turns were timed.")
    return idle, busy


async def _follow(target: System, follower: Follower, request: TurnRequest) -> Answer:
    answer, started_at = Answer(), time.perf_counter()
    accepted = await asyncio.to_thread(accept, target.database, request)
    async for piece in follower.follow(target.tenant_id, accepted.turn_id):
        is_text = isinstance(piece, str) and piece
        if not answer.first_token_s and (is_text or isinstance(piece, Turn)):
            answer.first_token_s = time.perf_counter() - started_at
    return answer


def _answer_all(target: System, chats: Sequence[Chat]) -> float:
    """Seconds until the last of them was settled, by PostgreSQL's clock: it is asked seldom
    whether that was so, because asking costs what is measured.
    """
    started_at = target.database.fetch(_Now, "SELECT clock_timestamp() AS at")[0].at
    accept_many(target.database, [target.request(chat) for chat in chats])
    wait_for(lambda: _open_count(target) == 0, 900, every_s=0.5)
    return target.database.fetch(_Took, _TOOK, (started_at,))[0].took_s


def _open_count(target: System) -> int:
    return target.database.fetch(Count, _OPEN)[0].n


def _answered_count(target: System) -> int:
    """Turns whose reply has begun and not ended."""
    return target.database.fetch(Count, _ANSWERED)[0].n
