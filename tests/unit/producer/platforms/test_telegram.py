"""Telegram's updates in our words; python-telegram-bot judges that what we make up is real."""

import json
import time
from typing import Any

import pytest
import telegram

from turnmill.infra.mocks.telegram.updates import Messenger, encode, sign
from turnmill.producer.channels.base import Parsed, Request
from turnmill.producer.channels.telegram.channel import HELP, TelegramChannel
from turnmill.producer.converse import Kind, Received
from turnmill.schemas.channels.events import Command, Rating, UserMessage
from turnmill.schemas.channels.policies import CommandName
from turnmill.schemas.channels.sections.base import SecretReference
from turnmill.schemas.channels.sections.telegram import TelegramSection
from turnmill.schemas.errors import SettingsError
from turnmill.schemas.ids import Prefix, new_id, show_id

MESSENGER = Messenger()


@pytest.fixture
def channel(monkeypatch: pytest.MonkeyPatch) -> TelegramChannel:
    monkeypatch.setenv("TOKEN", f"{MESSENGER.bot}:AA")
    monkeypatch.setenv("SECRET", "secret")
    section = TelegramSection(
        kind="telegram",
        bot="bot",
        bot_token=SecretReference(env="TOKEN"),
        secret_token=SecretReference(env="SECRET"),
        username="@Acme_Bot",
    )
    return TelegramChannel("tg", section)


def parse(channel: TelegramChannel, **content: Any) -> Parsed:
    update = MESSENGER.update(**content)
    assert (
        telegram.Update.de_json(update, None).to_dict().items()
        >= {"update_id": update["update_id"]}.items()
    )
    signed = sign("secret", encode(update))
    request = Request("POST", {}, signed.body, time.time())
    return channel.parse(request)


def only(parsed: Parsed) -> Any:
    (event,) = parsed.events
    return event


def test_a_private_message_is_answered_in_its_chat_with_typing_at_once(
    channel: TelegramChannel,
) -> None:
    parsed = parse(channel, message=MESSENGER.message("hello"))
    event = only(parsed)
    assert isinstance(event, UserMessage)
    assert (event.content, event.address.thread) == ("hello", str(MESSENGER.user))
    assert event.address.target["type"] == "private"
    answer = channel.acknowledge(parsed, [Received(Kind.ACCEPTED)])
    shown = {"method": "sendChatAction", "chat_id": MESSENGER.user, "action": "typing"}
    assert json.loads(answer.body) == shown
    assert channel.acknowledge(parsed, [Received(Kind.HANDED_OFF)]).body == b""


@pytest.mark.parametrize(
    ("text", "heard"),
    [
        ("@acme_bot where is it?", "where is it?"),
        ("@Acme_Bot, @acme_bot: hi", "hi"),
        ("😀 ask @acme_bot please", "😀 ask @acme_bot please"),
        ("`@acme_bot` is its name", None),
        ("just talking", None),
        ("@acme_botanist knows", None),
    ],
)
def test_in_a_group_what_mentions_the_bot_is_for_it(
    channel: TelegramChannel, text: str, heard: str | None
) -> None:
    message = MESSENGER.message(text, MESSENGER.group)
    if "botanist" in text:
        message["entities"] = [{"type": "mention", "offset": 0, "length": 13}]
    if heard and "Acme" in text:
        message["entities"] = [{"type": "mention", "offset": 0, "length": 9}]
    parsed = parse(channel, message=message)
    if heard is None:
        assert parsed.ignored == "not_addressed"
    else:
        assert only(parsed).content == heard


def test_in_a_group_a_reply_to_the_bot_is_for_it(channel: TelegramChannel) -> None:
    ours = MESSENGER.message("I answered.", MESSENGER.group) | {"from": MESSENGER.myself}
    message = MESSENGER.message("and then?", MESSENGER.group, reply_to_message=ours)
    event = only(parse(channel, message=message))
    assert (event.content, event.address.thread) == ("and then?", str(MESSENGER.group))


def test_each_topic_is_a_conversation_and_other_threads_are_not(channel: TelegramChannel) -> None:
    in_topic = MESSENGER.message(
        "@acme_bot hi", MESSENGER.group, message_thread_id=7, is_topic_message=True
    )
    event = only(parse(channel, message=in_topic))
    assert event.address.thread == f"{MESSENGER.group}/7"
    assert event.address.target["topic"] == "7"
    in_thread = MESSENGER.message("@acme_bot hi", MESSENGER.group, message_thread_id=7)
    assert only(parse(channel, message=in_thread)).address.thread == str(MESSENGER.group)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("/stop", CommandName.STOP),
        ("/reset@acme_bot", CommandName.RESET),
        ("/human", CommandName.HAND_OFF),
    ],
)
def test_commands_are_commands(channel: TelegramChannel, text: str, name: CommandName) -> None:
    event = only(parse(channel, message=MESSENGER.message(text, MESSENGER.group)))
    assert isinstance(event, Command)
    assert event.name is name


def test_start_and_help_are_explained_by_the_answer_itself(channel: TelegramChannel) -> None:
    for text in ("/start", "/start deep-link", "/help"):
        parsed = parse(channel, message=MESSENGER.message(text))
        assert (parsed.events, parsed.ignored) == ((), "help")
        sent = {"method": "sendMessage", "chat_id": MESSENGER.user, "text": HELP}
        assert json.loads(parsed.answer.body) == sent


def test_another_command_is_a_message_and_another_bots_is_not(channel: TelegramChannel) -> None:
    assert (
        only(parse(channel, message=MESSENGER.message("/weather Rome"))).content == "/weather Rome"
    )
    message = MESSENGER.message("/stop@other_bot", MESSENGER.group)
    assert parse(channel, message=message).ignored == "other_bot"


@pytest.mark.parametrize(("word", "score"), [("good", 1), ("bad", -1)])
def test_a_pressed_thumb_is_a_rating_and_its_button_is_answered(
    channel: TelegramChannel, word: str, score: int
) -> None:
    turn = show_id(Prefix.TURN, new_id())
    parsed = parse(
        channel,
        callback_query=MESSENGER.pressed(f"{word}:{turn}", MESSENGER.by_the_bot()),
    )
    event = only(parsed)
    assert isinstance(event, Rating)
    assert (event.turn_id, event.score, event.author) == (turn, score, str(MESSENGER.user))
    answer = channel.acknowledge(parsed, [Received(Kind.RATED)])
    assert json.loads(answer.body)["method"] == "answerCallbackQuery"


def test_a_button_of_nobody_is_answered_all_the_same(channel: TelegramChannel) -> None:
    parsed = parse(channel, callback_query=MESSENGER.pressed("else", MESSENGER.by_the_bot()))
    assert (parsed.events, parsed.ignored) == ((), "action")
    assert json.loads(parsed.answer.body)["method"] == "answerCallbackQuery"
    handed = parse(channel, callback_query=MESSENGER.pressed("hand_off", MESSENGER.by_the_bot()))
    assert only(handed).name is CommandName.HAND_OFF


def test_files_are_named_with_the_text_that_came_with_them(channel: TelegramChannel) -> None:
    content = only(parse(channel, message=MESSENGER.photo(caption="What is this?"))).content
    assert [part.text for part in content] == ["What is this?", "[file: photo, image/jpeg]"]


def test_edits_bots_and_what_nobody_said_are_ignored(channel: TelegramChannel) -> None:
    message = MESSENGER.message("hi")
    assert parse(channel, edited_message=message).ignored == "edit"
    robot = message | {"from": {"id": 5, "is_bot": True, "first_name": "R2"}}
    assert parse(channel, message=robot).ignored == "bot"
    joined = {name: value for name, value in message.items() if name != "text"}
    assert parse(channel, message=joined).ignored == "service"


def test_a_token_of_another_form_is_refused_without_showing_it(
    monkeypatch: pytest.MonkeyPatch, channel: TelegramChannel
) -> None:
    monkeypatch.setenv("TOKEN", "xoxb-not-telegrams")
    section = TelegramSection(
        kind="telegram",
        bot="bot",
        bot_token=SecretReference(env="TOKEN"),
        secret_token=SecretReference(env="SECRET"),
    )
    with pytest.raises(SettingsError) as caught:
        TelegramChannel("tg", section)
    assert "xoxb" not in caught.value.message
