"""Changes of a turn's state as SQL. No statement can be built for a change that the table lacks."""

from collections.abc import Iterable
from dataclasses import dataclass

from turnmill.schemas.turns import OPEN_STATES, TRANSITIONS, TurnState


@dataclass(frozen=True, slots=True)
class Change:
    """What an UPDATE of turns sets, and the condition for the rows that it may touch."""

    setting: str
    #: Takes an alias before it: `t.{guard}`.
    guard: str


def change(*before: TurnState, to: TurnState) -> Change:
    """Build the change into a state, from any state that may change into it unless some are given.

    Raises `ValueError` for a change that is not in `TRANSITIONS`.
    """
    allowed = [state for state in TurnState if to in TRANSITIONS[state]]
    if wrong := set(before).difference(allowed):
        raise ValueError(f"No turn changes from {', '.join(sorted(wrong))} to {to}.")
    return Change(f"state = '{to}'", f"state IN ({literals(before or allowed)})")


def literals(states: Iterable[TurnState]) -> str:
    """List states for an SQL `IN`, in the order of the enum."""
    chosen = set(states)
    return ", ".join(f"'{state}'" for state in TurnState if state in chosen)


#: For an SQL `IN`: the states in which a reply is still owed, and those in which an attempt ends.
OPEN = literals(OPEN_STATES)
ENDS = literals(TRANSITIONS[TurnState.RUNNING] - OPEN_STATES)
