"""One delivery in the hands of its adapter, without a database."""

from dataclasses import replace
from typing import Any

from turnmill.schemas.channels.deliveries import DeliveryKind
from turnmill.schemas.ids import new_id
from turnmill.schemas.turns import TurnState
from turnmill.workers.delivery.base import Delivery, Job, Look


class Notes:
    """A memory without a database; `dies` after so many changes, as a killed worker would."""

    def __init__(self) -> None:
        self.value: dict[str, Any] = {}
        self.dies_after: int | None = None

    def keep(self, **changes: Any) -> None:
        if self.dies_after == 0:
            raise Killed
        if self.dies_after is not None:
            self.dies_after -= 1
        self.value = {**self.value, **changes}


class Killed(BaseException):
    """The worker died between a call to the platform and its commit."""


class Reply:
    """A reply on its way to one place."""

    def __init__(self, delivery: Delivery, **target: str) -> None:
        self.delivery, self.notes = delivery, Notes()
        self.job = Job(
            delivery_id=new_id(),
            kind=DeliveryKind.REPLY,
            turn_id=new_id(),
            conversation_id=new_id(),
            target=target,
            text=None,
            is_reply=True,
            is_handed_off=False,
            is_doubtful=False,
        )

    def send(self, text: str | None, *, is_doubtful: bool = False) -> bool:
        job = replace(self.job, text=text, is_doubtful=is_doubtful)
        return self.delivery.send(job, self.notes)

    def notify(self, text: str, *, is_handed_off: bool = False) -> bool:
        self.job = replace(
            self.job,
            kind=DeliveryKind.NOTICE,
            is_reply=False,
            turn_id=None,
            is_handed_off=is_handed_off,
        )
        return self.send(text)

    def show(self, text: str = "", state: TurnState = TurnState.RUNNING) -> float | None:
        return self.delivery.show(self.job, Look(state, text), self.notes)


def long_text(length: int = 40_000) -> str:
    """Prose, and a code block longer than any message."""
    code = "```python\n" + "".join(f"x{n} = {n}\n" for n in range(800)) + "```"
    prose = " ".join(f"This is sentence number {n}." for n in range(900))
    return f"{prose}\n\n{code}\n\n{prose}"[:length]
