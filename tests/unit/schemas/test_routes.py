"""Names of queues: nothing that differs shares one."""

from itertools import combinations

import pytest

from turnmill.schemas.ids import new_id
from turnmill.schemas.routes import lane_of, own_queue_name, queue_name
from turnmill.schemas.turns import Lane

MODELS = [
    "qwen2.5:7b", "qwen2.5-7b", "qwen2.5=3A7b", "qwen2.5%3A7b", "org/m", "org-m", "org=2Fm",
    "客服-小", "法务-大", "a b", "a-b", "a.b", "A.b", "é", "e\u0301", "x" * 150, "x" * 151,
    "x" * 300, "x" * 301, "小" * 300, "小" * 299 + "大", "",
]  # fmt: skip


def test_models_and_deployments_that_differ_never_share_a_queue() -> None:
    names = [queue_name(Lane.BATCH, model, each) for model in MODELS for each in ("d1", "d2")]
    assert all(one != other for one, other in combinations(names, 2))


@pytest.mark.parametrize("model", MODELS)
def test_name_of_a_queue_is_short_printable_and_tells_its_lane(model: str) -> None:
    """RabbitMQ: at most 255 bytes. https://www.rabbitmq.com/docs/queues#names"""
    for lane in Lane:
        for name in (queue_name(lane, model, "d"), own_queue_name(lane, model, "d", new_id())):
            assert len(name) <= 255
            assert name.isascii()
            assert name.isprintable()
            assert "%" not in name, "logs and shells give it a meaning"
            assert lane_of(name) is lane


def test_usual_name_of_a_model_is_readable_in_its_queue() -> None:
    name = queue_name(Lane.INTERACTIVE, "smollm2-135m-instruct", "1c9f03ab")
    assert name == "turns.interactive.1c9f03ab.smollm2-135m-instruct"
