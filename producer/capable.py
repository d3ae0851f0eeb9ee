"""Refuse, before it is accepted, a turn that no live worker of its model can answer."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from turnmill.schemas.capabilities import PLAIN, Capabilities, Need, needs_of
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.postgres.database import Cursor
from turnmill.schemas.postgres.rows import fetch
from turnmill.schemas.store.fleet.liveness import HELD_LOCKS
from turnmill.schemas.turns import GenerationParams, TurnRequest


class _Declared(NamedTuple):
    capabilities: dict[str, object] | None


#: What the model's live workers declare; what its last ones did, where none lives: they are being
#: restarted. Releases before this column declare nothing.
_DECLARED = f"""
WITH known AS (
    SELECT capabilities, lock_key IN ({HELD_LOCKS}) AS is_alive
    FROM worker_liveness WHERE model = %s AND %s = ANY(lanes)
)
SELECT DISTINCT capabilities FROM known WHERE is_alive OR NOT EXISTS (
    SELECT FROM known WHERE is_alive)
"""

#: What else helps, by capability.
_REMEDIES = {
    "tools": ', send "tool_choice": "none", or let the bot ignore tools: '
    "turnmill bots change NAME --ignore-tools",
    "wide_formats": ", or make more of its properties required",
    "accepts": ", or let a worker read it (docs/media.md)",
}


def taken_kinds(cursor: Cursor, model: str, lane: str) -> set[str]:
    """Return the kinds of parts that some live worker of the model takes."""
    return {kind for each in _declared(cursor, model, lane) for kind in each.accepts}


def _declared(cursor: Cursor, model: str, lane: str) -> list[Capabilities]:
    return [
        PLAIN if row.capabilities is None else Capabilities.model_validate(row.capabilities)
        for row in fetch(cursor, _Declared, _DECLARED, (model, lane))
    ]


def refuse_impossible(
    cursor: Cursor, turns: Iterable[tuple[str, TurnRequest, GenerationParams]]
) -> None:
    """Raise `InvalidInput` for the first turn that needs what no worker of its model can do.

    `turns`: model, request and complete parameters of each. Plain text costs no query.
    """
    declared: dict[tuple[str, str], list[Capabilities]] = {}
    for model, request, params in turns:
        if needs := needs_of(request.messages, params):
            key = (model, request.lane)
            if key not in declared:
                declared[key] = _declared(cursor, *key)
            _refuse_unless_one_can(needs, declared[key], model)


def _refuse_unless_one_can(
    needs: Sequence[Need], workers: Sequence[Capabilities], model: str
) -> None:
    lacking = [worker.lacks(needs) for worker in workers] or [needs[0]]
    if None in lacking:
        return
    # Of what each worker lacks first, what comes latest: no worker gets further.
    need = max(filter(None, lacking), key=needs.index)
    raise InvalidInput(
        f"'{need.field}' is not supported: no live worker of the model '{model}' can do it "
        f"({need.title}). Leave '{need.field}' out{_REMEDIES.get(need.capability, '')}.",
        param=need.field,
    )
