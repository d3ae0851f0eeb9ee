"""What Discord sends, in our words, and what it is answered."""

import json
import time
from typing import Any

import pytest

from turnmill.infra.mocks import discord
from turnmill.infra.mocks.discord import APPLICATION_ID, CHANNEL_ID, USER_ID, Payload, public_key
from turnmill.producer.channels.base import Parsed, Request
from turnmill.producer.channels.discord.channel import DiscordChannel
from turnmill.producer.converse import Kind, Received
from turnmill.schemas.channels.sections.base import SecretReference
from turnmill.schemas.channels.sections.discord import DiscordSection

SECRET = "made-up-key"  # noqa: S105
EPHEMERAL = 64
TURN = f"turn_{'ab' * 16}"


@pytest.fixture
def channel() -> DiscordChannel:
    section = DiscordSection(
        kind="discord",
        bot="b",
        application_id=APPLICATION_ID,
        public_key=public_key(SECRET),
        bot_token=SecretReference(env="NONE"),
    )
    return DiscordChannel("d", section)


def parse(channel: DiscordChannel, payload: Payload) -> Parsed:
    signed = discord.sign(SECRET, discord.encode(payload))
    headers = {name.lower(): value for name, value in signed.headers.items()}
    request = Request("POST", headers, signed.body, time.time())
    channel.verify(request)
    return channel.parse(request)


def event_of(channel: DiscordChannel, payload: Payload) -> Any:
    (event,) = parse(channel, payload).events
    return event


def answer_to(channel: DiscordChannel, payload: Payload, kind: Kind) -> Payload:
    parsed = parse(channel, payload)
    answer: Payload = json.loads(channel.acknowledge(parsed, [Received(kind)]).body)
    return answer


def test_discords_ping_is_answered(channel: DiscordChannel) -> None:
    assert json.loads(parse(channel, discord.ping()).answer.body) == {"type": 1}


def test_each_person_has_a_conversation_in_a_channel_and_a_chat_is_one(
    channel: DiscordChannel,
) -> None:
    payload = discord.command("ask", " hi ")
    event = event_of(channel, payload)
    assert (event.event_id, event.content, event.author) == (payload["id"], "hi", USER_ID)
    assert event.is_awaited
    assert event.address.thread == f"{CHANNEL_ID}/{USER_ID}"
    assert 880 < int(event.address.target["expires_at"]) - time.time() < 901
    assert event_of(channel, discord.in_direct_chat(payload)).address.thread == CHANNEL_ID
    thread = discord.command("ask", "hi", channel={"id": CHANNEL_ID, "type": 11})
    assert event_of(channel, thread).address.thread == CHANNEL_ID


def test_a_message_is_asked_about_with_its_files_named(channel: DiscordChannel) -> None:
    files = [{"filename": "a.png", "content_type": "image/png"}]
    event = event_of(channel, discord.about_message("What is this?", files))
    assert [part.text for part in event.content] == ["What is this?", "[file: a.png, image/png]"]


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (f"<@{APPLICATION_ID}> hi", "hi"),
        (f"<@!{APPLICATION_ID}>, hi", "hi"),
        (f"`<@{APPLICATION_ID}>` is you", f"`<@{APPLICATION_ID}>` is you"),
        ("<@1100000000007> hi", "<@1100000000007> hi"),
    ],
)
def test_the_bots_own_mention_is_left_out_where_a_message_begins_with_it(
    channel: DiscordChannel, text: str, read: str
) -> None:
    assert event_of(channel, discord.about_message(text)).content == read


@pytest.mark.parametrize(
    ("name", "command"),
    [("stop", "stop"), ("reset", "reset"), ("human", "hand_off"), ("resume", "resume")],
)
def test_commands_are_commands(channel: DiscordChannel, name: str, command: str) -> None:
    event = event_of(channel, discord.command(name))
    assert (event.kind, event.name) == ("command", command)


def test_a_button_is_of_the_conversation_of_who_asked(channel: DiscordChannel) -> None:
    rating = event_of(channel, discord.pressed(f"bad:{TURN}"))
    assert (rating.turn_id, rating.score) == (TURN, -1)
    event = event_of(channel, discord.pressed("hand_off", asked_by="1100000000007"))
    assert (event.author, event.address.thread) == (USER_ID, f"{CHANNEL_ID}/1100000000007")
    assert parse(channel, discord.pressed("another's")).ignored == "action"


@pytest.mark.parametrize("kind", Kind)
def test_only_what_a_reply_will_replace_thinks(channel: DiscordChannel, kind: Kind) -> None:
    answer = answer_to(channel, discord.command("ask", "hi"), kind)
    if kind is Kind.ACCEPTED:
        assert answer == {"type": 5}
    else:
        assert (answer["type"], answer["data"]["flags"]) == (4, EPHEMERAL)
        assert answer["data"]["content"]
    assert answer_to(channel, discord.command("stop"), kind)["type"] == 4


def test_a_press_is_thanked_for_or_changes_nothing(channel: DiscordChannel) -> None:
    assert answer_to(channel, discord.pressed(f"good:{TURN}"), Kind.RATED)["type"] == 4
    assert answer_to(channel, discord.pressed("hand_off"), Kind.HANDED_OFF) == {"type": 6}


@pytest.mark.parametrize(
    ("payload", "word"),
    [
        (discord.command("ask", "hi", user={"id": "1100000000008", "bot": True}), "bot"),
        (discord.command("dance"), "unknown"),
        (discord.command("ask", "hi", channel_id=""), "unknown"),
        ({"type": 2}, "unknown"),
        (discord.interaction(2, {"name": "Ask", "type": 3, "target_id": "7"}), "unknown"),
    ],
    ids=["bot", "command", "channel", "empty", "message"],
)
def test_what_is_none_of_ours_is_answered_for_its_sender_alone(
    channel: DiscordChannel, payload: Payload, word: str
) -> None:
    parsed = parse(channel, payload)
    assert (parsed.ignored, parsed.events) == (word, ())
    assert json.loads(parsed.answer.body)["data"]["flags"] == EPHEMERAL
