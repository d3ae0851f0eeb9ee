"""Find our own messages in Slack: what became of a call that nobody knows the outcome of."""

from collections.abc import Iterator
from typing import Any

from turnmill.schemas.ids import time_of
from turnmill.workers.delivery.base import Job, Memory
from turnmill.workers.delivery.slack.blocks import part_of
from turnmill.workers.delivery.slack.calls import Calls

#: Messages of one page. Apps that are distributed outside Slack's Marketplace get 15 at most.
_PAGE = 100

#: Clocks of Slack and of this machine may differ by so much, seconds.
_TOLERANCE_S = 60.0


def note_part(memory: Memory, number: int, ts: str) -> None:
    """Remember that Slack has a part, as this message."""
    memory.keep(parts=memory.value.get("parts", {}) | {str(number): ts})


def find_parts(calls: Calls, job: Job) -> dict[str, str]:
    """The parts of a delivery that Slack has: their messages, by number."""
    found = {}
    for message in _messages(calls, job):
        number = part_of(message, job.delivery_id)
        if number is not None:
            found[str(number)] = str(message["ts"])
    return found


def find_stream(calls: Calls, job: Job) -> str | None:
    """Our message in the thread that says of no delivery that it is its part: an open stream.

    All others of ours carry metadata.
    """
    streams = [
        str(message["ts"])
        for message in _messages(calls, job)
        if message.get("bot_id") and not message.get("metadata") and _is_ours(calls, message)
    ]
    return streams[-1] if streams else None


def _is_ours(calls: Calls, message: dict[str, object]) -> bool:
    return bool(message.get("bot_id") == calls.bot_id)


def _messages(calls: Calls, job: Job) -> Iterator[dict[str, Any]]:
    """What was written to the place since the delivery was owed."""
    channel, thread = job.target["channel"], job.target.get("thread_ts")
    method = "conversations.replies" if thread else "conversations.history"
    arguments: dict[str, Any] = {
        "limit": _PAGE,
        "include_all_metadata": "true",
        "oldest": f"{time_of(job.delivery_id).timestamp() - _TOLERANCE_S:.6f}",
    }
    if thread:
        arguments["ts"] = thread
    cursor = ""
    while True:
        page = calls.call(method, channel, as_form=True, **arguments, cursor=cursor)
        yield from page["messages"]
        cursor = (page.get("response_metadata") or {}).get("next_cursor") or ""
        if not cursor:
            return
