"""Every change of a turn's state is one of `TRANSITIONS`, and a known statement makes it.

A trigger of the test's own notes each change with the statement that made it, while turns go all
their ways on a real PostgreSQL. The sources are read too, for a statement that no way here reaches
would stay unseen.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from turnmill.producer.accept import accept_many
from turnmill.producer.cancel import cancel
from turnmill.producer.replay import drop, replay
from turnmill.schemas import advance as advance_module
from turnmill.schemas.ids import new_id
from turnmill.schemas.outcomes import Answered, Failed, Outcome, Snoozed
from turnmill.schemas.store import claim as claim_module
from turnmill.schemas.store import outbox as outbox_module
from turnmill.schemas.store.accept import INSERT_TURNS
from turnmill.schemas.store.cancel import CANCEL
from turnmill.schemas.store.replay import DROP, REPLAY
from turnmill.schemas.store.settle import END, REQUEUE
from turnmill.schemas.turns import TRANSITIONS, AcceptedTurn, Reply, TurnState, Usage
from turnmill.workers import rescuer as rescuer_module
from turnmill.workers.lease import Leases
from turnmill.workers.rescuer import sweep
from turnmill.workers.settle import Settler

_REPOSITORY = Path(__file__).parents[2]
REPLY = Answered(Reply(content="yes", finish_reason="stop", usage=Usage()))

#: The statements that change the state of turns. A new one belongs into `schemas/store`.
OWNERS = {
    "schemas/store/claim.py": claim_module.CLAIM,
    "schemas/advance.py": advance_module._ADVANCE,
    "schemas/store/accept.py": INSERT_TURNS,
    "schemas/store/cancel.py": CANCEL,
    "schemas/store/replay.py": REPLAY + DROP,
    "schemas/store/settle.py": END + REQUEUE,
    "workers/rescuer.py": rescuer_module._REQUEUE_LOST,
}

#: No code hands turns to people yet.
_NOT_YET = {(TurnState.RUNNING, TurnState.HANDED_OFF)}

_NOTE = """
CREATE TABLE changes (old text, new text, statement text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO changes SELECT CASE TG_OP WHEN 'UPDATE' THEN OLD.state END, NEW.state,
        current_query();
    RETURN NULL;
END $$;
CREATE TRIGGER note AFTER INSERT OR UPDATE OF state ON turns FOR EACH ROW EXECUTE FUNCTION note()
"""


@pytest.fixture
def system(make_system: Any, database_url: str) -> Any:
    system = make_system(database_url, "amqp://nobody")
    system.database.run(_NOTE)
    return system


class Ways:
    """Turns on their ways, through the code that every process runs."""

    def __init__(self, system: Any) -> None:
        self._system = system
        self._database = system.database
        settings, model = system.settings.worker, system.settings.engine.model_name
        self._leases = Leases(self._database, settings, model=model, engine="echo")
        self._settler = Settler(self._database, max_attempts=2, give_up=Event())

    def accept(self, count: int = 1) -> list[AcceptedTurn]:
        """Turns of one conversation."""
        conversation = new_id()
        requests = [
            self._system.request(f"turn {n}", conversation_id=conversation) for n in range(count)
        ]
        return accept_many(self._database, requests)

    def settle(self, turn: AcceptedTurn, outcome: Outcome) -> None:
        claim = self._leases.claim(turn.turn_id)
        assert claim is not None
        assert self._settler.settle(claim, outcome)

    def park(self, turn: AcceptedTurn) -> None:
        for _ in range(2):
            self.settle(turn, Snoozed(0.0, "busy"))

    def lose(self, turn: AcceptedTurn) -> None:
        assert self._leases.claim(turn.turn_id)
        self._database.run("UPDATE turns SET leased_until = clock_timestamp() - interval '1 s'")
        assert sweep(self._database, self._system.settings.worker) == 1

    def cancel(self, turn: AcceptedTurn) -> None:
        assert cancel(self._database, self._system.tenant_id, turn.turn_id)

    def cancel_each(self) -> None:
        """A waiting turn, a queued one and a running one."""
        queued, waiting = self.accept(2)
        self.cancel(waiting)
        self.cancel(queued)
        (running,) = self.accept()
        assert self._leases.claim(running.turn_id)
        self.cancel(running)

    def replay_and_drop(self) -> None:
        parked, later = self.accept(2)
        self.park(parked)
        (change,) = replay(self._database, self._system.tenant_id, [parked.turn_id])
        assert change.state == "queued"
        self.park(parked)
        drop(self._database, self._system.tenant_id, [parked.turn_id])
        self.settle(later, REPLY)


def test_turns_go_all_ways_of_the_table_and_no_other(system: Any) -> None:
    ways = Ways(system)
    first, second = ways.accept(2)
    ways.settle(first, Snoozed(0.0, "busy"))
    ways.lose(first)
    ways.settle(first, REPLY)
    ways.settle(second, Failed("bad", "No."))
    ways.cancel_each()
    ways.replay_and_drop()
    changes = system.database.run("SELECT DISTINCT old, new, statement FROM changes")
    made = {(change.old, change.new) for change in changes if change.old is not None}
    assert made == {(old, new) for old in TRANSITIONS for new in TRANSITIONS[old]} - _NOT_YET
    assert {change.new for change in changes if change.old is None} == {"waiting", "queued"}
    known = "".join(_bare(statements) for statements in OWNERS.values())
    assert [change.statement for change in changes if _bare(change.statement) not in known] == []


def _bare(statement: str) -> str:
    """Without its parameters, which psycopg numbers."""
    return re.sub(r"%\(\w+\)s|%s|\$\d+", "?", statement)


def _texts(path: Path) -> Iterator[str]:
    """The texts of a file's code, f-strings without what they put in."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "?" for part in node.values
            )


def _files_with(pattern: str) -> set[str]:
    folders = ("producer", "schemas", "workers", "infra/embedded")
    paths = [path for folder in folders for path in (_REPOSITORY / folder).rglob("*.py")]
    return {
        path.relative_to(_REPOSITORY).as_posix()
        for path in paths
        if any(re.search(pattern, text) for text in _texts(path))
    }


def test_no_other_file_has_a_statement_that_changes_the_state_of_turns() -> None:
    changing = r"INSERT INTO turns\b|UPDATE turns\b(?: \w+)? SET[^;]*?\bstate = (?!ANY)"
    assert _files_with(changing) == set(OWNERS)
    core = re.compile(r"\bturns\.(?:insert|update)\(|\b(?:insert|update)\(turns\)")
    for folder in ("producer", "schemas", "workers"):
        for path in (_REPOSITORY / folder).rglob("*.py"):
            assert not core.search(path.read_text()), path


def test_one_statement_owes_hints_for_all() -> None:
    assert _files_with(r"INSERT INTO outbox") == {"schemas/store/outbox.py"}
    assert outbox_module.OWE_HINTS in "".join(OWNERS.values())
