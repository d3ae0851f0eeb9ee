"""A bot that answers voice by voice: the text in any case, and a sound beside it, at most once."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event
from typing import Any

import pytest
from psycopg.types.json import Jsonb
from structlog.testing import capture_logs

from tests.adapting import Killed, Notes, Reply
from tests.delivering import Asked
from tests.integration.channels.platforms.test_sources import save
from turnmill.infra.mocks import whatsapp
from turnmill.infra.mocks.slack.api import TOKEN as SLACK_TOKEN
from turnmill.infra.mocks.slack.api import SlackAPI
from turnmill.infra.mocks.telegram.api import TOKEN, TelegramAPI
from turnmill.infra.mocks.whatsapp import WhatsAppAPI
from turnmill.schemas.channels.sections.base import SecretReference
from turnmill.schemas.channels.sections.slack import SlackSection
from turnmill.schemas.channels.sections.telegram import TelegramSection
from turnmill.schemas.channels.sections.whatsapp import WhatsAppSection
from turnmill.schemas.ids import new_id
from turnmill.schemas.settings import DeliverySettings
from turnmill.workers.delivery.base import Job
from turnmill.workers.delivery.claims import Holder, claim_delivery
from turnmill.workers.delivery.slack.adapter import SlackDelivery
from turnmill.workers.delivery.telegram.adapter import TelegramDelivery
from turnmill.workers.delivery.voice import MAX_SPOKEN, Speaker, spoken_text
from turnmill.workers.delivery.whatsapp import WhatsAppDelivery
from turnmill.workers.turn.abort import Interrupted

USER = 4711
LEASE_S = 30.0
SOUND = b"OggS" + bytes(24) + b"OpusHead"


class Voice:
    """Says what it was given, once for each text."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def speak(self, text: str, until: float) -> bytes | None:
        self.texts.append(text)
        return None if "订单" in text else SOUND


@pytest.fixture
def api() -> Iterator[TelegramAPI]:
    with TelegramAPI() as api:
        yield api


@pytest.fixture
def reply(api: TelegramAPI, monkeypatch: pytest.MonkeyPatch) -> Reply:
    monkeypatch.setenv("TOKEN", TOKEN)
    secret = SecretReference(env="TOKEN")
    section = TelegramSection(
        kind="telegram", bot="bot", bot_token=secret, secret_token=secret, api_url=api.url
    )
    delivery = TelegramDelivery("tg", section, DeliverySettings(timeout_s=1, lease_s=2))
    reply = Reply(delivery, chat=str(USER), type="private", message="1")
    reply.job = replace(reply.job, text="It comes **today**.", is_spoken=True)
    return reply


def test_a_reply_is_spoken_once_its_text_is_there(api: TelegramAPI, reply: Reply) -> None:
    voice = Voice()
    speaker = Speaker(voice, LEASE_S)
    for _ in range(2):
        assert reply.delivery.send(reply.job, reply.notes)
        speaker.speak(reply.delivery, reply.job, reply.notes)
    assert api.texts == ["It comes today."]
    assert api.voices == [(USER, SOUND)]
    assert [name for name, _ in api.calls] == ["sendMessage", "sendVoice"]
    assert voice.texts == ["It comes today."]


def test_what_is_not_asked_for_or_cannot_be_spoken_is_only_read(
    api: TelegramAPI, reply: Reply
) -> None:
    voice, job = Voice(), reply.job
    silent = replace(job, is_spoken=False)
    for each in (silent, replace(job, text="订单"), replace(job, text="a " * MAX_SPOKEN)):
        Speaker(voice, LEASE_S).speak(reply.delivery, each, Notes())
    Speaker(None, LEASE_S).speak(reply.delivery, job, Notes())
    assert api.voices == []
    assert voice.texts == ["订单"]


def test_a_voice_that_breaks_fails_no_delivery(api: TelegramAPI, reply: Reply) -> None:
    class Broken:
        def speak(self, text: str, until: float) -> bytes | None:
            raise RuntimeError(text)

    with capture_logs() as logs:
        Speaker(Broken(), LEASE_S).speak(reply.delivery, reply.job, reply.notes)
        mute = Speaker(None, LEASE_S)
        for _ in range(2):
            mute.speak(reply.delivery, reply.job, Notes())
    assert api.voices == []
    assert [log["event"] for log in logs] == [
        "voice.not_made",
        "voice.skipped",
        "voice.unavailable",
    ]
    assert "today" not in str(logs)


def test_code_addresses_and_sources_are_not_spoken(reply: Reply) -> None:
    below = "\n\nSources:\n- [1] [Returns](https://help.example/returns)"
    text = f"Within **30 days** [1], see https://help.example/x.\n\n```sh\nrm -rf\n```\nBye.{below}"
    said = spoken_text(replace(reply.job, text=text, below=below))
    assert said.split() == ["Within", "30", "days,", "see", "Bye."]


@pytest.mark.parametrize("moment", ["dies", "500", "silence"])
def test_a_voice_in_doubt_is_not_sent_again(api: TelegramAPI, reply: Reply, moment: str) -> None:
    api.order("sendVoice", moment)
    for _ in range(2):
        Speaker(Voice(), LEASE_S).speak(reply.delivery, reply.job, reply.notes)
    assert api.count("sendVoice") == 1


def test_a_worker_that_dies_of_a_voice_leaves_it_to_nobody(api: TelegramAPI, reply: Reply) -> None:
    for dies_after, sent in ((0, 0), (1, 1)):
        reply.notes, before = Notes(), len(api.voices)
        reply.notes.dies_after = dies_after
        with pytest.raises(Killed):
            Speaker(Voice(), LEASE_S).speak(reply.delivery, reply.job, reply.notes)
        assert len(api.voices) - before == sent
        reply.notes.dies_after = None
        Speaker(Voice(), LEASE_S).speak(reply.delivery, reply.job, reply.notes)
        assert len(api.voices) - before == 1


def test_a_limit_or_a_refusal_leaves_the_voice_out_and_delays_nothing(
    api: TelegramAPI, reply: Reply
) -> None:
    speaker = Speaker(Voice(), LEASE_S)
    api.order("sendVoice", "429", retry_after_s=3)
    for error in ("", "Bad Request: VOICE_MESSAGES_FORBIDDEN"):
        reply.notes = Notes()
        with capture_logs() as logs:
            for _ in range(2):
                speaker.speak(reply.delivery, reply.job, reply.notes)
        assert [log["event"] for log in logs] == ["voice.skipped"]
        assert logs[0]["result"] == ("not_sent" if error else "limited")
        api.chat_error = "Bad Request: VOICE_MESSAGES_FORBIDDEN"
    assert (api.count("sendVoice"), api.voices) == (2, [])


def test_a_voice_that_is_late_or_waits_for_another_is_left_out(
    api: TelegramAPI, reply: Reply
) -> None:
    class Slow:
        """Speaks until it is told to end, or its time is up."""

        def __init__(self) -> None:
            self.has_begun, self.end = Event(), Event()

        def speak(self, text: str, until: float) -> bytes | None:
            self.has_begun.set()
            if not self.end.wait(until - time.monotonic()):
                raise Interrupted
            return SOUND

    speaker = Speaker(Slow(), 1.0)
    with capture_logs() as logs:
        speaker.speak(reply.delivery, reply.job, Notes())
    assert (logs[0]["result"], api.voices) == ("late", [])
    speaker = Speaker(slow := Slow(), 60.0)
    with ThreadPoolExecutor(1) as pool, capture_logs() as logs:
        first = pool.submit(speaker.speak, reply.delivery, reply.job, Notes())
        assert slow.has_begun.wait(10)
        speaker._wait_s = 0.2
        speaker.speak(reply.delivery, reply.job, Notes())
        slow.end.set()
        first.result(10)
    assert [log["result"] for log in logs] == ["busy"]
    assert len(api.voices) == 1


def test_a_reply_is_spoken_on_whatsapp_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", whatsapp.TOKEN)
    secret = SecretReference(env="TOKEN")
    with WhatsAppAPI() as api:
        section = WhatsAppSection(
            kind="whatsapp", bot="bot", phone_number_id=whatsapp.NUMBER, app_secret=secret,
            verify_token=secret, access_token=secret, api_url=api.url,
        )  # fmt: skip
        delivery = WhatsAppDelivery("wa", section, DeliverySettings(timeout_s=1, lease_s=2))
        reply = Reply(delivery, to=whatsapp.USER)
        reply.job = replace(reply.job, text="It comes today.", is_spoken=True)
        assert delivery.send(reply.job, reply.notes)
        for _ in range(2):
            Speaker(Voice(), LEASE_S).speak(delivery, reply.job, reply.notes)
        assert (api.texts, api.voices) == (["It comes today."], [SOUND])
        api.order("upload", "429")
        reply.notes = Notes()
        Speaker(Voice(), LEASE_S).speak(delivery, reply.job, reply.notes)
        assert api.voices == [SOUND]


def test_a_reply_is_spoken_in_a_thread_of_slack_with_the_scope_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TOKEN", SLACK_TOKEN)
    secret = SecretReference(env="TOKEN")
    with SlackAPI() as api:
        section = SlackSection(
            kind="slack", bot="bot", bot_token=secret, signing_secret=secret, api_url=api.url
        )
        delivery = SlackDelivery("desk", section, DeliverySettings(timeout_s=1, lease_s=2))
        thread = {"team": "T1", "channel": "C1", "user": "U1", "thread_ts": "1.1"}
        reply = Reply(delivery, **thread)
        reply.job = replace(reply.job, text="It comes today.", is_spoken=True)
        assert delivery.send(reply.job, reply.notes)
        Speaker(Voice(), LEASE_S).speak(delivery, reply.job, reply.notes)  # without the scope
        assert api.shared == []
        api.scopes += ",files:write"
        command = replace(reply.job, target=thread | {"response_url": "https://hooks.slack.com/1"})
        Speaker(Voice(), LEASE_S).speak(delivery, command, Notes())
        assert api.shared == []
        reply.notes = Notes()
        for _ in range(2):
            Speaker(Voice(), LEASE_S).speak(delivery, reply.job, reply.notes)
        assert api.shared == [("C1", "1.1", SOUND)]
        assert len(api.texts) == 1


def delivered(channels: Any, kind: str) -> Job:
    """The delivery of a reply to somebody who sent a file of this kind."""
    asked = Asked(channels, "desk")
    asked.ask(room="7")
    reading = {"file_id": "file_1", "kind": kind, "text": "Where is my parcel?"}
    channels.database.run(
        "INSERT INTO turn_readings (turn_id, readings) VALUES (%s, %s) RETURNING turn_id",
        (asked.turn.turn_id, Jsonb([reading])),
    )
    asked.finish("It comes today.")
    [row] = channels.database.run("SELECT id FROM deliveries ORDER BY ordinal DESC LIMIT 1")
    claim = claim_delivery(Holder(channels.database, new_id(), 30.0), "desk", row.id)
    assert claim is not None
    return claim.job


@pytest.mark.parametrize("broker_url", ["valkey"], indirect=True)
def test_only_voice_is_answered_by_voice_and_only_if_the_bot_says_so(channels: Any) -> None:
    assert not delivered(channels, "audio").is_spoken
    save(channels, voice_replies="to_voice")
    assert delivered(channels, "audio").is_spoken
    assert not delivered(channels, "image").is_spoken


@pytest.mark.needs("media")
@pytest.mark.parametrize("broker_url", ["valkey"], indirect=True)
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_killed_delivery_worker_speaks_no_reply_twice(
    channels: Any, api: TelegramAPI, eventually: Callable[..., None], moment: str
) -> None:
    save(channels, voice_replies="to_voice")
    channels.environment["TG_TOKEN"] = TOKEN
    secret = {"env": "TG_TOKEN"}
    channels.configure(
        "tg", kind="telegram", bot_token=secret, secret_token=secret, api_url=api.url
    )
    asked = Asked(channels, "tg")
    asked.ask(chat=str(USER), type="private", message="1")
    reading = {"file_id": "file_1", "kind": "audio", "text": "Where is my parcel?"}
    channels.database.run(
        "INSERT INTO turn_readings (turn_id, readings) VALUES (%s, %s) RETURNING turn_id",
        (asked.turn.turn_id, Jsonb([reading])),
    )
    held = api.order("sendVoice", moment)
    patient = {"TURNMILL_DELIVERY__TIMEOUT_S": "30", "TURNMILL_DELIVERY__LEASE_S": "60"}
    worker = channels.deliver(eventually, **patient)
    channels.system.start("relay")
    asked.finish("Your parcel comes today.")
    assert held.reached.wait(60)
    worker.kill()
    held.go.set()
    channels.database.run(
        "UPDATE deliveries SET leased_until = to_timestamp(0) "
        "WHERE leased_until IS NOT NULL RETURNING id"
    )
    channels.deliver(eventually, **patient)
    eventually(channels.all_sent, 60)
    assert api.texts == ["Your parcel comes today."]
    # The one that was under way may have arrived; the second worker sent none.
    assert api.count("sendVoice") == 1
    assert len(api.voices) <= 1
