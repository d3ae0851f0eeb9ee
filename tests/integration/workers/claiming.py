"""Turns in the hands of a worker, step by step."""

from typing import Any

from turnmill.schemas.turns import AcceptedTurn
from turnmill.workers.turn.claim import Claim
from turnmill.workers.turn.leases import Leases
from turnmill.workers.upkeep.rescuer import sweep


def claimed(leases: Leases, turn: AcceptedTurn) -> Claim:
    claim = leases.claim(turn.turn_id)
    assert claim is not None
    return claim


def sweep_once(system: Any) -> int:
    return sweep(system.database, system.settings.worker)


def seen_at(system: Any) -> Any:
    """When the only worker was last seen."""
    return system.database.run("SELECT seen_at FROM worker_liveness")[0].seen_at
