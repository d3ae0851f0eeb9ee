"""What an attempt ended in: a value; `workers/turn/settle.py` turns it into a state."""

from dataclasses import dataclass

from turnmill.schemas.turns import Reply

#: Error code of a turn that is parked after its last attempt.
ATTEMPTS_USED_UP = "attempts_used_up"


@dataclass(frozen=True, slots=True)
class Answered:
    reply: Reply
    #: Why a person is to answer the conversation from now on; None: the bot does. The thread
    #: receives the reply as a notice.
    hand_off_because: str | None = None


@dataclass(frozen=True, slots=True)
class Snoozed:
    """Try again in `delay_s` seconds."""

    delay_s: float
    reason: str
    #: False when the attempt was handed back unharmed (a drain): it does not count
    #: towards the attempts a turn may use up.
    counts: bool = True
    #: Of the error behind it, for logs; None: there was no error, or it has no code.
    code: str | None = None


HANDED_BACK = Snoozed(0.0, "handed back by a stopping worker", counts=False)


@dataclass(frozen=True, slots=True)
class Crashed:
    """The engine died or broke off with the turn in it: the rescuer counts a worker's death."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Somebody else ended the turn, or took it over: there is nothing left to write."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Permanent: `code` and `message` are sent to the client."""

    code: str
    message: str


UNSTORABLE = Failed(
    "engine_failure",
    "The engine's reply cannot be stored. Ask again; if it happens again, ask the operator to look "
    "for 'unstorable' in the worker's log.",
)

Outcome = Answered | Snoozed | Crashed | Cancelled | Failed
