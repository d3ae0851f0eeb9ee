"""The bytes of a stream, as parsers of all kinds read them."""

import asyncio
import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import openai
import pytest

from turnmill.producer.api.shapes import CompletionShape
from turnmill.producer.api.stream import events
from turnmill.producer.api.watch import Item
from turnmill.schemas.ids import new_id
from turnmill.schemas.json_lines import one_line
from turnmill.schemas.settings import APISettings
from turnmill.schemas.turns import Lane, Reply, Turn, TurnState, Usage

#: Lines without data after which github.com/sashabaranov/go-openai gives a stream up.
GO_OPENAI_EMPTY_LINES = 300


class _Items:
    """A watch whose items are known beforehand."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = iter(items)

    async def next(self) -> Item:
        return next(self._items)


def stream_of(*items: Item) -> str:
    """The stream of a turn whose watch says these, and then its reply."""
    return asyncio.run(_collect([*items, _turn()]))


async def _collect(items: list[Item]) -> str:
    watch: Any = _Items(items[1:])
    shape = CompletionShape(new_id(), "bot", may_repeat=False, wants_usage=False)
    return "".join([text async for text in events(watch, items[0], shape)])


def _turn() -> Turn:
    return Turn(
        turn_id=new_id(),
        conversation_id=new_id(),
        seq=1,
        bot="bot",
        model="bot",
        lane=Lane.INTERACTIVE,
        state=TurnState.COMPLETED,
        messages=(),
        attempt=1,
        accepted_at=datetime.now(UTC),
        started_at=None,
        settled_at=None,
        reply=Reply(content="late", finish_reason="stop", usage=Usage()),
        error_code=None,
        error_message=None,
    )


def blank_lines_end_events(stream: str) -> Iterator[str]:
    """Data of the events, by a parser that takes every blank line for the end of one, like
    openai-go's before 3.43: a comment of its own would be an event without data."""
    data: list[str] = []
    for line in stream.split("\n")[:-1]:
        if not line:
            yield "\n".join(data)
            data = []
        elif line.startswith("data: "):
            data.append(line.removeprefix("data: "))
        else:
            assert line.startswith(":"), line


def test_every_blank_line_ends_an_event_with_data() -> None:
    *chunks, done = blank_lines_end_events(stream_of("", "", "early ", *[""] * 40, "late", ""))
    texts = [json.loads(chunk)["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(texts) == "early late"
    assert done == "[DONE]"


def test_a_silent_stream_stays_alive_and_is_not_given_up() -> None:
    stream = stream_of(*[""] * 3600, "late")
    silence = stream.split("data: ")[1].split("\n")[1:-1]
    comments = [line for line in silence if line]
    assert len(comments) >= 3600 / 30, "proxies close connections that are silent for a minute"
    assert len(silence) < GO_OPENAI_EMPTY_LINES


@pytest.mark.parametrize("end", ["\u0085", "\u2028", "\u2029", "\v", "\f", "\x1c", "\x1e", "\r"])
def test_no_character_of_a_text_cuts_its_line(end: str) -> None:
    text = f"one{end}two"
    stream = stream_of(text)
    assert stream.splitlines() == stream.split("\n")[:-1]
    chunk = json.loads(stream.splitlines()[2].removeprefix("data: "))
    assert chunk["choices"][0]["delta"]["content"] == text
    written = one_line(json.dumps({"reply": text}, ensure_ascii=False))
    assert written.splitlines() == [written]
    assert json.loads(written) == {"reply": text}


def test_a_plain_call_is_answered_before_its_client_gives_up() -> None:
    timeout = openai.DEFAULT_TIMEOUT
    assert timeout.read is not None
    assert APISettings().wait_s + 20 <= timeout.read
