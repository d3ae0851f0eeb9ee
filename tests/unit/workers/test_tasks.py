"""What Celery does with the task's rejections."""

import logging
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from celery.app.trace import build_tracer

from turnmill.schemas.routes import ANSWER_TASK
from turnmill.workers.consumer.tasks import register_tasks


@pytest.fixture
def trace() -> Any:
    """Run the task as a worker whose engine is away does, without a broker."""
    app = Celery(broker="memory://", set_as_current=False)
    away: Any = SimpleNamespace(availability=SimpleNamespace(wait=lambda: False))
    register_tasks(app, away, None)  # type: ignore[arg-type]
    app.finalize()
    return build_tracer(ANSWER_TASK, app.tasks[ANSWER_TASK], app=app)


def test_a_hint_that_is_handed_back_leaves_no_traceback_in_the_log(
    trace: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        answer = trace(uuid4().hex, (uuid4().hex,), {}, {})
    assert answer.info.state == "REJECTED"
    assert [record for record in caplog.records if record.exc_info] == []
    assert "rejected" not in caplog.text.lower()
    assert "reject requeue" not in caplog.text.lower()
