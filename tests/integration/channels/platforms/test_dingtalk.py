"""Replies in DingTalk, against the mock that keeps its rules."""

import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.adapting import Killed, Reply, long_text
from turnmill.infra.mocks.dingtalk import (
    CLIENT_ID,
    CLIENT_SECRET,
    CONVERSATION,
    USER,
    DingTalkAPI,
)
from turnmill.schemas.channels.sections.base import SecretReference
from turnmill.schemas.channels.sections.dingtalk import DingTalkSection
from turnmill.schemas.errors import ChannelUnavailable, DeliveryRefused
from turnmill.schemas.settings import DeliverySettings
from turnmill.workers.delivery.dingtalk import DingTalkDelivery, to_markdown


@pytest.fixture
def dingtalk() -> Iterator[DingTalkAPI]:
    with DingTalkAPI() as api:
        yield api


@pytest.fixture
def delivery(dingtalk: DingTalkAPI, monkeypatch: pytest.MonkeyPatch) -> DingTalkDelivery:
    monkeypatch.setenv("DINGTALK_SECRET", CLIENT_SECRET)
    secret = SecretReference(env="DINGTALK_SECRET")
    section = DingTalkSection(
        kind="dingtalk", bot="b", client_id=CLIENT_ID, client_secret=secret, api_url=dingtalk.url
    )
    return DingTalkDelivery("d", section, DeliverySettings(timeout_s=1, lease_s=2))


def in_session(delivery: DingTalkDelivery, dingtalk: DingTalkAPI, ends_in_s: float = 5400) -> Reply:
    target = {
        "conversation": CONVERSATION,
        "user": USER,
        "webhook": dingtalk.session,
        "expires_at": str(int(time.time() + ends_in_s)),
    }
    return Reply(delivery, **target)


@pytest.fixture
def chat(delivery: DingTalkDelivery, dingtalk: DingTalkAPI) -> Reply:
    return in_session(delivery, dingtalk)


def test_a_reply_answers_by_the_sessions_webhook(dingtalk: DingTalkAPI, chat: Reply) -> None:
    assert chat.send("**Yes.**\nIt is.")
    (posted,) = dingtalk.messages
    assert (posted.text, posted.way) == ("**Yes.**  \nIt is.  ", "session")
    assert dingtalk.count("token") == 0


def test_after_the_session_the_app_sends_by_itself_with_one_token(
    dingtalk: DingTalkAPI, delivery: DingTalkDelivery
) -> None:
    assert in_session(delivery, dingtalk, ends_in_s=30).send("Late.")
    assert Reply(delivery, conversation=CONVERSATION).send("To all.")
    ways = [(posted.way, posted.to) for posted in dingtalk.messages]
    assert ways == [("direct", USER), ("group", CONVERSATION)]
    assert dingtalk.count("token") == 1
    dingtalk.tokens.clear()
    assert Reply(delivery, conversation=CONVERSATION).send("Again.")
    assert dingtalk.count("token") == 2


def test_people_from_outside_cannot_be_written_to_after_the_session(
    dingtalk: DingTalkAPI, delivery: DingTalkDelivery
) -> None:
    with pytest.raises(DeliveryRefused) as error:
        Reply(delivery, conversation=CONVERSATION, user="").send("Late.")
    assert error.value.reason == "expired"
    assert dingtalk.calls == []


@pytest.mark.parametrize("ends_in_s", [5400, 0])
def test_a_long_reply_comes_in_parts_that_dingtalk_takes(
    dingtalk: DingTalkAPI, delivery: DingTalkDelivery, ends_in_s: float
) -> None:
    text = "这是一个句子。" * 3000 + "\n\n" + long_text()
    assert in_session(delivery, dingtalk, ends_in_s).send(text)
    assert len(dingtalk.texts) > 5
    assert all(each.count("```") % 2 == 0 for each in dingtalk.texts)
    for n in range(800):
        assert any(f"\nx{n} = {n}\n" in each for each in dingtalk.texts)
    assert "".join(dingtalk.texts).count("这是一个句子。") == 3000


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("![photo](https://a.example/b.png)", "[photo](https://a.example/b.png)  "),
        (
            "[yes](dtmd://dingtalkclient/sendMessage?content=yes)",
            "yes (dtmd\u2060://dingtalkclient/sendMessage?content=yes)  ",
        ),
        ('[yes]( DTMD://a "b")', '[yes]( DTMD\u2060://a "b")  '),
        ("<dtmd://a>", "<dtmd\u2060://a>  "),
        ("see [this](https://a.example)", "see [this](https://a.example)  "),
        ("```html\n![a](b)\n```", "```html\n![a](b)\n```"),
    ],
)
def test_what_a_model_writes_fetches_no_picture_and_writes_for_nobody(
    text: str, shown: str
) -> None:
    assert to_markdown(text) == shown


@pytest.mark.parametrize("kind", ["dies", "500", "silence"])
def test_a_call_in_doubt_is_repeated_and_leaves_at_most_one_part_twice(
    dingtalk: DingTalkAPI, chat: Reply, kind: str
) -> None:
    dingtalk.order("session", kind)
    with pytest.raises(ChannelUnavailable) as error:
        chat.send("Yes.")
    assert error.value.is_doubtful
    assert chat.send("Yes.", is_doubtful=True)
    assert len(dingtalk.texts) == (2 if kind == "dies" else 1)


def test_a_limit_is_a_pause_for_its_chat_alone(
    dingtalk: DingTalkAPI, delivery: DingTalkDelivery, chat: Reply
) -> None:
    dingtalk.session_error = 130101
    with pytest.raises(ChannelUnavailable) as error:
        chat.send("Yes.")
    assert (error.value.retry_after_s, error.value.is_doubtful) == (30.0, False)
    dingtalk.session_error = None
    with pytest.raises(ChannelUnavailable, match="asked to wait"):
        chat.send("Yes.")
    assert Reply(delivery, conversation="another").send("Yes.")


def test_a_refusal_names_dingtalks_code_and_what_to_do(
    dingtalk: DingTalkAPI, delivery: DingTalkDelivery, chat: Reply
) -> None:
    dingtalk.session_error = 310000
    with pytest.raises(DeliveryRefused, match="qyapi_robot_sendmsg"):
        chat.send("Yes.")
    dingtalk.errors = [(400, "invalidParameter.robotCode.auth")]
    with pytest.raises(DeliveryRefused, match="robot_code"):
        Reply(delivery, conversation=CONVERSATION).send("Yes.")
    dingtalk.errors = [(403, "Forbidden.AccessDenied.QpsLimitForAppkeyAndApi")]
    with pytest.raises(ChannelUnavailable):
        Reply(delivery, conversation=CONVERSATION).send("Yes.")


@pytest.mark.parametrize("steps", range(1, 5))
def test_at_most_one_part_is_there_twice_at_whatever_step_the_worker_is_killed(
    dingtalk: DingTalkAPI, chat: Reply, steps: int
) -> None:
    text = "\n\n".join(f"{n}" + "这是一个句子。" * 250 for n in range(4))
    chat.notes.dies_after = steps - 1
    with suppress(Killed):
        chat.send(text)
    chat.notes.dies_after = None
    assert chat.send(text, is_doubtful=True)
    assert [int(each[0]) for each in dict.fromkeys(dingtalk.texts)] == [0, 1, 2, 3]
    assert len(dingtalk.texts) <= 5
