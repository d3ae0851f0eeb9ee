"""Submit turns as callers of ours do: most through `accept`, as a backlog's; some through the HTTP
API, read as a stream. Whatever fails is tried again with the same idempotency key.
"""

import asyncio
import itertools
import random
from uuid import UUID

import httpx

from turnmill.infra.chaos.checker import is_poison
from turnmill.infra.chaos.client import Load, Promised
from turnmill.infra.chaos.reader import Reader
from turnmill.infra.chaos.record import Intent, Record, now
from turnmill.producer.accept import accept
from turnmill.schemas.errors import TransientError
from turnmill.schemas.ids import Prefix, derived_id, show_id
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.turns import Message, Role, TurnRequest

_RETRY_S = 0.2


class TurnSubmitter:
    """Submits the turns of one bot, which has its model's name."""

    def __init__(
        self,
        load: Load,
        record: Record,
        *,
        database: Database,
        tenant_id: UUID,
        model: str,
        api_urls: list[str],
        api_key: str,
    ) -> None:
        self._load = load
        self._database = database
        self._tenant_id = tenant_id
        self._model = model
        self._reader = Reader(api_urls, api_key, model, record) if api_urls else None
        self._random = random.Random(load.seed)

    async def __call__(self, http: httpx.AsyncClient, intent: Intent, promised: Promised) -> None:
        is_streamed = self._random.random() < self._load.streamed and not is_poison(intent.text)
        if is_streamed and self._reader is not None:
            await self._reader.read(http, intent, promised)
        else:
            await self._accept(intent, promised)

    async def _accept(self, intent: Intent, promised: Promised) -> None:
        request = TurnRequest(
            tenant_id=self._tenant_id,
            bot=self._model,
            messages=(Message(role=Role.USER, content=intent.text),),
            lane=self._load.lane,
            conversation_id=derived_id(self._tenant_id, self._model, intent.conversation),
            idempotency_key=intent.key,
        )
        for tries in itertools.count(1):
            began_at = now()
            try:
                accepted = await asyncio.to_thread(accept, self._database, request)
            except TransientError:
                await asyncio.sleep(_RETRY_S)
                continue
            promised(show_id(Prefix.TURN, accepted.turn_id), began_at, tries)
            return
