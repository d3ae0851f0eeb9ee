"""Changes of state as SQL. No statement can be built for a change that its table lacks."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from turnmill.schemas.channels.deliveries import (
    DELIVERY_TRANSITIONS,
    OPEN_DELIVERIES,
    DeliveryState,
)
from turnmill.schemas.turns import OPEN_STATES, TRANSITIONS, TurnState

StateT = TypeVar("StateT", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class Change:
    """What an UPDATE of turns, or of deliveries, sets, and the condition for its rows."""

    setting: str
    #: Takes an alias before it: `t.{guard}`.
    guard: str


def change(*before: TurnState, to: TurnState) -> Change:
    """Build a turn's change into a state, from any state that may change into it unless given.

    Raises `ValueError` for a change that is not in `TRANSITIONS`.
    """
    return _change("turn", TRANSITIONS, before, to)


def delivery_change(*before: DeliveryState, to: DeliveryState) -> Change:
    """Build a delivery's change into a state, as `change` does, by `DELIVERY_TRANSITIONS`."""
    return _change("delivery", DELIVERY_TRANSITIONS, before, to)


def _change(
    noun: str, table: Mapping[StateT, frozenset[StateT]], before: tuple[StateT, ...], to: StateT
) -> Change:
    allowed = [state for state in table if to in table[state]]
    if wrong := set(before).difference(allowed):
        raise ValueError(f"No {noun} changes from {', '.join(sorted(wrong))} to {to}.")
    return Change(f"state = '{to}'", f"state IN ({literals(before or allowed)})")


def literals(states: Iterable[StateT]) -> str:
    """List states for an SQL `IN`, in the order of their enum."""
    chosen = set(states)
    order = list(type(next(iter(chosen)))) if chosen else []
    return ", ".join(f"'{state}'" for state in order if state in chosen)


#: For an SQL `IN`: the states in which a reply is still owed, and those in which an attempt ends.
OPEN = literals(OPEN_STATES)
ENDS = literals(TRANSITIONS[TurnState.RUNNING] - OPEN_STATES)
#: The states in which something is still to be sent.
UNSENT = literals(OPEN_DELIVERIES)
