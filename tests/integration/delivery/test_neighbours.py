"""Models and deployments that share a broker take nothing from each other.

With real brokers and processes. No hint is published twice here: one that the wrong worker took
would be missed, and its turn never answered.
"""

from collections.abc import Callable
from typing import Any

import pytest
from kombu import Connection, Queue

from turnmill.infra.migrations import upgrade
from turnmill.producer.accept import accept_many
from turnmill.producer.relay import publisher as publisher_module
from turnmill.producer.relay.outbox import TAKE
from turnmill.producer.relay.publisher import Publisher
from turnmill.producer.tenants import save_bot
from turnmill.schemas.broker import old_queues
from turnmill.schemas.routes import old_queue_name, queue_name
from turnmill.schemas.turns import GenerationParams, Lane, TurnState

Eventually = Callable[..., None]
ONCE = {"TURNMILL_WORKER__HINT_LOST_AFTER_S": "3600"}


def submit(system: Any, *bots: str, count: int = 12) -> None:
    requests = [
        system.request(f"turn {n}", lane=lane).model_copy(update={"bot": bot})
        for n in range(count)
        for bot in bots
        for lane in (Lane.INTERACTIVE, Lane.BATCH)
    ]
    accept_many(system.database, requests)


def models_that_answered(system: Any) -> set[tuple[str, str]]:
    """The models of turns, each with the model of the worker that answered."""
    rows = system.database.run(
        "SELECT t.model, w.model AS by FROM turns t JOIN worker_liveness w ON w.id = t.worker_id"
    )
    return {(row.model, row.by) for row in rows}


@pytest.mark.parametrize(
    "models", [("qwen2.5:7b", "qwen2.5-7b"), ("客服-小", "法务-大"), ("m" * 300, "m" * 301)],
    ids=["punctuation", "no ASCII", "long"],
)  # fmt: skip
def test_turns_are_answered_by_their_own_model_however_alike_the_names(
    system: Any, models: tuple[str, str]
) -> None:
    bots = {f"bot {n}": model for n, model in enumerate(models)}
    for bot, model in bots.items():
        save_bot(system.database, system.tenant_id, bot, model, "", GenerationParams())
    system.start("relay", **ONCE)
    for model in models:
        system.start_worker(TURNMILL_ENGINE__SERVED_NAME=model, **ONCE)
    submit(system, *bots)
    system.wait_until_settled()
    assert system.count(f"state = '{TurnState.COMPLETED}'") == system.count("true")
    assert models_that_answered(system) == {(model, model) for model in models}


def test_two_deployments_on_one_broker_answer_their_own_turns(
    system: Any, make_system: Callable[..., Any], empty_database_url: str
) -> None:
    upgrade(empty_database_url)
    other = make_system(empty_database_url, system.settings.broker.url.get_secret_value())
    assert system.deployment != other.deployment
    model = system.settings.engine.model_name
    for each in (system, other):
        each.start("relay", **ONCE)
        each.start_worker(**ONCE)
    for each in (system, other):
        submit(each, model)
    for each in (system, other):
        each.wait_until_settled()
        assert each.count(f"state = '{TurnState.COMPLETED}'") == 24


def test_model_whose_queue_the_broker_refuses_holds_up_no_other(
    make_system: Callable[..., Any],
    database_url: str,
    rabbitmq_vhost_url: str,
    eventually: Eventually,
) -> None:
    system = make_system(database_url, rabbitmq_vhost_url)
    model = system.settings.engine.model_name
    save_bot(system.database, system.tenant_id, "bad", "bad", "", GenerationParams())
    with Connection(rabbitmq_vhost_url) as connection:
        for lane in (Lane.INTERACTIVE, Lane.BATCH):
            name = queue_name(lane, "bad", system.deployment)
            Queue(name, routing_key=name)(connection.channel()).declare()
    submit(system, "bad", model)
    relay = system.start("relay")
    system.start_worker(**ONCE)
    eventually(lambda: system.count(f"state = 'completed' AND model = '{model}'") == 24, 60)
    assert system.count("state = 'queued' AND model = 'bad'") == 24
    assert relay.says("relay.queue_refused")


def test_worker_answers_turns_whose_hints_a_relay_of_the_previous_release_published(
    system: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = system.settings.engine.model_name
    system.database.run("UPDATE deployment SET has_old_queues = true")
    worker = system.start_worker(**ONCE)
    submit(system, model)
    monkeypatch.setattr(
        publisher_module, "queue_name", lambda lane, model, _: old_queue_name(lane, model)
    )
    monkeypatch.setattr(
        publisher_module,
        "hint_queue",
        lambda broker, lane, model, _: old_queues(broker, [Lane(lane)], model)[0],
    )
    hints = system.database.run(
        TAKE,
        {
            "window": 512,
            "batch_size": 512,
            "lanes": [lane.value for lane in Lane],
            "warm_lanes": [],
            "warm_s": 0,
            "ttl_s": 0,
        },
    )
    publisher = Publisher(system.settings)
    publisher.publish(hints)
    publisher.close()
    system.wait_until_settled()
    assert worker.is_running
    assert system.count(f"state = '{TurnState.COMPLETED}'") == len(hints) == 24
