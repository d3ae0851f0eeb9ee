"""What a pool knows of its replicas: which of them it passes over, and why."""

import math
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from turnmill.schemas.errors import (
    EngineAway,
    EngineBrokeOff,
    EngineBusy,
    EngineUnavailable,
    Unanswered,
)

#: Failures in a row after which a replica gets no turns for a while.
FAILURES_TO_OPEN = 3
#: Seconds that a circuit stays open before one turn tries the replica again.
OPEN_S = 10.0
#: The longest pause that a replica gets that asks for one (`Retry-After`), seconds. A server that
#: is restarted meanwhile no longer needs it.
MOST_ASKED_S = 300.0


class Named(Protocol):
    """What is known here of a replica."""

    @property
    def name(self) -> str:
        """What errors and logs call it: its address."""
        ...


ReplicaT = TypeVar("ReplicaT", bound=Named)


@dataclass(eq=False, slots=True)
class Member(Generic[ReplicaT]):
    """A replica and what the pool knows of it; changed under the pool's lock only."""

    replica: ReplicaT
    #: Tokens of prompts and replies that it has been asked for and has not delivered.
    owed_tokens: int = 0
    #: When it delivered something last (clock of the pool).
    delivered_at: float = -math.inf
    #: When it was chosen last, as a count: of two that owe the same, the longer idle is taken.
    chosen_at: int = 0
    failures_in_a_row: int = 0
    #: Until then its circuit is open (clock of the pool).
    open_until: float = 0.0
    #: Until then it wants to be left alone (clock of the pool).
    asked_until: float = -math.inf
    #: A turn tries whether it works again.
    is_probed: bool = False
    #: Why the last health check failed.
    unhealthy_because: str | None = None
    last_error: str = ""

    @property
    def is_open(self) -> bool:
        """No turns, but for one at a time that tries it once the pause is over."""
        return self.failures_in_a_row >= FAILURES_TO_OPEN

    def is_busy(self, error: Exception, since: float) -> bool:
        """It left a call unanswered that began at `since`, and delivered to others meanwhile."""
        return isinstance(error, Unanswered) and self.delivered_at >= since

    def failed(self, error: EngineUnavailable, now: float) -> None:
        """Count a failure that is its own, and give it the pause that it asks for."""
        self.failures_in_a_row += 1
        self.last_error = error.message
        self.open_until = now + OPEN_S
        if error.retry_after_s is not None:
            self.asked_until = now + min(error.retry_after_s, MOST_ASKED_S)

    def passed_over(self, now: float) -> EngineAway | None:
        """Why it gets no turn now; None: it may get one."""
        if self.unhealthy_because is not None:
            return EngineAway(self.unhealthy_because)
        if now < self.asked_until:
            left_s = self.asked_until - now
            because = f"{self.last_error}; it asks for a pause, of which {left_s:.0f} s are left"
            return EngineAway(because, retry_after_s=left_s)
        if self.is_open and (self.is_probed or now < self.open_until):
            return EngineAway(f"{self.last_error} ({self.failures_in_a_row} times in a row)")
        return None


#: Why replicas do not answer. By member: two of them may be called the same.
Reasons = dict[Member[Any], EngineUnavailable]


def no_replica(reasons: Reasons, more: str = "") -> EngineUnavailable:
    """The worst of the replicas' errors: the engine is away only if none of them tried the turn.

    It asks for the shortest pause, and for none if a replica does not ask for one.
    """
    each = "; ".join(
        f"{member.replica.name}: {error.message.rstrip('.')}" for member, error in reasons.items()
    )
    found = {type(error) for error in reasons.values()}
    kind: type[EngineUnavailable] = EngineUnavailable
    if found <= {EngineAway, EngineBusy, EngineBrokeOff}:
        kinds = (EngineBrokeOff, EngineBusy, EngineAway)
        kind = next(each for each in kinds if each in found)
    asked_s = min((error.retry_after_s or 0.0 for error in reasons.values()), default=0.0)
    return kind(f"No replica can take the turn. {each}.{more}", retry_after_s=asked_s or None)
