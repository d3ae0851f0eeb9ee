"""Channels on a real system: a receiver of webhooks that obeys orders, and threads with turns."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

from psycopg.types.json import Json, Jsonb
from standardwebhooks import Webhook

from turnmill.producer.accept import accept
from turnmill.schemas.ids import new_id
from turnmill.schemas.store.advance import advance, lock_conversations
from turnmill.schemas.store.channels.deliveries import (
    INSERT_NOTICE,
    INSERT_PENDING,
    advance_deliveries,
)

#: Of the specification's examples.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105


class Receiver:
    """An HTTP server that takes webhooks, or does what a test orders."""

    def __init__(self) -> None:
        #: What came, verified: the id and the body, also what was answered with an error.
        self.received: list[tuple[str, dict[str, Any]]] = []
        #: Orders for the next calls: a status, `silent`, `dies` (takes it, and hangs up).
        self.orders: list[int | str] = []
        self.headers: dict[str, str] = {}
        #: Cleared: every call waits, after it was taken.
        self.open = threading.Event()
        self.open.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.take(self)

            def log_message(self, *_: Any) -> None:
                """Silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/in"
        threading.Thread(target=self._server.serve_forever, args=[0.02], daemon=True).start()

    def take(self, handler: Any) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        payload = Webhook(SECRET).verify(body, dict(handler.headers))
        self.received.append((handler.headers["webhook-id"], payload))
        order = self.orders.pop(0) if self.orders else 200
        self.open.wait(60)
        if order == "silent":
            time.sleep(5)
            order = "dies"
        if order == "dies":
            handler.close_connection = True
            return
        handler.send_response(order)
        for name, value in self.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    @property
    def texts(self) -> list[str]:
        """What a receiver keeps that drops ids it knows."""
        kept = {name: payload["data"]["text"] for name, payload in self.received}
        return list(kept.values())

    def close(self) -> None:
        self.open.set()
        self._server.shutdown()
        self._server.server_close()


class Channels:
    """A system with channels: their file, their deliveries."""

    def __init__(self, system: Any, folder: Path) -> None:
        self.system, self.database = system, system.database
        self._file = folder / "turnmill.toml"
        self._sections: list[str] = []
        self.environment = {"TURNMILL_CONFIG": str(self._file), "DESK_SECRET": SECRET}

    @property
    def count(self) -> int:
        return len(self._sections)

    def configure(self, name: str, **fields: Any) -> None:
        bot = self.system.settings.engine.model_name
        lines = [f"[channels.{name}]", f"bot = {json.dumps(bot)}"]
        lines += [f"{key} = {_toml(value)}" for key, value in fields.items()]
        self._sections.append("\n".join(lines))
        self._file.write_text("\n\n".join(self._sections))

    def configure_webhook(self, name: str, receiver: Receiver) -> None:
        self.configure(name, kind="webhook", secret={"env": "DESK_SECRET"}, url=receiver.url)

    def deliver(self, eventually: Callable[..., None], **environment: str) -> Any:
        """A delivery worker that consumes when this returns."""
        variables = {"TURNMILL_DELIVERY__TIMEOUT_S": "1", "TURNMILL_DELIVERY__LEASE_S": "2"}
        worker = self.system.start("deliver", **(self.environment | variables | environment))
        eventually(lambda: worker.says("deliver.consuming") or not worker.is_running, 30)
        assert worker.is_running, worker.log.read_text()
        return worker

    def serve(self, eventually: Callable[..., None]) -> str:
        """Start all processes; the API's URL."""
        self.system.start("relay")
        # One place: what is still being generated holds up what comes after it.
        pace = {"TURNMILL_WORKER__CONCURRENCY": "1", "TURNMILL_ENGINE__ECHO_TOKEN_S": "0.02"}
        self.system.start("worker", **pace)
        served = self.system.start("api", TURNMILL_API__PORT="0", **self.environment)
        self.deliver(eventually)
        eventually(lambda: served.says("api.started"), 30)
        lines = served.log.read_text().splitlines()
        port = next(json.loads(line)["port"] for line in lines if "api.started" in line)
        return f"http://127.0.0.1:{port}"

    def notice(self, channel: str, text: str, conversation: UUID | None = None) -> UUID:
        """A text of its own, in a thread that is made for it, or in one that is there."""
        conversation = conversation or self.thread(channel)
        params = {"id": new_id(), "content": text, "conversation": conversation}
        with self.database.cursor() as cursor:
            lock_conversations(cursor, [conversation])
            cursor.execute(INSERT_NOTICE, params)
            advance_deliveries(cursor, [conversation])
        return conversation

    def thread(self, channel: str, /, **target: str) -> UUID:
        conversation = new_id()
        self.database.run(
            "INSERT INTO conversations (id, tenant_id, bot_id) SELECT %s, tenant_id, id FROM bots "
            "LIMIT 1",
            (conversation,),
        )
        self.database.run(
            "INSERT INTO channel_threads VALUES (%s, %s, %s, %s, 'me', %s)",
            (channel, conversation.hex, self.system.tenant_id, conversation, Jsonb(target)),
        )
        return conversation

    def owe(self, turn: Any, channel: str, /, **target: str) -> None:
        """The delivery of a turn's reply, as it is inserted when the turn is accepted."""
        row = {"id": str(new_id()), "tenant_id": str(self.system.tenant_id)}
        row |= {"conversation_id": str(turn.conversation_id), "turn_id": str(turn.turn_id)}
        row |= {"channel": channel, "target": target}
        with self.database.cursor() as cursor:
            lock_conversations(cursor, [turn.conversation_id])
            cursor.execute(INSERT_PENDING, (Json([row]),))
            advance_deliveries(cursor, [turn.conversation_id])

    def states(self, channel: str) -> list[str]:
        rows = self.database.run(
            "SELECT state FROM deliveries WHERE channel = %s ORDER BY ordinal", (channel,)
        )
        return [row.state for row in rows]

    def all_sent(self) -> bool:
        rows = self.database.run("SELECT DISTINCT state FROM deliveries")
        return {row.state for row in rows} == {"sent"}


class Asked:
    """A turn that is owed to a channel, and that the test itself answers: no worker runs."""

    def __init__(self, channels: Channels, channel: str) -> None:
        self.channels, self.channel = channels, channel

    def ask(self, text: str = "question", /, **target: str) -> None:
        self.turn = accept(self.channels.database, self.channels.system.request(text))
        self.channels.owe(self.turn, self.channel, **target)

    def write(self, text: str) -> None:
        """The model writes more of the reply."""
        turn_id = self.turn.turn_id
        self.channels.database.run("UPDATE turns SET state = 'running' WHERE id = %s", (turn_id,))
        self.channels.database.run(
            "INSERT INTO chunks SELECT %s, count(*), %s, 1 FROM chunks WHERE turn_id = %s",
            (turn_id, text, turn_id),
        )

    def finish(self, text: str) -> None:
        turn = self.turn
        with self.channels.database.cursor() as cursor:
            lock_conversations(cursor, [turn.conversation_id])
            cursor.execute(
                "INSERT INTO replies (turn_id, attempt, content, finish_reason, prompt_tokens, "
                "completion_tokens) VALUES (%s, 1, %s, 'stop', 1, 1)",
                (turn.turn_id, text),
            )
            cursor.execute("DELETE FROM chunks WHERE turn_id = %s", (turn.turn_id,))
            cursor.execute("DELETE FROM outbox WHERE turn_id = %s", (turn.turn_id,))
            cursor.execute("UPDATE turns SET state = 'completed' WHERE id = %s", (turn.turn_id,))
            advance(cursor, [turn.conversation_id])

    @property
    def row(self) -> Any:
        """Its delivery."""
        (row,) = self.channels.database.run(
            "SELECT * FROM deliveries WHERE turn_id = %s", (self.turn.turn_id,)
        )
        return row


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }"
    return json.dumps(value)
