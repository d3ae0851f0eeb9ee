"""What others put on our queues is dropped and told; turns are answered meanwhile.

Whoever reaches the broker can write to a lane's queue and send control commands. The messages here
are of a seeded generator: the kinds that once ended or silenced workers, and random ones.
"""

import base64
import json
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import pytest
from amqp.basic_message import Message
from celery import Celery
from celery.worker.control import Panel
from kombu import Connection

from turnmill.producer.accept import accept, accept_many
from turnmill.schemas.broker import celery_settings, hint_queues
from turnmill.schemas.routes import ANSWER_TASK
from turnmill.schemas.turns import Lane
from turnmill.workers.consumer.remote_control import ALLOWED, SHOWN_OF_BROKER, _without_secrets

Eventually = Callable[..., None]

FOREIGN_COUNT = 150
FAR = (datetime.now(UTC) + timedelta(days=3)).isoformat()


class Sender:
    """Writes what it likes to the interactive lane's queue."""

    def __init__(self, system: Any) -> None:
        self._connection = Connection(system.settings.broker.url.get_secret_value())
        self._is_amqp = system.settings.broker.is_amqp
        self._channel = self._connection.channel()
        model = system.settings.engine.model_name
        (queue,) = hint_queues(system.settings.broker, [Lane.INTERACTIVE], model, system.deployment)
        queue(self._channel).declare()
        self.queue = queue.name

    def raw(self, data: bytes) -> None:
        """Past kombu: no envelope at all on Redis, no properties on RabbitMQ."""
        if self._is_amqp:
            self._channel.basic_publish(self._message(data, None, None, {}), "", self.queue)
        else:
            self._channel.client.lpush(self.queue, data)

    def send(
        self,
        body: Any,
        headers: Any,
        content_type: str | None = "application/json",
        encoding: str | None = "utf-8",
    ) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        if self._is_amqp:
            table = headers if isinstance(headers, dict) else {}
            message = self._message(data, content_type, encoding, table)
            self._channel.basic_publish(message, "", self.queue)
            return
        envelope = {
            "body": base64.b64encode(data).decode(),
            "content-type": content_type,
            "content-encoding": encoding,
            "headers": headers,
            "properties": {
                "body_encoding": "base64",
                "delivery_tag": str(uuid4()),
                "delivery_info": {"exchange": "", "routing_key": self.queue},
            },
        }
        self._channel.client.lpush(self.queue, json.dumps(envelope))

    def hint(
        self, turn_id: UUID, *, task: str = ANSWER_TASK, fields: Any = (), **more: Any
    ) -> None:
        """A hint as this version writes it, but for what is given."""
        kwargs = {"turn_id": turn_id.hex, "lane": "interactive", "model": "m", **dict(fields)}
        self.send([[], kwargs, {}], {"task": task, "id": str(uuid4()), "lang": "py"} | more)

    def delete_queue(self) -> None:
        self._channel.queue_delete(self.queue)

    def close(self) -> None:
        self._connection.close()

    def _message(self, data: bytes, content_type: Any, encoding: Any, headers: Any) -> Any:
        properties = {"application_headers": headers, "delivery_mode": 2}
        properties |= {"content_type": content_type} if content_type else {}
        properties |= {"content_encoding": encoding} if encoding else {}
        return Message(data, **properties)


@pytest.fixture
def sender(system: Any) -> Any:
    sender = Sender(system)
    yield sender
    sender.close()


def foreign_message(chance: random.Random, sender: Sender) -> None:
    """One message that no version of Turnmill writes."""
    headers = {"task": ANSWER_TASK, "id": str(uuid4()), "lang": "py"}
    fields = {"turn_id": uuid4().hex, "lane": "interactive", "model": "m"}
    hint = [[], fields, {}]
    kinds: list[Callable[[], None]] = [
        lambda: sender.send(None, headers),
        lambda: sender.send({"task": ANSWER_TASK, "args": [], "kwargs": {}}, {}),
        lambda: sender.send({}, headers),
        lambda: sender.send([], headers),
        lambda: sender.send([1, 2, 3], headers),
        lambda: sender.send([[], {"turn_id": chance.choice([None, 7, [], "x" * 50])}, {}], headers),
        lambda: sender.send(hint, [1, 2]),
        lambda: sender.send(hint, None),
        lambda: sender.send(hint, "text"),
        lambda: sender.send(hint, headers | {"id": chance.choice([None, 7, [], {}])}),
        lambda: sender.send(hint, headers | {"task": chance.choice([None, 7, [], "celery.chord"])}),
        lambda: sender.send(hint, {"task": "celery.backend_cleanup", "id": str(uuid4())}),
        lambda: sender.send(hint, headers, "application/x-python-serialize"),
        lambda: sender.send(hint, headers, "application/x-yaml"),
        lambda: sender.send(hint, headers, None, None),
        lambda: sender.send(hint, headers, "application/json", "no-such-encoding"),
        lambda: sender.send(hint, headers | {"compression": chance.choice(["zlib", "nope"])}),
        lambda: sender.send([[], fields | {"padding": "x" * 200_000}, {}], headers),
        lambda: sender.send(b"[" * 100_000, headers),
        lambda: sender.send(chance.randbytes(chance.randrange(200)), headers),
        lambda: sender.send(
            hint, headers | {"eta": chance.choice([FAR, "never", 7]), "expires": "yesterday"}
        ),
        lambda: sender.send(
            [[], fields, {"callbacks": [7], "chord": {"a": 1}, "errbacks": "x"}], headers
        ),
        lambda: sender.raw(chance.randbytes(chance.randrange(200))),
        lambda: sender.raw(json.dumps(chance.choice([None, 7, "x", [], {}, [{}]])).encode()),
        lambda: sender.raw(
            json.dumps(
                {"properties": chance.choice([None, 3, [], {}, {"delivery_tag": []}])}
            ).encode()
        ),
        lambda: sender.raw(b"[" * 100_000),
    ]
    chance.choice(kinds)()


def test_a_worker_answers_turns_whatever_else_lies_in_its_queue(
    system: Any, sender: Sender, eventually: Eventually
) -> None:
    system.start("relay")
    worker = system.start_worker()
    chance = random.Random(17)
    accepted = []
    for number in range(FOREIGN_COUNT):
        foreign_message(chance, sender)
        if number % 5 == 0:
            requests = [system.request(f"turn {number}")]
            accepted += accept_many(system.database, requests)
    system.wait_until_settled(60)
    system.assert_answered_once_and_in_order(accepted)
    assert worker.is_running
    assert worker.says("hint.foreign_dropped")
    assert not worker.says("Traceback"), worker.log.read_text()[-3000:]
    # Not even a reconnect: those cost every turn in work its hint.
    assert worker.log.read_text().count("worker.consuming") == 1


def test_times_that_a_hint_asks_for_do_not_delay_it(system: Any, sender: Sender) -> None:
    """200 hints with a far ETA filled a lane's places for days."""
    system.start_worker(TURNMILL_WORKER__HINT_LOST_AFTER_S="3600")
    for _ in range(200):
        sender.hint(uuid4(), eta=FAR)
    turn = accept(system.database, system.request("soon"))
    sender.hint(turn.turn_id, eta=FAR, expires="2001-01-01T00:00:00+00:00")
    system.wait_until_settled(20)


def test_arguments_of_a_later_version_are_ignored(system: Any, sender: Sender) -> None:
    system.start_worker(TURNMILL_WORKER__HINT_LOST_AFTER_S="3600")
    turn = accept(system.database, system.request("from the future"))
    sender.hint(turn.turn_id, fields={"shard": 3, "trace": {"a": [1]}})
    system.wait_until_settled(20)


def test_a_task_of_a_later_version_is_handed_back_and_told(
    system: Any, sender: Sender, eventually: Eventually
) -> None:
    worker = system.start_worker()
    sender.hint(uuid4(), task="turnmill.turn.answer_better")
    eventually(lambda: worker.says("hint.unknown_task"), 20)
    eventually(lambda: worker.log.read_text().count("hint.unknown_task") > 1, 20)
    turn = accept(system.database, system.request("mine"))
    sender.hint(turn.turn_id)
    system.wait_until_settled(20)
    # Handed back with a pause, not in a circle.
    assert worker.log.read_text().count("hint.unknown_task") < 60


def test_a_worker_whose_queue_is_deleted_consumes_again_within_seconds(
    system: Any, sender: Sender
) -> None:
    """RabbitMQ cancels the consumers of a queue that is deleted."""
    system.start_worker(TURNMILL_WORKER__HINT_LOST_AFTER_S="1")
    system.start("relay", TURNMILL_WORKER__HINT_LOST_AFTER_S="1")
    sender.delete_queue()
    accept(system.database, system.request("after that"))
    system.wait_until_settled(20)


COMMANDS: dict[str, dict[str, Any]] = {
    "cancel_consumer": {"queue": "QUEUE"},
    "add_consumer": {"queue": "elsewhere"},
    "shutdown": {},
    "pool_shrink": {"n": 8},
    "pool_grow": {"n": 800},
    "pool_restart": {},
    "autoscale": {"max": 0, "min": 0},
    "rate_limit": {"task_name": ANSWER_TASK, "rate_limit": "1/h"},
    "time_limit": {"task_name": ANSWER_TASK, "hard": 1},
    "revoke": {"task_id": "x", "terminate": True},
    "terminate": {"signal": "KILL", "task_id": "x"},
    "election": {"id": "1", "topic": "task", "action": {}},
    "hello": {"from_node": "x@y", "revoked": {"x": 1}},
    "conf": {},
    "report": {},
}


def test_remote_control_looks_and_changes_nothing(
    system: Any, sender: Sender, eventually: Eventually
) -> None:
    worker = system.start_worker()
    app = Celery("stranger", set_as_current=False)
    app.conf.update(celery_settings(system.settings.broker))
    assert app.control.ping(timeout=3)
    for name, arguments in COMMANDS.items():
        arguments = {k: sender.queue if v == "QUEUE" else v for k, v in arguments.items()}
        replies = app.control.broadcast(name, arguments=arguments, reply=True, timeout=3, limit=1)
        ((reply,),) = (reply.values() for reply in replies)
        assert "do not obey" in reply["error"], name
    assert app.control.ping(timeout=3)
    turn = accept(system.database, system.request("still here"))
    sender.hint(turn.turn_id)
    system.wait_until_settled(20)
    assert worker.is_running


def test_every_command_of_celery_is_allowed_or_refused_on_purpose() -> None:
    """A command that a later Celery brings is refused until somebody has looked at it."""
    assert set(Panel.data) >= ALLOWED
    assert not ALLOWED & set(COMMANDS)


def test_what_a_worker_tells_of_its_broker_has_no_passwords(
    make_system: Callable[..., Any], database_url: str, valkey_url: str
) -> None:
    """Celery's own answer to `stats`, which Flower shows, has alternates and transport options."""
    secret = "-".join(("sesame", "4711"))
    elsewhere = f"redis://:{secret}@127.0.0.1:1/0"
    system = make_system(database_url, valkey_url)
    system.start_worker(TURNMILL_BROKER__URL=f"{valkey_url};{elsewhere}")
    app = Celery("stranger", set_as_current=False)
    app.conf.update(celery_settings(system.settings.broker))
    (stats,) = (app.control.inspect(timeout=3).stats() or {}).values()
    assert set(stats["broker"]) == SHOWN_OF_BROKER
    own = urlsplit(valkey_url).password or secret
    assert secret not in str(stats)
    assert own not in str(stats)


def test_secrets_of_sentinels_are_left_out_of_stats() -> None:
    answer = {
        "pid": 7,
        "broker": {
            "hostname": "h", "userid": "u", "alternates": ["u:sesame@other"],
            "transport_options": {"sentinel_kwargs": {"password": "sesame"}},
        },
    }  # fmt: skip
    assert _without_secrets(lambda state: answer)(None) == {"pid": 7, "broker": {"hostname": "h"}}
