"""A reader of streamed replies, as a good client is one: it calls again with the same key."""

import asyncio
import itertools
import json
from typing import Any

import httpx

from turnmill.infra.chaos.client import Promised
from turnmill.infra.chaos.record import Intent, Observation, Record, now

_RETRY_S = 0.2

#: Errors after which the same call may succeed. Any other one is about the turn, and final.
_PASSING = ("database_unavailable", "unavailable", "stopping", "wait_timeout")


class Reader:
    """Submits turns through the API and records what it is shown of their replies."""

    def __init__(self, urls: list[str], api_key: str, model: str, record: Record) -> None:
        self._urls = itertools.cycle(urls)
        self._headers = {"Authorization": f"Bearer {api_key}"}
        self._model = model
        self._record = record

    async def read(self, http: httpx.AsyncClient, intent: Intent, promised: Promised) -> None:
        """Return when the reply was read to its end, or the turn has failed for good."""
        for tries in itertools.count(1):
            shown: list[str] = []
            is_over = False
            try:
                is_over = await self._call(http, intent, promised, tries, shown)
            except httpx.HTTPError:
                await asyncio.sleep(_RETRY_S)
            if shown:
                self._record.add(Observation(intent.key, "".join(shown), now(), is_whole=is_over))
            if is_over:
                return

    async def _call(
        self,
        http: httpx.AsyncClient,
        intent: Intent,
        promised: Promised,
        tries: int,
        shown: list[str],
    ) -> bool:
        """One call; False when it should be repeated. Raises `httpx.HTTPError`."""
        began_at = now()
        headers = self._headers | {
            "Idempotency-Key": intent.key,
            "X-Turnmill-Conversation": intent.conversation,
        }
        message = {"role": "user", "content": intent.text}
        body = {"model": self._model, "messages": [message], "stream": True}
        url = f"{next(self._urls)}/v1/chat/completions"
        async with http.stream("POST", url, json=body, headers=headers) as answer:
            if (turn_id := answer.headers.get("x-turnmill-turn")) is not None:
                promised(turn_id, began_at, tries)
            if answer.status_code != httpx.codes.OK:
                return await _is_final(await _body_of(answer))
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    return True
                if not line.startswith("data: "):
                    continue
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    return await _is_final(event)
                shown.extend(choice["delta"].get("content") or "" for choice in event["choices"])
        return False


async def _body_of(answer: httpx.Response) -> Any:
    """Raises `httpx.DecodingError` if an error does not come as the API promises."""
    try:
        return json.loads(await answer.aread())
    except ValueError:
        problem = f"{answer.status_code} without JSON"
        raise httpx.DecodingError(problem, request=answer.request) from None


async def _is_final(body: dict[str, dict[str, str]]) -> bool:
    if body["error"]["code"] not in _PASSING:
        return True
    await asyncio.sleep(_RETRY_S)
    return False
