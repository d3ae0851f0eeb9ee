"""A system in which users have said a word of theirs wherever a user's words can stand."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from tests.conversing import message
from tests.unit.schemas.memory.test_words import tables
from turnmill.producer.accept import accept
from turnmill.producer.batches.submission import submit
from turnmill.producer.converse import Received, receive
from turnmill.producer.evaluation.judge import ask_judge
from turnmill.producer.evaluation.outcomes import Outcome, Pair
from turnmill.producer.evaluation.replay import ask, draw_questions
from turnmill.producer.handoff import answer, hand_off
from turnmill.producer.memory import users
from turnmill.producer.memory.forgetting import forget_user
from turnmill.producer.ratings import rate
from turnmill.producer.studies.candidates import stored_candidates
from turnmill.producer.studies.creation import create_study
from turnmill.schemas.channels.policies import Policies
from turnmill.schemas.content import Document, MediaPart, TextPart
from turnmill.schemas.files.files import File, Purpose
from turnmill.schemas.files.opening import open_files, open_storage
from turnmill.schemas.ids import new_id
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.store.batches.purpose import MEASURING
from turnmill.schemas.store.memory.ledger import merge_ledger
from turnmill.schemas.store.memory.words import HELD
from turnmill.schemas.store.tables import turns
from turnmill.schemas.turns import GenerationParams, Message, Role, TurnState
from turnmill.workers.testing import InlineWorker
from turnmill.workers.upkeep.erasures import Erased, erase_all

LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)

_TURNS = "SELECT id, conversation_id FROM turns WHERE input::text LIKE %(like)s"
_OF_TURNS = f"turn_id IN (SELECT id FROM ({_TURNS}) t)"

#: Rows of a user that nothing here makes by use.
_MADE = (
    f"INSERT INTO chunks SELECT id, 0, %(word)s, 1 FROM ({_TURNS}) t RETURNING turn_id",
    "INSERT INTO summaries (conversation_id, seq, content) SELECT DISTINCT conversation_id, 1, "
    f"%(word)s FROM ({_TURNS}) t RETURNING seq",
    "INSERT INTO turn_sources (turn_id, sources) SELECT id, to_jsonb(ARRAY[%(word)s::text]) "
    f"FROM ({_TURNS}) t ON CONFLICT DO NOTHING RETURNING turn_id",
    "INSERT INTO turn_readings (turn_id, readings) SELECT id, jsonb_build_array(jsonb_build_object("
    "'file_id', '', 'kind', 'audio', 'text', %(word)s::text)) "
    f"FROM ({_TURNS}) t ON CONFLICT DO NOTHING RETURNING turn_id",
    "INSERT INTO transcriptions (file_id, prompt) SELECT id, %(word)s FROM files "
    "WHERE name LIKE %(like)s RETURNING file_id",
    "WITH c AS (INSERT INTO collections (id, tenant_id, name) SELECT gen_random_uuid(), id, 'shop' "
    "FROM tenants ON CONFLICT (tenant_id, name) DO UPDATE SET name = excluded.name "
    "RETURNING id, tenant_id) "
    "INSERT INTO knowledge_gaps (id, tenant_id, collection_id, turn_id, question, verdict) "
    "SELECT gen_random_uuid(), c.tenant_id, c.id, t.id, %(word)s, 'uncertain' "
    f"FROM c, ({_TURNS}) t RETURNING id",
)

#: Rows of a user whose columns are filled with the word, one by one.
_FILLED = {
    "attempts": _OF_TURNS,
    "replies": _OF_TURNS,
    "ratings": _OF_TURNS,
    "deliveries": _OF_TURNS,
    "study_items": "prompt::text LIKE %(like)s",
    "study_assignments": "item_id IN (SELECT id FROM study_items WHERE prompt::text LIKE %(like)s)",
}


class World:
    """The system, and what is done in it."""

    def __init__(self, system: Any, database: Database, data: Path) -> None:
        self.system = system
        self.database = database
        self.settings = system.settings.model_copy(update={"data": data})
        self.tenant_id: UUID = system.tenant_id
        self.bot: str = self.settings.engine.model_name
        self.storage = open_storage(self.settings)
        self.files = open_files(self.database, self.settings)

    def live(self, word: str) -> None:
        """Say the word by call and in a channel; be rated, and answered by people."""
        key = f"api:{word}"
        users.remember(self.database, self.tenant_id, key, f"likes {word}", word)
        users.set_memory(self.database, self.tenant_id, key, is_on=True)
        turn = self.call(word, f"What is a {word}?")
        self.call(word, f"And what does a {word} eat?", turn.conversation_id)
        rate(self.database, self.tenant_id, turn.turn_id, word, 1, f"I love my {word}.")
        self.upload_and_ask(word)
        self.write(f"Tell me of my {word}", f"U{word}")
        said = self.write(f"Remember that my pet is a {word}", f"U{word}")
        assert said.conversation_id is not None
        hand_off(self.database, self.tenant_id, said.conversation_id, f"Knows of {word}s.")
        self.write(f"Where is my {word}?", f"U{word}")
        answer(self.database, self.tenant_id, said.conversation_id, f"Your {word} flew.", "staff")
        parked = accept(self.database, self.system.request(f"A {word}!", user_key=key))
        self.end(parked.turn_id, TurnState.PARKED)

    def call(self, word: str, text: str, conversation: UUID | None = None) -> Any:
        request = self.system.request(
            text, user_key=f"api:{word}", author=word, conversation_id=conversation,
            idempotency_key=f"{word} {new_id()}",
            params=GenerationParams(documents=(Document(text=f"Of {word}."),)),
        )  # fmt: skip
        with InlineWorker(self.settings):
            turn = accept(self.database, request)
            self.system.wait_until_settled()
        return turn

    def write(self, text: str, author: str, thread: str = "") -> Received:
        """Write in a channel, and let the bot answer."""
        event = message(text, author=author, thread=thread or f"T{author}")
        said = receive(self.database, "slack", self.tenant_id, self.bot, Policies(), event)
        self.settle()
        return said

    def settle(self) -> None:
        with InlineWorker(self.settings):
            self.system.wait_until_settled()

    def upload_and_ask(self, word: str) -> None:
        file = self.upload(word)
        parts = (TextPart(text="What is this?"), MediaPart(type="file", file_id=file.shown_id))
        said = Message(role=Role.USER, content=parts)
        turn = accept(self.database, self.system.request("What is this?", user_key=f"api:{word}"))
        shown = sa.func.jsonb_build_array(sa.cast(said.model_dump(mode="json"), JSONB))
        turns = next(table for table in tables() if table.name == "turns")
        with self.database.begin() as connection:
            connection.execute(
                sa.update(turns).where(turns.c.id == turn.turn_id).values(input=shown)
            )
        self.end(turn.turn_id, TurnState.FAILED)

    def upload(self, word: str) -> File:
        with self.storage.draft() as draft:
            draft.write(f"a file about {word}".encode())
            return self.files.save(
                draft, tenant_id=self.tenant_id, name=f"{word}.txt", purpose=Purpose.MESSAGE
            )

    def end(self, turn_id: UUID, state: TurnState) -> None:
        """End a turn that no worker answers."""
        self.database.run(
            "WITH hint AS (DELETE FROM outbox WHERE turn_id = %(id)s), turn AS ("
            "UPDATE turns SET state = %(state)s, settled_at = clock_timestamp() "
            "WHERE id = %(id)s RETURNING conversation_id) "
            "UPDATE conversations c SET answered_seq = next_seq - 1 FROM turn "
            "WHERE c.id = turn.conversation_id RETURNING c.id",
            {"id": turn_id, "state": state},
        )

    def measure(self) -> None:
        """Let bots answer again what was said, and a model and people judge it."""
        between = (LONG_AGO, datetime.now(UTC))
        drawn = draw_questions(self.database, self.tenant_id, self.bot, 50, between, 1)
        pairs = [Pair(each, Outcome(each.reply, None), Outcome("Another.", None)) for each in drawn]
        for asked in (ask("x", self.bot, "1", drawn), ask_judge(self.bot, "1", pairs)):
            submit(self.database, self.tenant_id, self.bot, asked, purpose=MEASURING)
        self.settle()
        found = stored_candidates(self.database, self.tenant_id, self.bot, 50, LONG_AGO, 1)
        create_study(self.database, self.tenant_id, "study", "likert", found)
        self.database.run(
            "INSERT INTO study_raters (id, study_id, name) SELECT %s, id, 'rater' FROM studies "
            "RETURNING id",
            (new_id(),),
        )
        self.database.run(
            "INSERT INTO study_assignments (item_id, rater_id, leased_until) "
            "SELECT i.id, r.id, clock_timestamp() FROM study_items i, study_raters r "
            "RETURNING item_id"
        )

    def fill(self, word: str) -> None:
        """Put the word into what is left of the columns that are declared to hold words."""
        params = {"like": f"%{word}%", "word": word}
        for statement in _MADE:
            self.database.run(statement, params)
        # What is looked for by its prompt is filled last.
        for table, column, value in sorted(held_columns(), key=lambda each: each[1] == "prompt"):
            if where := _FILLED.get(table):
                values = f"UPDATE {table} SET {column} = {value} WHERE {where}"
                self.database.run(f"{values} RETURNING 1", params)

    def tables_with(self, word: str) -> set[str]:
        """The tables that have the word in any column, as text or as bytes."""
        every = "SELECT tablename AS name FROM pg_tables WHERE schemaname = 'public'"
        names = [row.name for row in self.database.run(every)]
        params = (f"%{word}%", f"%{word.encode().hex()}%")
        search = "SELECT 1 FROM {} t WHERE t::text ILIKE %s OR t::text LIKE %s LIMIT 1"
        found = {name for name in names if self.database.run(search.format(name), params)}
        return {name.partition("_default")[0].partition("_y2")[0] for name in found}

    def files_with(self, word: str) -> list[Path]:
        found = (path for path in self.settings.data.rglob("*") if path.is_file())
        return [path for path in found if word.encode() in path.read_bytes()]

    def forget(self, word: str) -> None:
        """Forget a user, once all is sent that was owed to the platform."""
        self.database.run(
            "WITH sent AS (UPDATE deliveries SET state = 'sent', settled_at = clock_timestamp() "
            "WHERE state IN ('queued', 'pending') RETURNING id) "
            "DELETE FROM outbox USING sent WHERE turn_id = sent.id RETURNING turn_id"
        )
        for key in (f"api:{word}", f"slack:U{word}"):
            forget_user(self.database, self.tenant_id, key)
        merge_ledger(self.database, self.settings.ledger_path)
        assert [each.waiting for each in self.erase()] == [0, 0]

    def erase(self) -> list[Erased]:
        return erase_all(self.database, self.storage)


def held_columns() -> Iterator[tuple[str, str, str]]:
    """Table, name, and an SQL value with the word, of each column that can hold words."""
    types = {(table.name, column.name): column.type for table in tables() for column in table.c}
    for table, held in HELD.items():
        for name in {name for each in held for name in each.then}:
            match types[table, name]:
                case JSONB() if name == "source":
                    yield table, name, "source || jsonb_build_object('note', %(word)s::text)"
                case JSONB():
                    yield table, name, "to_jsonb(ARRAY[%(word)s::text])"
                case sa.Text() if name == "author":
                    yield table, name, "%(word)s || id::text"
                case sa.Text():
                    yield table, name, "%(word)s"


def send(world: World, word: str, file: File) -> UUID:
    """Let a user send a file; nobody answers."""
    turn = accept(world.database, world.system.request("See", user_key=f"api:{word}"))
    said = Message(role=Role.USER, content=(MediaPart(type="file", file_id=file.shown_id),))
    value = sa.func.jsonb_build_array(sa.cast(said.model_dump(mode="json"), JSONB))
    with world.database.begin() as connection:
        connection.execute(sa.update(turns).where(turns.c.id == turn.turn_id).values(input=value))
    world.end(turn.turn_id, TurnState.FAILED)
    return turn.turn_id


def files_of(world: World) -> set[UUID]:
    return {row.id for row in world.database.run("SELECT id FROM files")}


def forget(world: World, word: str) -> None:
    forget_user(world.database, world.tenant_id, f"api:{word}")
    assert [each.waiting for each in world.erase()] == [0]
