"""Images and voice on channels: noted by the webhook, fetched later, answered like text."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from tests.integration.media.conftest import BOT, Site
from tests.integration.media.making import photographed, tone
from turnmill.infra.mocks.slack.api import TOKEN as SLACK_TOKEN
from turnmill.infra.mocks.slack.api import SlackAPI
from turnmill.infra.mocks.telegram.api import TOKEN as TELEGRAM_TOKEN
from turnmill.infra.mocks.telegram.api import TelegramAPI
from turnmill.infra.mocks.telegram.updates import Messenger
from turnmill.producer.channels.base import Request
from turnmill.producer.channels.slack.events import read_event
from turnmill.producer.channels.slack.payloads import EventCallback
from turnmill.producer.channels.telegram.channel import TelegramChannel
from turnmill.producer.converse import Kind, receive
from turnmill.schemas.channels.events import Event, RemoteFile, UserMessage
from turnmill.schemas.channels.policies import CHANNEL_POLICIES, Policies
from turnmill.schemas.channels.sections.base import SecretReference
from turnmill.schemas.channels.sections.slack import SlackSection
from turnmill.schemas.channels.sections.telegram import TelegramSection
from turnmill.schemas.errors import DeliveryRefused
from turnmill.schemas.files.opening import open_parts
from turnmill.schemas.settings import DeliverySettings
from turnmill.workers.delivery.fetching import MAX_FETCHES, Fetcher
from turnmill.workers.delivery.slack.adapter import SlackDelivery
from turnmill.workers.delivery.telegram.adapter import TelegramDelivery
from turnmill.workers.media.base import Hints, Transcript
from turnmill.workers.testing import InlineWorker

AT_ONCE = Policies(quiet_s=0.0).over(CHANNEL_POLICIES)
SETTINGS = DeliverySettings(timeout_s=2, lease_s=4)


class Readers:
    """Hears and reads the same of everything."""

    def transcribe(self, sound: bytes, hints: Hints, abort: threading.Event) -> Transcript:
        assert sound == tone()
        return Transcript(text="Where is my parcel?", confidence=0.9)

    def read(self, image: bytes, abort: threading.Event) -> str:
        return "Order 4711"


class Shop:
    """A bot with two channels, whose platforms are mocks, and what fetches from them."""

    def __init__(self, site: Site, telegram: TelegramAPI, slack: SlackAPI) -> None:
        self.site, self.telegram, self.slack = site, telegram, slack
        secret = SecretReference(env="TELEGRAM_TOKEN")
        chat = TelegramSection(
            kind="telegram", bot=BOT, bot_token=secret, secret_token=secret, api_url=telegram.url
        )
        self.chat = TelegramChannel("chat", chat)
        secret = SecretReference(env="SLACK_TOKEN")
        desk = SlackSection(
            kind="slack", bot=BOT, bot_token=secret, signing_secret=secret, api_url=slack.url
        )
        self.fetcher = Fetcher(
            site.database,
            open_parts(site.database, site.settings),
            {
                "chat": TelegramDelivery("chat", chat, SETTINGS),
                "desk": SlackDelivery("desk", desk, SETTINGS),
            },
        )

    def receive(self, event: Event) -> Kind:
        found = receive(
            self.site.database, event.address.channel, self.site.tenant_id, BOT, AT_ONCE, event
        )
        return found.kind

    def from_telegram(self, **fields: Any) -> UserMessage:
        messenger = Messenger()
        message = {"text": None} | messenger.message("", **fields)
        update = messenger.update(message={k: v for k, v in message.items() if v})
        parsed = self.chat.parse(Request("POST", {}, json.dumps(update).encode(), 0.0))
        (event,) = parsed.events
        assert isinstance(event, UserMessage)
        return event

    def from_slack(self, text: str, **file: Any) -> UserMessage:
        workspace = self.slack.board.workspace
        given = workspace.direct_message(text, files=[{**workspace.file(), **file}])
        event = read_event("desk", EventCallback.model_validate(workspace.callback(given)))
        assert isinstance(event, UserMessage)
        return event

    def replies(self) -> list[str]:
        rows = self.site.database.run("SELECT content FROM replies ORDER BY created_at")
        return [row.content for row in rows]

    def notices(self) -> list[str]:
        rows = self.site.database.run("SELECT content FROM deliveries WHERE content IS NOT NULL")
        return [row.content for row in rows]


@pytest.fixture
def shop(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    monkeypatch.setenv("TELEGRAM_TOKEN", TELEGRAM_TOKEN)
    monkeypatch.setenv("SLACK_TOKEN", SLACK_TOKEN)
    for name in ("create_transcriber", "create_image_reader"):
        monkeypatch.setattr(f"turnmill.workers.media.opening.{name}", lambda *_: Readers())
    with ExitStack() as stack:
        telegram = stack.enter_context(TelegramAPI())
        slack = stack.enter_context(SlackAPI())
        yield Shop(site, telegram, slack)


def test_a_voice_message_waits_for_its_sound_and_is_answered(
    shop: Shop, eventually: Callable[..., None]
) -> None:
    shop.telegram.files["V"] = tone()
    with InlineWorker(shop.site.settings):
        event = shop.from_telegram(voice={"file_id": "V", "mime_type": "audio/ogg", "duration": 1})
        assert shop.receive(event) is Kind.ACCEPTED
        assert shop.telegram.count("getFile") == 0
        eventually(
            lambda: shop.site.database.run("SELECT 1 FROM attempts WHERE outcome = 'handed_back'")
        )
        assert shop.replies() == []
        assert shop.fetcher.fetch_next()
        eventually(lambda: shop.replies() == ["Where is my parcel?"])
    assert not shop.fetcher.fetch_next()
    assert shop.site.database.run("SELECT failures FROM turns")[0].failures == 0


def test_a_photo_is_taken_in_its_largest_size_with_what_stands_below_it(
    shop: Shop, eventually: Callable[..., None]
) -> None:
    shop.telegram.files["L"] = photographed("Order 4711")
    with InlineWorker(shop.site.settings):
        photo = [{"file_id": size, "width": 9, "height": 9} for size in ("S", "L")]
        assert shop.receive(shop.from_telegram(photo=photo, caption="Look")) is Kind.ACCEPTED
        assert shop.fetcher.fetch_next()
        eventually(lambda: len(shop.replies()) == 1)
    assert "Look" in shop.replies()[0] and "Order 4711" in shop.replies()[0]


def test_a_file_of_slack_is_fetched_with_the_bot_s_token(
    shop: Shop, eventually: Callable[..., None]
) -> None:
    shop.slack.files["a.png"] = photographed("Order 4711")
    with InlineWorker(shop.site.settings):
        url = shop.slack.file_url("a.png")
        assert shop.receive(shop.from_slack("Look", url_private_download=url)) is Kind.ACCEPTED
        assert shop.fetcher.fetch_next()
        eventually(lambda: len(shop.replies()) == 1)
    assert "Order 4711" in shop.replies()[0]


@pytest.mark.parametrize("url", ["https://a.example/x.png", "https://slack.com.a.example/", "x"])
def test_slack_s_token_is_sent_to_slack_alone(shop: Shop, url: str) -> None:
    delivery: Any = shop.fetcher._deliveries["desk"]
    with pytest.raises(DeliveryRefused, match="not on the platform"):
        delivery.fetch(url, 1000)


def test_what_cannot_be_fetched_or_read_fails_its_turn_alone(
    shop: Shop, eventually: Callable[..., None]
) -> None:
    shop.telegram.files |= {"bad": b"<!DOCTYPE html>", "good": tone()}
    shop.telegram.order("getFile", "500")
    with InlineWorker(shop.site.settings):
        for name in ("gone", "bad", "good"):
            event = shop.from_telegram(voice={"file_id": name}, chat=None)
            place = event.address.model_copy(update={"thread": name})
            assert shop.receive(event.model_copy(update={"address": place})) is Kind.ACCEPTED

        def states() -> list[str]:
            while shop.fetcher.fetch_next():
                pass
            rows = shop.site.database.run("SELECT state FROM turns ORDER BY id")
            return [row.state for row in rows]

        eventually(lambda: states() == ["failed", "failed", "completed"], 40)
    assert shop.replies() == ["Where is my parcel?"]


def test_without_a_worker_that_reads_it_a_voice_message_is_answered_as_before(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("create_transcriber", "create_image_reader"):
        monkeypatch.setattr(f"turnmill.workers.media.opening.{name}", lambda *_: None)
    with InlineWorker(shop.site.settings):
        event = shop.from_telegram(voice={"file_id": "V"})
        assert event.files == (RemoteFile(kind="audio", ref="V"),)
        assert shop.receive(event) is Kind.UNREADABLE
    assert ["nothing in your message that I can read" in notice for notice in shop.notices()] == [
        True
    ]
    assert shop.site.database.run("SELECT 1 FROM files") == []


def test_what_is_deleted_while_it_is_fetched_does_not_come_back(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = shop.site.database
    with InlineWorker(shop.site.settings):
        assert shop.receive(shop.from_telegram(voice={"file_id": "V"})) is Kind.ACCEPTED

        def fetch(*_: object) -> bytes:
            assert database.run("DELETE FROM files RETURNING id")
            return tone()

        monkeypatch.setattr(shop.fetcher._deliveries["chat"], "fetch", fetch)
        assert shop.fetcher.fetch_next()
    assert database.run("SELECT 1 FROM files") == []
    stored = [path for path in shop.site.settings.data.rglob("*") if path.is_file()]
    assert tone() not in [path.read_bytes() for path in stored]


def test_a_file_that_takes_the_process_with_it_is_given_up(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    def fetch(*_: object) -> bytes:
        nonlocal tries
        tries += 1
        raise KeyboardInterrupt

    monkeypatch.setattr(shop.fetcher._deliveries["chat"], "fetch", fetch)
    with InlineWorker(shop.site.settings):
        assert shop.receive(shop.from_telegram(voice={"file_id": "V"})) is Kind.ACCEPTED
    while shop.site.database.run("UPDATE files SET fetch_at = clock_timestamp() RETURNING id"):
        with suppress(KeyboardInterrupt):
            shop.fetcher.fetch_next()
    assert tries == MAX_FETCHES
