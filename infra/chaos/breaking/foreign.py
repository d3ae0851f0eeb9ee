"""Messages on our queues that are not ours, or not as ours are."""

import random
from collections.abc import Callable
from uuid import uuid4

from kombu import Connection

from turnmill.schemas.routes import ANSWER_TASK

_PAIR: list[object] = [[], {}]
_EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def _headers(task: str, **others: object) -> dict[str, object]:
    """Those of Celery's protocol 2, https://docs.celeryq.dev/en/stable/internals/protocol.html."""
    return {"lang": "py", "task": task, "id": uuid4().hex, "root_id": None, **others}


#: Body and headers of one message each.
_MESSAGES: tuple[Callable[[], tuple[object, dict[str, object]]], ...] = (
    lambda: (None, {}),
    lambda: (None, _headers(ANSWER_TASK)),
    lambda: ({"turn": "none"}, _headers(ANSWER_TASK)),
    lambda: ("not a hint", {}),
    lambda: ([*_PAIR, _EMBED], _headers(ANSWER_TASK)),
    lambda: ([["not a turn"], {}, _EMBED], _headers(ANSWER_TASK)),
    lambda: ([*_PAIR, _EMBED], _headers("somebody.elses.task")),
    lambda: ([*_PAIR, _EMBED], _headers("celery.backend_cleanup")),
    lambda: ([*_PAIR, _EMBED], _headers(ANSWER_TASK, eta="2999-01-01T00:00:00+00:00")),
    lambda: ([*_PAIR, _EMBED], _headers(ANSWER_TASK, eta="yesterday")),
    lambda: ([*_PAIR, _EMBED], _headers(ANSWER_TASK, retries="many", timelimit="long")),
)


def publish_foreign(broker_url: str, queue: str, count: int, chance: random.Random) -> None:
    """Publish messages that no relay wrote to a queue that exists.

    Raises what kombu raises when the broker is away.
    """
    with Connection(broker_url, connect_timeout=3) as link, link.channel() as channel:
        producer = link.Producer(channel)
        for _ in range(count):
            body, headers = chance.choice(_MESSAGES)()
            # To the default exchange, which every queue is bound to by its name.
            producer.publish(body, routing_key=queue, headers=headers, serializer="json")
