"""Replies in Telegram, against the mock that keeps its rules."""

import time
from collections.abc import Iterator

import pytest

from tests.adapting import Killed, Reply, long_text
from turnmill.infra.mocks.telegram.api import TOKEN, TelegramAPI
from turnmill.schemas.channels.sections.base import SecretReference
from turnmill.schemas.channels.sections.telegram import TelegramSection
from turnmill.schemas.errors import ChannelUnavailable, DeliveryRefused
from turnmill.schemas.settings import DeliverySettings
from turnmill.schemas.turns import TurnState
from turnmill.workers.delivery.telegram.adapter import TelegramDelivery
from turnmill.workers.delivery.telegram.html import to_html

USER, GROUP = 4711, -1001234


@pytest.fixture
def api() -> Iterator[TelegramAPI]:
    with TelegramAPI() as api:
        yield api


@pytest.fixture
def delivery(api: TelegramAPI, monkeypatch: pytest.MonkeyPatch) -> TelegramDelivery:
    monkeypatch.setenv("TOKEN", TOKEN)
    secret = SecretReference(env="TOKEN")
    section = TelegramSection(
        kind="telegram", bot="bot", bot_token=secret, secret_token=secret, api_url=api.url
    )
    return TelegramDelivery("tg", section, DeliverySettings(timeout_s=1, lease_s=2))


@pytest.fixture
def private(delivery: TelegramDelivery) -> Reply:
    return Reply(delivery, chat=str(USER), type="private", message="1")


@pytest.fixture
def group(delivery: TelegramDelivery) -> Reply:
    return Reply(delivery, chat=str(GROUP), type="supergroup", message="17", topic="7")


def test_a_reply_is_formatted_and_has_buttons_that_name_its_turn(
    api: TelegramAPI, private: Reply
) -> None:
    private.send("**Yes** & _no_ `a < b`")
    (message,) = api.messages
    assert message.html == "<b>Yes</b> &amp; <i>no</i> <code>a &lt; b</code>"
    assert (message.chat, message.text) == (USER, "Yes & no a < b")
    assert private.job.turn_id is not None
    turn = f"turn_{private.job.turn_id.hex}"
    values = [button["callback_data"] for button in message.keyboard[0]]
    assert values == [f"good:{turn}", f"bad:{turn}", "hand_off"]


def test_a_group_is_answered_in_the_topic_at_the_message_that_asked(
    api: TelegramAPI, group: Reply
) -> None:
    group.send("hello")
    (message,) = api.messages
    assert (message.chat, message.topic, message.answers) == (GROUP, 7, 17)


def test_marks_that_telegram_cannot_read_are_sent_as_they_are(
    api: TelegramAPI, private: Reply, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "turnmill.workers.delivery.telegram.adapter.to_html", lambda text: f"<b>{text}"
    )
    private.send("**half")
    assert api.texts == ["**half"]


def test_a_text_of_marks_alone_is_sent_as_it_is(api: TelegramAPI, private: Reply) -> None:
    private.send("```\n```")
    assert api.texts == ["```\n```"]


@pytest.mark.parametrize(
    "text",
    [
        "*a **b* c**", "**a *b** c*", "~~a **b~~ c**", "_a **b_ c**", "> quote\n> more",
        "```python\nprint('<b>')", "| a | b |\n|---|---|\n| 1 | <2> |", "# **x** y",
        "[a](<http://x>) [b](javascript:alert(1)) [c](http://x/\"y)", "***both*** **[l](http://x)**",
        "<script>&lt;</script>", "a_b_c 2*3*4 __init__",
    ],
)  # fmt: skip
def test_whatever_a_model_writes_is_html_that_telegram_reads(
    api: TelegramAPI, private: Reply, text: str
) -> None:
    private.send(text)
    assert [name for name, _ in api.calls] == ["sendMessage"], to_html(text)


def test_a_long_reply_comes_in_parts_with_buttons_on_the_last(
    api: TelegramAPI, private: Reply
) -> None:
    private.send(long_text())
    assert len(api.messages) >= 10
    assert all(message.keyboard == [] for message in api.messages[:-1])
    assert api.messages[-1].keyboard
    assert "This is sentence number 899." in "".join(api.texts)


def test_lengths_are_counted_in_utf_16_as_telegram_does(api: TelegramAPI, private: Reply) -> None:
    private.send("😀" * 4096)
    assert [len(text) for text in api.texts] == [2048, 2048]


def test_a_private_reply_is_previewed_and_leaves_one_message(
    api: TelegramAPI, private: Reply
) -> None:
    assert private.show(state=TurnState.QUEUED) == 4.5
    assert api.typing == [USER]
    private.show("Once")
    assert (api.preview(USER), api.texts) == ("Once", [])
    private.show("Once upon")
    private.show("Once upon")
    assert (api.preview(USER), api.count("sendMessageDraft")) == ("Once upon", 2)
    private.send("Once upon a time")
    assert (api.preview(USER), api.texts) == (None, ["Once upon a time"])


def test_what_was_previewed_stays_when_its_turn_is_cancelled(
    api: TelegramAPI, private: Reply
) -> None:
    private.show("Once upon")
    assert private.send(None)
    assert api.texts == ["Once upon"]
    assert private.send(None, is_doubtful=True) is False or api.texts == ["Once upon"]


def test_in_groups_one_message_is_edited_at_the_allowed_rate(
    api: TelegramAPI, group: Reply
) -> None:
    assert group.show("Once") == 3.5
    group.show("Once upon")
    group.show("Once upon")
    group.send("Once upon a time")
    (message,) = api.messages
    assert message.history == ["Once", "Once upon", "Once upon a time"]
    assert message.keyboard


def test_a_server_without_previews_edits(api: TelegramAPI, private: Reply) -> None:
    api.has_previews = False
    private.show("Once")
    private.show("Once")
    private.send("Once upon")
    (message,) = api.messages
    assert message.history == ["Once", "Once upon"]


def test_telegrams_own_pause_is_kept_for_its_chat(
    api: TelegramAPI, private: Reply, group: Reply, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.order("sendMessage", "429", retry_after_s=7)
    with pytest.raises(ChannelUnavailable) as caught:
        private.send("hi")
    assert (caught.value.retry_after_s, caught.value.is_doubtful) == (7.0, False)
    for call in (private.send, private.show):
        with pytest.raises(ChannelUnavailable) as caught:
            call("hi")
        assert 6 < (caught.value.retry_after_s or 0) <= 7
    assert api.texts == []
    group.send("hello")
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 7.5)
    private.send("hi")
    assert api.texts == ["hello", "hi"]


def test_a_reply_is_sent_anew_if_somebody_deleted_what_was_written_of_it(
    api: TelegramAPI, group: Reply
) -> None:
    group.show("Once")
    api.messages.clear()
    group.send("Once upon a time")
    assert api.texts == ["Once upon a time"]


@pytest.mark.parametrize("kind", ["500", "silence", "dies"])
def test_a_call_without_an_answer_is_in_doubt_and_made_again(
    api: TelegramAPI, private: Reply, kind: str
) -> None:
    api.order("sendMessage", kind)
    with pytest.raises(ChannelUnavailable) as caught:
        private.send("hi")
    assert caught.value.is_doubtful
    private.send("hi", is_doubtful=True)
    assert api.texts == ["hi"] * (2 if kind == "dies" else 1)


def test_a_worker_killed_at_any_step_doubles_at_most_one_message(
    api: TelegramAPI, delivery: TelegramDelivery
) -> None:
    text = long_text(12_000)
    Reply(delivery, chat=str(USER), type="private").send(text)
    expected = list(api.texts)
    for killed_at in range(len(expected) + 2):
        api.messages.clear()
        reply = Reply(delivery, chat=str(USER), type="private")
        reply.notes.dies_after = killed_at
        try:
            reply.show("This is")
            reply.send(text)
        except Killed:
            reply.notes.dies_after = None
            reply.send(text, is_doubtful=True)
        doubled = len(api.texts) - len(set(api.texts))
        assert doubled <= 1
        assert list(dict.fromkeys(api.texts)) == expected


def test_a_draft_in_doubt_is_not_begun_again(api: TelegramAPI, group: Reply) -> None:
    api.order("sendMessage", "dies")
    with pytest.raises(ChannelUnavailable):
        group.show("Once")
    assert group.show("Once upon") == 4.5
    group.send("Once upon a time", is_doubtful=True)
    assert api.texts == ["Once", "Once upon a time"]


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("Forbidden: bot was blocked by the user", "blocked the bot"),
        ("Bad Request: chat not found", "The chat is gone"),
        ("Forbidden: something new", ""),
    ],
)
def test_a_refusal_says_what_to_do_and_never_the_token(
    api: TelegramAPI, private: Reply, said: str, advice: str
) -> None:
    api.chat_error = said
    with pytest.raises(DeliveryRefused) as caught:
        private.send("hi")
    assert said in caught.value.message
    assert advice in caught.value.message
    assert TOKEN not in caught.value.message


def test_a_person_who_answers_can_give_the_conversation_back(
    api: TelegramAPI, private: Reply
) -> None:
    private.notify("A person will answer here.", is_handed_off=True)
    assert [button["callback_data"] for button in api.messages[0].keyboard[0]] == ["resume"]
