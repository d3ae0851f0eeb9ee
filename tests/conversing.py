"""A channel as API processes have it, and the events of its users."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

from turnmill.producer.api.app import Server
from turnmill.producer.converse import Received, receive
from turnmill.producer.tenants import ensure_defaults
from turnmill.producer.turns import read_conversation
from turnmill.schemas.channels.events import Address, Command, UserMessage
from turnmill.schemas.channels.policies import Policies
from turnmill.schemas.ids import new_id
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import EngineSettings, Settings, load_settings
from turnmill.schemas.turns import GenerationParams, Turn
from turnmill.workers.engines.echo import EchoEngine
from turnmill.workers.turn.claim import Claim
from turnmill.workers.turn.prompt import build_prompt

_numbers = count(1)


class Replica:
    """A channel as one API process has it."""

    def __init__(self, url: str) -> None:
        self.settings: Settings = load_settings(
            database={"url": url},
            broker={"url": "amqp://nobody"},
            engine={"name": "echo", "echo_token_s": 0.05},
        )
        self.database = Database(self.settings.database)
        self.tenant_id = ensure_defaults(self.database, self.settings)
        self.bot = self.settings.engine.model_name

    def receive(self, event: Any, **policies: Any) -> Received:
        return receive(
            self.database, "slack", self.tenant_id, self.bot, Policies(**policies), event
        )

    def say(self, text: str, author: str = "U1", thread: str = "T1", **policies: Any) -> Received:
        return self.receive(message(text, author=author, thread=thread), **policies)

    def ask(self, text: str) -> Received:
        """Say something where the platform shows that a reply is awaited."""
        return self.receive(message(text).model_copy(update={"is_awaited": True}))

    def command(
        self,
        name: Any,
        *,
        author: str = "U1",
        thread: str = "T1",
        turn_id: str | None = None,
        conversation_id: str | None = None,
    ) -> Received:
        said = message("", author=author, thread=thread)
        event = Command(
            event_id=said.event_id, address=said.address, author=author, name=name, turn_id=turn_id,
            conversation_id=conversation_id,
        )  # fmt: skip
        return self.receive(event)

    def rows(self, statement: str, *params: Any) -> list[Any]:
        return self.database.run(statement, params)

    def turns(self) -> list[tuple[str, str]]:
        """State and last words of each turn, oldest first."""
        rows = self.rows("SELECT state, input->-1->>'content' AS said FROM turns ORDER BY id")
        return [(row.state, row.said) for row in rows]

    def notices(self) -> list[str]:
        rows = self.rows("SELECT content FROM deliveries WHERE kind = 'notice' ORDER BY ordinal")
        return [row.content for row in rows]


def read_turns(replica: Replica, received: Received) -> list[Turn]:
    """The turns of the conversation that an event belongs to."""
    assert received.conversation_id is not None
    return read_conversation(replica.database, replica.tenant_id, received.conversation_id)


def prompt_of(database: Database, turn: Turn) -> list[tuple[str, str]]:
    """Role and text of each message that an engine is given for a turn."""
    claim = Claim(
        cites=True,
        turn_id=turn.turn_id, conversation_id=turn.conversation_id, worker_id=new_id(), attempt=1,
        seq=turn.seq, failures=0, lane=turn.lane, instructions="", messages=turn.messages,
        params=GenerationParams(max_tokens=8), documents=(), knowledge=None, tenant_id=new_id(),
        cache_namespace="", kept_text="", kept_tokens=0, next_position=0, deadline_s=None,
    )  # fmt: skip
    engine = EchoEngine(EngineSettings(name="echo", context_window=100_000))
    prompt = build_prompt(database, engine, claim)
    return [(message.role.value, message.text) for message in prompt.messages]


def message(text: str, *, thread: str = "T1", author: str = "U1", event_id: str = "") -> Any:
    return UserMessage(
        event_id=event_id or f"E{next(_numbers)}",
        address=Address(channel="slack", thread=thread, target={"channel": "C1", "ts": thread}),
        author=author,
        content=text,
    )


@contextmanager
def serving(
    settings: Settings, listener: socket.socket, eventually: Callable[..., None]
) -> Iterator[Server]:
    """The API in a thread of this process, on a socket that listens already."""
    server = Server(settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        eventually(lambda: server.started)
        yield server
    finally:
        server.should_exit = True
        thread.join()
