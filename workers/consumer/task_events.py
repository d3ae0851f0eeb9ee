"""Celery's events about attempts, for Flower.

Celery's own events are about hints: a hint that is doubled or dropped is a task that succeeds, and
so is an attempt that failed, because the task returns whatever became of the turn. Here an attempt
is a task, named after its turn and its number, and ends as it was settled.

Nobody is told anything until Flower asks for events.
"""

import re
from typing import Protocol
from uuid import UUID

import structlog
from celery import Celery

from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.ids import Prefix, parse_id, show_id
from turnmill.schemas.outcomes import ATTEMPTS_USED_UP
from turnmill.schemas.routes import ANSWER_TASK

log = structlog.get_logger()

#: What an attempt's outcome is among Celery's events. An attempt that is tried again, whatever the
#: reason, is retried; one whose turn was cancelled or taken over is revoked.
EVENT_OF = {
    "answered": "succeeded",
    "failed": "failed",
    "crashed": "failed",
    "snoozed": "retried",
    "handed_back": "retried",
    "interrupted": "retried",
    "cancelled": "revoked",
    "fenced": "revoked",
}

_TASK_ID = re.compile(r"(turn_[0-9a-f]{32})-(\d{1,9})")


class Claimed(Protocol):
    """What an event names of a claim. Never a word of the dialogue."""

    @property
    def turn_id(self) -> UUID: ...
    @property
    def attempt(self) -> int: ...
    @property
    def lane(self) -> str: ...


def show_task(turn_id: UUID, attempt: int) -> str:
    """Name the task of an attempt: `turn_<32 hex digits>-<number>`."""
    return f"{show_id(Prefix.TURN, turn_id)}-{attempt}"


def parse_task(name: str) -> tuple[UUID, int] | None:
    """Read the turn and the attempt's number from a task's name; None: it is another task."""
    match = _TASK_ID.fullmatch(name)
    try:
        return (parse_id(Prefix.TURN, match[1]), int(match[2])) if match else None
    except InvalidInput:
        return None


def show_arguments(turn_id: UUID, lane: str, model: str) -> str:
    """Write what Flower shows, and searches, as the task's arguments."""
    return repr({"turn_id": turn_id.hex, "lane": str(lane), "model": model})


def event_of(outcome: str, error: str | None) -> str:
    """Name the event that an attempt with this outcome, and the code of its error, ends with.

    The attempt that a turn is parked after was snoozed, but is not tried again: it has failed.
    """
    return "failed" if error == ATTEMPTS_USED_UP else EVENT_OF[outcome]


class TaskEvents:
    """Sends the events of one worker's attempts."""

    def __init__(self, app: Celery, model: str) -> None:
        self._app = app
        self._model = model

    def began(self, claim: Claimed) -> None:
        """An attempt has its lease."""
        arguments = show_arguments(claim.turn_id, claim.lane, self._model)
        self._send("received", claim, name=ANSWER_TASK, args="()", kwargs=arguments)
        self._send("started", claim)

    def ended(self, claim: Claimed, outcome: str, error: str | None, duration_s: float) -> None:
        """An attempt is settled, or was fenced."""
        kind = event_of(outcome, error)
        if kind == "succeeded":
            self._send(kind, claim, result=outcome, runtime=duration_s)
        else:
            self._send(kind, claim, exception=error or outcome, runtime=duration_s)

    def _send(self, kind: str, claim: Claimed, **fields: object) -> None:
        """Send an event, if anybody asked for events. No turn fails because this does."""
        try:
            if dispatcher := self._app.consumer and self._app.consumer.event_dispatcher:
                uuid = show_task(claim.turn_id, claim.attempt)
                dispatcher.send(f"task-{kind}", uuid=uuid, **fields)
        except Exception as error:
            log.debug("event.unsent", kind=kind, error=type(error).__name__)
