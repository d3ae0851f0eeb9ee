"""Tell hints from foreign messages before Celery sees a message.

Anybody who reaches the broker can write to a lane's queue. Celery acts on what a message's headers
and body say (`eta`, `expires`, callbacks, its built-in tasks), and some malformed messages end its
process. So a hint is read here, and a message that this module wrote takes its place.
"""

import json
from typing import Any
from uuid import UUID

from kombu import Message

from turnmill.schemas.routes import ANSWER_TASK, SEND_TASK
from turnmill.workers.vendor.kombu import set_payload

#: What a hint for each task names: the row that it is about, and what people who watch Flower see.
_ARGUMENTS = {ANSWER_TASK: ("turn_id", "lane", "model"), SEND_TASK: ("delivery_id", "channel")}

#: The names of tasks of any version of Turnmill begin so.
_OUR_TASKS = "turnmill."

#: A hint has about 300 bytes. A later version's may have more.
MAX_HINT_BYTES = 16_384
_MAX_NAME = 200


class NotAHint(Exception):
    """A message that no version of Turnmill wrote. The reason never quotes the message."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UnknownTask(Exception):
    """A hint for a task that this version does not have."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def read_hint(message: Message, task: str = ANSWER_TASK) -> None:
    """Reduce a kombu message to the hint it carries, and to the headers that we choose.

    `task` is the one that this process runs. ETA, expiry, callbacks and arguments that this
    version does not know are gone afterwards.

    Raises:
        NotAHint: nothing of ours.
        UnknownTask: ours, of another version.
    """
    headers = message.headers
    if not isinstance(headers, dict):
        raise NotAHint("headers")
    _check_task(headers.get("task"), task)
    hint = _hint(message, _ARGUMENTS[task])
    name = str(_id(headers.get("id"), "id") or UUID(next(iter(hint.values()))))
    message.headers = {
        "lang": "py",
        "task": task,
        "id": name,
        "root_id": name,
        "argsrepr": "()",
        "kwargsrepr": repr(hint),
    }
    payload = [[], hint, {}]
    message.body = json.dumps(payload).encode()
    set_payload(message, payload)
    message.content_type, message.content_encoding = "application/json", "utf-8"
    message.properties = {
        "delivery_tag": message.delivery_tag,
        "delivery_info": message.delivery_info,
        "delivery_mode": 2,
        "priority": 0,
        "body_encoding": "base64",
        "correlation_id": name,
    }


def checked(message_class: type) -> type:
    """Derive a kombu message class that refuses what its constructor would stumble over.

    It never decompresses: a hint is not compressed, and a small body may be a bomb.
    """

    class CheckedMessage(message_class):  # type: ignore[misc]
        def __init__(self, payload: Any, channel: Any = None, **options: object) -> None:
            if isinstance(getattr(payload, "properties", None), dict):
                _refuse_compression(payload.properties.get("application_headers") or {})
            else:
                _check_payload(payload, channel)
            try:
                super().__init__(payload, channel=channel, **options)
            except (ValueError, TypeError, LookupError, AttributeError) as error:
                raise NotAHint("payload") from error

    return CheckedMessage


def _check_payload(payload: Any, channel: Any) -> None:
    """A message of kombu's virtual transports is JSON that its sender composed."""
    try:
        properties = payload["properties"]
        delivery_info = properties["delivery_info"]
        is_sound = (
            isinstance(properties["delivery_tag"], str)
            and isinstance(payload.get("body"), str)
            and delivery_info["routing_key"] in channel.active_queues
        )
        _refuse_compression(payload.get("headers") or {})
    except (TypeError, LookupError, AttributeError) as error:
        raise NotAHint("payload") from error
    if not is_sound:
        raise NotAHint("payload")
    delivery_info["exchange"] = ""


def _refuse_compression(headers: Any) -> None:
    if headers.get("compression"):
        raise NotAHint("compression")


def _check_task(name: object, task: str) -> None:
    if name == task:
        return
    if isinstance(name, str) and name.startswith(_OUR_TASKS) and len(name) <= _MAX_NAME:
        raise UnknownTask(name)
    raise NotAHint("task")


def _hint(message: Message, names: tuple[str, ...]) -> dict[str, str]:
    """The arguments: the first is an id, the others any text."""
    body = message.body
    if message.content_type != "application/json" or not isinstance(body, (bytes, str, memoryview)):
        raise NotAHint("content_type")
    if len(body) > MAX_HINT_BYTES:
        raise NotAHint("size")
    try:
        _, fields, *_ = json.loads(bytes(body) if isinstance(body, memoryview) else body)
        first, *others = (fields.get(name, "") for name in names)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise NotAHint("body") from error
    uuid = _id(first, names[0])
    if uuid is None or not all(isinstance(other, str) for other in others):
        raise NotAHint("arguments")
    return dict(zip(names, (uuid.hex, *others), strict=True))


def _id(text: object, name: str) -> UUID | None:
    if not isinstance(text, str):
        return None
    try:
        return UUID(text)
    except ValueError:
        raise NotAHint(name) from None
