"""A hint is read once: what was read of it is what Celery gets."""

import json

import pytest
from kombu.message import Message

from turnmill.schemas.ids import new_id
from turnmill.schemas.routes import ANSWER_TASK
from turnmill.workers.consumer.hints import read_hint


def test_a_hint_is_not_decoded_again_for_celery(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"turn_id": new_id().hex, "lane": "batch", "model": "m"}
    message = Message(
        body=json.dumps([[7], fields | {"later": 1}, {"callbacks": [7]}]),
        headers={"task": ANSWER_TASK, "id": str(new_id())},
        content_type="application/json",
        content_encoding="utf-8",
    )
    read_hint(message)
    monkeypatch.delattr("kombu.message.loads")
    assert message.payload == [[], fields, {}] == json.loads(message.body)
