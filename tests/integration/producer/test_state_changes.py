"""Every change of a turn's state is in `TRANSITIONS`, and a statement of `schemas/store` makes it.

A trigger of the test's own notes each change with the statement that made it, while turns go all
their ways on a real PostgreSQL. Each statement is also tried on turns in every state. And all
modules are read, for a statement that no way here reaches would stay unseen.
"""

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from turnmill.producer.accept import accept_many
from turnmill.producer.cancel import cancel, end_open_turns
from turnmill.producer.handoff import hand_off
from turnmill.producer.parked.replay import drop, replay
from turnmill.schemas import store
from turnmill.schemas.ids import new_id
from turnmill.schemas.outcomes import Answered, Failed, Outcome, Snoozed
from turnmill.schemas.store.advance import ADVANCE, lock_conversations
from turnmill.schemas.store.cancel import CANCEL
from turnmill.schemas.store.changes import change
from turnmill.schemas.store.claim import CLAIM
from turnmill.schemas.store.collect import COLLECT, FIND_UNBEGUN
from turnmill.schemas.store.interrupt import INTERRUPT
from turnmill.schemas.store.outbox import OWE_HINTS
from turnmill.schemas.store.replay import DROP, REPLAY
from turnmill.schemas.store.requeue import REQUEUE
from turnmill.schemas.turns import TRANSITIONS, AcceptedTurn, Lane, Reply, TurnState, Usage
from turnmill.workers.turn.leases import Leases
from turnmill.workers.turn.settle import Ending, Settler, end_turns
from turnmill.workers.upkeep.rescuer import sweep

_REPOSITORY = Path(__file__).parents[3]
_STORE = "schemas/store/"
#: Whatever runs beside PostgreSQL's own tools; migrations change tables, not turns.
_FOLDERS = ("producer", "schemas", "workers", "compression", "infra")
REPLY = Answered(Reply(content="yes", finish_reason="stop", usage=Usage()))

#: A statement, or the part of one, that makes turns, changes their state, or owes a hint.
_CHANGING = re.compile(
    r"INSERT\s+INTO\s+(?:turns|outbox)\b"
    r"|UPDATE\s+turns\b(?:\s+(?:AS\s+)?\w+)?\s+SET\s(?:(?!\b(?:FROM|WHERE)\b)[^;])*?\bstate\s*=",
    re.IGNORECASE,
)

_NOTE = """
CREATE TABLE changes (old text, new text, statement text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO changes SELECT CASE TG_OP WHEN 'UPDATE' THEN OLD.state END, NEW.state,
        current_query();
    RETURN NULL;
END $$;
CREATE TRIGGER note AFTER INSERT OR UPDATE OF state ON turns FOR EACH ROW EXECUTE FUNCTION note();
CREATE TABLE owed (statement text);
CREATE FUNCTION note_hint() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO owed SELECT current_query();
    RETURN NULL;
END $$;
CREATE TRIGGER note AFTER INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION note_hint()
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

    def hand_off_each(self) -> None:
        """A running turn and a waiting one, a queued one, and one that comes later."""
        running, _ = self.accept(2)
        assert self._leases.claim(running.turn_id)
        (queued,) = self.accept()
        for turn in (running, queued):
            hand_off(self._database, self._system.tenant_id, turn.conversation_id, "Too hard.")
        later = self._system.request("later", conversation_id=queued.conversation_id)
        accept_many(self._database, [later])

    def interrupt(self) -> None:
        (turn,) = self.accept()
        claim = self._leases.claim(turn.turn_id)
        assert claim is not None
        self._database.run(
            "INSERT INTO chunks (turn_id, position, text, token_count) VALUES (%s, 0, 'yes', 1)",
            (turn.turn_id,),
        )
        with self._database.cursor() as cursor:
            lock_conversations(cursor, [turn.conversation_id])
            end_open_turns(cursor, turn.conversation_id, keeps_text=True)

    def retry(self, turn: AcceptedTurn) -> None:
        """As a batch does with its rows."""
        ids = [turn.turn_id]
        (change,) = replay(self._database, self._system.tenant_id, ids, states=[TurnState.FAILED])
        assert change.state == "queued"

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
    ways.retry(second)
    ways.cancel_each()
    ways.replay_and_drop()
    ways.hand_off_each()
    ways.interrupt()
    changes = system.database.run("SELECT DISTINCT old, new, statement FROM changes")
    made = {(change.old, change.new) for change in changes if change.old is not None}
    assert made == {(old, new) for old in TRANSITIONS for new in TRANSITIONS[old]}
    begun = {change.new for change in changes if change.old is None}
    assert begun == {"waiting", "queued", "handed_off"}
    statements = {change.statement for change in changes}
    statements |= {row.statement for row in system.database.run("SELECT statement FROM owed")}
    owned = [_bare(text) for text in _owned()]
    assert [text for text in statements if _CHANGING.search(_without(owned, _bare(text)))] == []
    odd = "SELECT t.id, t.state FROM turns t FULL JOIN outbox o ON o.turn_id = t.id "
    odd += "WHERE (t.state = 'queued') IS DISTINCT FROM (o.turn_id IS NOT NULL)"
    assert system.database.run(odd) == []


class Tries:
    """Each statement, on one turn, as if its own conditions besides the state were met."""

    def __init__(self, system: Any, turn: AcceptedTurn) -> None:
        self._system, self._turn = system, turn
        self._database = system.database
        self._worker_id = new_id()
        self._fence = {"turn": turn.turn_id, "attempt": 1, "worker": self._worker_id}

    def put(self, state: TurnState) -> None:
        """By hand, and with a hint whatever the state is: an older release may have left it."""
        turn_id = self._turn.turn_id
        self._database.run(
            "UPDATE turns SET state = %s, attempt = 1, worker_id = %s, "
            "leased_until = clock_timestamp() - interval '1 minute' WHERE id = %s",
            (state, self._worker_id, turn_id),
        )
        self._database.run("DELETE FROM outbox")
        self._database.run(
            "INSERT INTO outbox (turn_id, model, lane) SELECT id, model, lane FROM turns"
        )
        self._database.run("UPDATE conversations SET answered_seq = 0")
        self._database.run("DELETE FROM changes")

    def claim(self) -> None:
        params = {"turns": [self._turn.turn_id], "model": self._system.settings.engine.model_name}
        params |= {"worker": new_id(), "lease_s": 9.0, "lanes": [lane.value for lane in Lane]}
        self._database.run(CLAIM, params)

    def requeue(self) -> None:
        params = {"counts": 1, "outcome": "snoozed", "error": None, "delay_s": 0.0}
        self._database.run(REQUEUE, self._fence | params)

    def rescue(self) -> None:
        sweep(self._database, self._system.settings.worker)

    def cancel(self) -> None:
        self._database.run(CANCEL, ([self._turn.turn_id],))

    def replay(self) -> None:
        self._database.run(REPLAY, {"turns": [self._turn.turn_id], "into": None})

    def drop(self) -> None:
        self._database.run(DROP, ([self._turn.turn_id],))

    def interrupt(self) -> None:
        turn_id = self._turn.turn_id
        self._database.run(
            "INSERT INTO chunks (turn_id, position, text, token_count) VALUES (%s, 0, 'yes', 1)",
            (turn_id,),
        )
        self._database.run(INTERRUPT, ([turn_id],))

    def hand_off(self) -> None:
        self._database.run("UPDATE conversations SET handed_off_at = NULL")
        conversation_id = self._turn.conversation_id
        hand_off(self._database, self._system.tenant_id, conversation_id, "Too hard.")

    def collect(self) -> None:
        with self._database.cursor() as cursor:
            params = {"conversation": self._turn.conversation_id, "last": 1, "author": None}
            if cursor.execute(FIND_UNBEGUN, params).fetchone() is not None:
                said = {"turn": self._turn.turn_id, "input": "[]", "quiet_s": 1.0}
                cursor.execute(COLLECT, said)

    def advance(self) -> None:
        self._database.run(ADVANCE, ([self._turn.conversation_id],))

    def end(self) -> None:
        """In every state that there is: an ending that is not one must not be written."""
        for state in TurnState:
            fence = (self._turn.turn_id, self._turn.conversation_id, 1, self._worker_id)
            end_turns(self._database, [Ending(*fence, True, state, "failed")])


@pytest.mark.parametrize("state", TurnState)
def test_no_statement_takes_a_turn_out_of_a_state_by_a_way_that_the_table_lacks(
    system: Any, state: TurnState
) -> None:
    (turn,) = Ways(system).accept()
    tries = Tries(system, turn)
    made: set[tuple[str, str]] = set()
    for name in (name for name in vars(Tries) if name not in {"put"} and name[0] != "_"):
        tries.put(state)
        getattr(tries, name)()
        made |= {(row.old, row.new) for row in system.database.run("SELECT old, new FROM changes")}
    wrong = {(old, new) for old, new in made if new not in TRANSITIONS[TurnState(old)]}
    assert wrong == set()
    assert bool(made) == bool(TRANSITIONS[state])


@pytest.mark.parametrize("before", TurnState)
def test_no_statement_can_be_built_for_a_change_that_the_table_lacks(before: TurnState) -> None:
    for after in set(TurnState) - TRANSITIONS[before]:
        with pytest.raises(ValueError, match=f"from {before} to {after}"):
            change(before, to=after)
    for after in TRANSITIONS[before]:
        assert change(before, to=after).guard == f"state IN ('{before}')"


def _bare(statement: str) -> str:
    """Without its parameters, which psycopg numbers."""
    return re.sub(r"%\(\w+\)s|%s|\$\d+", "?", statement)


def _without(parts: list[str], text: str) -> str:
    for part in sorted(parts, key=len, reverse=True):
        text = text.replace(part, "")
    return text


def _texts(values: Mapping[str, Any]) -> Iterator[str]:
    for value in values.values():
        if isinstance(value, str):
            yield value
        elif isinstance(value, type):
            yield from (text for text in vars(value).values() if isinstance(text, str))


def _owned() -> list[str]:
    """The statements and parts of statements of `schemas/store`."""
    names = [module.name for module in pkgutil.iter_modules(store.__path__)]
    modules = [importlib.import_module(f"{store.__name__}.{name}") for name in names]
    texts = [text for module in modules for text in _texts(vars(module))]
    return [text for text in texts if _CHANGING.search(text)]


def _sources() -> Iterator[Path]:
    for folder in _FOLDERS:
        for path in (_REPOSITORY / folder).rglob("*.py"):
            if "migrations/versions" not in path.as_posix():
                yield path


def _constants(path: Path, inserted: str = " state = ") -> Iterator[str]:
    """The texts of a file's code. What an f-string inserts is taken for a change of the state."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else inserted
                for part in node.values
            )


def test_no_file_outside_the_store_has_a_statement_that_changes_the_state_of_turns() -> None:
    found = {
        path.relative_to(_REPOSITORY).as_posix()
        for path in _sources()
        if any(_CHANGING.search(text) for text in _constants(path))
    }
    assert {path for path in found if not path.startswith(_STORE)} == set()
    assert f"{_STORE}claim.py" in found, "the search finds what there is"
    core = re.compile(
        r"\b(?:turns|outbox)\.(?:insert|update)\(|\b(?:insert|update)\((?:turns|outbox)\)"
    )
    assert [path for path in _sources() if core.search(path.read_text())] == []


def test_the_store_names_no_state_by_a_literal() -> None:
    """A guard in the store that names a state by a literal would not follow `TRANSITIONS`."""
    literal = re.compile(r"\bstate\s*(?:=|IN)\s*\(?'\w", re.IGNORECASE)
    written = [
        path.name
        for path in (_REPOSITORY / _STORE).glob("*.py")
        # Indexes and constraints of the tables name states; they change none.
        if path.name != "tables.py"
        if any(literal.search(text) for text in _constants(path, "?"))
    ]
    assert written == []


def test_one_statement_owes_hints_for_all() -> None:
    inserting = [text for text in _owned() if "INSERT INTO outbox" in text]
    assert OWE_HINTS in inserting
    assert all("INSERT INTO outbox" not in text.replace(OWE_HINTS, "") for text in inserting)
