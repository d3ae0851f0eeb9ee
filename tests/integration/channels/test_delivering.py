"""The delivery worker, as a process on real brokers: what it sends, again or never, in order."""

import json
import signal
from collections.abc import Callable
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from psycopg.types.json import Jsonb

from tests.adapting import Reply
from tests.delivering import SECRET
from turnmill.infra.mocks.telegram.api import TOKEN as TELEGRAM_TOKEN
from turnmill.infra.mocks.telegram.api import TelegramAPI
from turnmill.producer.accept import accept_many
from turnmill.schemas.channels.sections.base import SecretReference
from turnmill.schemas.channels.sections.webhook import WebhookSection
from turnmill.schemas.errors import ChannelUnavailable
from turnmill.schemas.ids import new_id
from turnmill.schemas.settings import DeliverySettings
from turnmill.workers.delivery.webhook import WebhookDelivery

Eventually = Callable[..., None]
Make = Callable[[], Any]

#: What does not depend on the broker.
on_one_broker = pytest.mark.parametrize("broker_url", ["valkey"], indirect=True)


def test_a_reply_and_a_notice_are_posted_signed_once_and_in_order(
    channels: Any, make_receiver: Make, eventually: Eventually
) -> None:
    receiver = make_receiver()
    channels.configure_webhook("desk", receiver)
    system = channels.system
    for command in ("relay", "worker"):
        system.start(command)
    conversation = new_id()
    requests = [system.request(f"turn {n}", conversation_id=conversation) for n in range(3)]
    for turn in accept_many(system.database, requests):
        channels.owe(turn, "desk", room="7")
    worker = channels.deliver(eventually)
    eventually(lambda: channels.states("desk") == ["sent"] * 3)
    replies = [payload["data"] for _, payload in receiver.received]
    assert [reply["text"].endswith(f"turn {n}") for n, reply in enumerate(replies)] == [True] * 3
    assert {reply["target"]["room"] for reply in replies} == {"7"}
    assert all(reply["is_reply"] for reply in replies)
    worker.send(signal.SIGTERM)
    assert worker.wait(10) == 0
    assert not worker.says("turn 0"), "no reply is logged"
    assert system.database.run("SELECT 1 FROM outbox") == []


@on_one_broker
@pytest.mark.parametrize("order", [500, 503, "dies", "silent"])
def test_a_platform_in_trouble_gets_the_message_again(
    channels: Any, make_receiver: Make, eventually: Eventually, order: Any
) -> None:
    receiver = make_receiver()
    receiver.orders = [order, order]
    channels.configure_webhook("desk", receiver)
    channels.system.start("relay")
    channels.deliver(eventually)
    channels.notice("desk", "hello")
    eventually(channels.all_sent)
    assert (receiver.texts, len(receiver.received)) == (["hello"], 3)
    (row,) = channels.database.run("SELECT failures, attempt FROM deliveries")
    assert (row.failures, row.attempt) == (2, 3)


@on_one_broker
def test_a_pause_that_the_platform_asks_for_is_kept_and_counts_as_no_failure(
    channels: Any, make_receiver: Make, eventually: Eventually
) -> None:
    receiver = make_receiver()
    receiver.orders, receiver.headers = [429], {"Retry-After": "1"}
    channels.configure_webhook("desk", receiver)
    channels.system.start("relay")
    channels.deliver(eventually)
    channels.notice("desk", "hello")
    eventually(channels.all_sent)
    (row,) = channels.database.run(
        "SELECT failures, attempt, settled_at - created_at >= interval '1 s' AS has_waited "
        "FROM deliveries"
    )
    assert (row.failures, row.attempt, row.has_waited) == (0, 2, True)


@pytest.mark.parametrize(
    ("status", "asked", "kept_s", "counts"),
    [(429, "0", 1.0, False), (429, "99999999", 3600.0, False), (503, "120", 120.0, True)],
)
def test_only_a_limit_uses_up_no_attempt_and_every_pause_is_kept(
    make_receiver: Make,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    asked: str,
    kept_s: float,
    counts: bool,
) -> None:
    receiver = make_receiver()
    receiver.orders, receiver.headers = [status], {"Retry-After": asked}
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    section = WebhookSection(
        kind="webhook", bot="bot", secret=SecretReference(env="WEBHOOK_SECRET"), url=receiver.url
    )
    reply = Reply(WebhookDelivery("desk", section, DeliverySettings()))
    with pytest.raises(ChannelUnavailable) as answered:
        reply.send("hello")
    assert (answered.value.retry_after_s is None) == counts
    with pytest.raises(ChannelUnavailable) as closed:
        reply.send("hello")
    assert kept_s - 5 < (closed.value.retry_after_s or 0.0) <= kept_s
    assert len(receiver.received) == 1


@on_one_broker
def test_a_refusal_is_final_says_what_to_do_and_holds_up_nothing(
    channels: Any, make_receiver: Make, eventually: Eventually
) -> None:
    receiver = make_receiver()
    receiver.orders = [403]
    channels.configure_webhook("desk", receiver)
    conversation = channels.notice("desk", "refused")
    channels.notice("desk", "taken", conversation)
    channels.system.start("relay")
    channels.deliver(eventually)
    eventually(lambda: channels.states("desk") == ["failed", "sent"])
    (row,) = channels.database.run("SELECT * FROM deliveries WHERE state = 'failed'")
    assert (row.error_code, row.failures) == ("http_403", 1)
    assert "turnmill.toml" in row.error_message


@on_one_broker
def test_a_delivery_fails_after_its_attempts(
    channels: Any, make_receiver: Make, eventually: Eventually
) -> None:
    receiver = make_receiver()
    receiver.orders = [500, 500, 500]
    channels.configure_webhook("desk", receiver)
    channels.system.start("relay")
    channels.deliver(eventually, TURNMILL_DELIVERY__MAX_ATTEMPTS="2")
    channels.notice("desk", "hello")
    eventually(lambda: channels.states("desk") == ["failed"])
    (row,) = channels.database.run("SELECT * FROM deliveries")
    assert (row.error_code, len(receiver.received)) == ("attempts_used_up", 2)
    assert row.failures == 2, "the last one too"


def test_a_slow_channel_holds_up_no_other_ones_deliveries(
    channels: Any, make_receiver: Make, eventually: Eventually
) -> None:
    slow, quick = make_receiver(), make_receiver()
    slow.open.clear()
    channels.configure_webhook("slow", slow)
    channels.configure_webhook("quick", quick)
    channels.system.start("relay")
    wait = {"TURNMILL_DELIVERY__TIMEOUT_S": "60", "TURNMILL_DELIVERY__LEASE_S": "120"}
    channels.deliver(eventually, TURNMILL_DELIVERY__CONCURRENCY="2", **wait)
    for n in range(6):
        channels.notice("slow", f"slow {n}")
    eventually(lambda: len(slow.received) == 2)
    for n in range(6):
        channels.notice("quick", f"quick {n}")
    eventually(lambda: channels.states("quick") == ["sent"] * 6)
    assert len(slow.received) == 2
    slow.open.set()
    eventually(channels.all_sent)


@on_one_broker
def test_a_killed_workers_delivery_is_sent_by_another_one(
    channels: Any, make_receiver: Make, eventually: Eventually
) -> None:
    receiver = make_receiver()
    receiver.open.clear()
    channels.configure_webhook("desk", receiver)
    channels.system.start("relay")
    victim = channels.deliver(eventually)
    channels.notice("desk", "hello")
    eventually(lambda: receiver.received)
    victim.kill()
    receiver.open.set()
    channels.deliver(eventually)
    eventually(channels.all_sent)
    assert receiver.texts == ["hello"], "the same id: the receiver drops it"


@on_one_broker
def test_what_an_older_release_left_pending_is_found(
    channels: Any, make_receiver: Make, eventually: Eventually
) -> None:
    receiver = make_receiver()
    channels.configure_webhook("desk", receiver)
    system = channels.system
    (turn,) = accept_many(system.database, [system.request("hello")])
    channels.owe(turn, "desk")
    system.database.run("DELETE FROM outbox")
    system.database.run("UPDATE turns SET state = 'failed', error_code = 'deadline_exceeded'")
    system.start("relay")
    channels.deliver(eventually)
    eventually(channels.all_sent)
    assert receiver.texts == ["Sorry, this took too long, and I gave up. Please ask again."]


def test_a_stopping_worker_lets_its_deliveries_finish(
    channels: Any, make_receiver: Make, eventually: Eventually
) -> None:
    receiver = make_receiver()
    receiver.open.clear()
    channels.configure_webhook("desk", receiver)
    channels.system.start("relay")
    wait = {"TURNMILL_DELIVERY__TIMEOUT_S": "30", "TURNMILL_DELIVERY__LEASE_S": "60"}
    worker = channels.deliver(eventually, **wait)
    channels.notice("desk", "hello")
    eventually(lambda: receiver.received)
    worker.send(signal.SIGTERM)
    eventually(lambda: worker.says("drain.consuming_stopped"))
    receiver.open.set()
    assert worker.wait(15) == 0
    assert (channels.all_sent(), len(receiver.received)) == (True, 1)


@on_one_broker
def test_a_stopping_worker_gives_back_a_file_though_a_delivery_hangs(
    channels: Any, make_receiver: Make, eventually: Eventually
) -> None:
    receiver, system = make_receiver(), channels.system
    receiver.open.clear()
    channels.configure_webhook("desk", receiver)
    token = {"env": "CHAT_TOKEN"}
    channels.environment["CHAT_TOKEN"] = TELEGRAM_TOKEN
    with TelegramAPI() as telegram:
        fields = {"bot_token": token, "secret_token": token, "api_url": telegram.url}
        channels.configure("chat", kind="telegram", **fields)
        held = telegram.order("getFile", "before")
        system.start("relay")
        channels.notice("desk", "hello")
        source = {"channel": "chat", "kind": "audio", "ref": "V"}
        system.database.run(
            "INSERT INTO files (id, tenant_id, name, purpose, bytes, sha256, mime, source, "
            "fetch_at) VALUES (%s, %s, 'V', 'message', 0, '', '', %s, clock_timestamp())",
            (new_id(), system.tenant_id, Jsonb(source)),
        )
        wait = {"TURNMILL_DELIVERY__TIMEOUT_S": "30", "TURNMILL_DELIVERY__LEASE_S": "60"}
        worker = channels.deliver(eventually, **wait, TURNMILL_DELIVERY__DRAIN_S="0.1")
        eventually(lambda: receiver.received and held.reached.is_set())
        worker.send(signal.SIGTERM)
        worker.wait(15)
        assert worker.says("worker.drain_deadline_exceeded")
    (row,) = system.database.run(
        "SELECT fetches, fetch_at <= clock_timestamp() AS is_due FROM files"
    )
    assert (row.fetches, row.is_due) == (0, True)


@on_one_broker
def test_a_channel_without_its_secret_holds_up_no_other_one(
    channels: Any, make_receiver: Make, eventually: Eventually
) -> None:
    receiver = make_receiver()
    channels.configure("broken", kind="webhook", secret={"env": "NOWHERE"}, url=receiver.url)
    channels.configure_webhook("desk", receiver)
    channels.system.start("relay")
    worker = channels.deliver(eventually)
    channels.notice("desk", "hello")
    eventually(lambda: channels.states("desk") == ["sent"])
    assert worker.says("channel.unusable")


@on_one_broker
def test_the_worker_says_how_it_is_and_what_it_did(
    channels: Any, make_receiver: Make, eventually: Eventually
) -> None:
    channels.configure_webhook("desk", make_receiver())
    channels.system.start("relay")
    worker = channels.deliver(eventually)
    channels.notice("desk", "hello")
    eventually(channels.all_sent)
    logged = next(line for line in worker.log.read_text().splitlines() if "metrics.started" in line)
    url = f"http://127.0.0.1:{json.loads(logged)['port']}"
    assert urlopen(f"{url}/live").status == 200
    eventually(lambda: _status(f"{url}/ready") == 200)
    figures = urlopen(f"{url}/metrics").read().decode()
    wanted = 'turnmill_delivery_attempts_total{channel="desk",outcome="sent"} 1.0'
    eventually(lambda: wanted in urlopen(f"{url}/metrics").read().decode())
    assert "hello" not in figures


def _status(url: str) -> int:
    try:
        return int(urlopen(url).status)
    except HTTPError as error:
        return error.code
