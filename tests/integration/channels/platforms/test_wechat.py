"""Replies in WeChat, against the mock that keeps its rules."""

from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.adapting import Killed, Reply, long_text
from turnmill.infra.mocks.wechat import APP_ID, APP_SECRET, MAX_MESSAGES, USER, WeChatAPI
from turnmill.producer.channels.wechat.check import check_wechat
from turnmill.producer.doctor.findings import Level
from turnmill.schemas.channels.sections.base import SecretReference
from turnmill.schemas.channels.sections.wechat import WeChatSection
from turnmill.schemas.errors import ChannelUnavailable, DeliveryRefused
from turnmill.schemas.settings import DeliverySettings
from turnmill.workers.delivery.texts.plain import to_plain
from turnmill.workers.delivery.wechat.adapter import WeChatDelivery


@pytest.fixture
def wechat() -> Iterator[WeChatAPI]:
    with WeChatAPI() as api:
        yield api


@pytest.fixture
def section(wechat: WeChatAPI, monkeypatch: pytest.MonkeyPatch) -> WeChatSection:
    monkeypatch.setenv("WECHAT_SECRET", APP_SECRET)
    secret = SecretReference(env="WECHAT_SECRET")
    return WeChatSection(
        kind="wechat",
        bot="b",
        app_id=APP_ID,
        app_secret=secret,
        token=secret,
        encoding_aes_key=secret,
        api_url=wechat.url,
    )


@pytest.fixture
def delivery(section: WeChatSection) -> WeChatDelivery:
    return WeChatDelivery("w", section, DeliverySettings(timeout_s=1, lease_s=2))


@pytest.fixture
def chat(delivery: WeChatDelivery) -> Reply:
    return Reply(delivery, user=USER)


def test_a_reply_is_a_text_as_it_is_read_in_wechat(wechat: WeChatAPI, chat: Reply) -> None:
    assert chat.send("**您好** 👋 见 [这里](https://a.example)。")
    assert wechat.messages == [(USER, "您好 👋 见 这里 (https://a.example)。")]


@pytest.mark.parametrize(
    "text", ['<a href="weixin://bizmsgmenu?msgmenucontent=yes">no</a>', "```html\n<A href=x>\n```"]
)
def test_what_a_model_writes_is_no_link_that_writes_for_its_reader(text: str) -> None:
    assert "<a" not in to_plain(text).lower()
    assert "</a" not in to_plain(text).lower()
    assert to_plain("<audio> if a <b") == "<audio> if a <b"


def test_a_reply_longer_than_wechat_takes_comes_as_the_person_writes_on(
    wechat: WeChatAPI, chat: Reply
) -> None:
    text = "这是一个句子。" * 300 + "\n\n" + long_text()
    for _ in range(5):
        with suppress(DeliveryRefused):
            assert chat.send(text)
            break
        assert wechat.quota[USER] == 0
        wechat.hear()
    whole = "\n".join(wechat.texts)
    assert whole.count("这是一个句子。") == 300
    assert all(f"x{n} = {n}\n" in f"{whole}\n" for n in range(800))


def test_the_limit_of_messages_and_the_end_of_48_hours_are_refusals_in_words(
    wechat: WeChatAPI, delivery: WeChatDelivery
) -> None:
    for _ in range(MAX_MESSAGES):
        Reply(delivery, user=USER).send("Yes.")
    with pytest.raises(DeliveryRefused, match="five messages") as error:
        Reply(delivery, user=USER).send("Yes.")
    assert error.value.reason == "45047"
    with pytest.raises(DeliveryRefused, match="48 hours"):
        Reply(delivery, user="stranger").send("Yes.")
    wechat.is_verified = False
    with pytest.raises(DeliveryRefused, match="verified"):
        Reply(delivery, user=USER).send("Yes.")


def test_typing_is_shown_as_long_as_wechat_takes_it(wechat: WeChatAPI, chat: Reply) -> None:
    assert chat.show() == 15.0
    assert wechat.typing == {USER}
    assert chat.show() == 15.0
    wechat.refusals = {"typing": [45080]}
    assert chat.show() is None
    assert chat.send("Yes.")
    assert wechat.quota[USER] == MAX_MESSAGES - 1


def test_a_token_that_wechat_takes_no_more_is_fetched_anew_once(
    wechat: WeChatAPI, chat: Reply, delivery: WeChatDelivery
) -> None:
    chat.send("One.")
    wechat.tokens.clear()
    assert Reply(delivery, user=USER).send("Two.")
    assert (wechat.count("stable_token"), len(wechat.texts)) == (2, 2)
    wechat.refusals = {"send": [42001, 42001]}
    with pytest.raises(DeliveryRefused):
        Reply(delivery, user=USER).send("Three.")


def test_a_wrong_secret_is_refused_without_a_word_of_it(
    wechat: WeChatAPI, section: WeChatSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WECHAT_SECRET", "another-secret")
    delivery = WeChatDelivery("w", section, DeliverySettings(timeout_s=1))
    with pytest.raises(DeliveryRefused, match="AppSecret") as error:
        Reply(delivery, user=USER).send("Yes.")
    assert "another-secret" not in error.value.message


@pytest.mark.parametrize("kind", ["dies", "500", "silence"])
def test_a_call_in_doubt_is_repeated_and_leaves_at_most_one_part_twice(
    wechat: WeChatAPI, chat: Reply, kind: str
) -> None:
    wechat.order("send", kind)
    with pytest.raises(ChannelUnavailable) as error:
        chat.send("Yes.")
    assert error.value.is_doubtful
    assert chat.send("Yes.", is_doubtful=True)
    assert len(wechat.texts) == (2 if kind == "dies" else 1)


def test_a_limit_of_calls_is_a_pause(wechat: WeChatAPI, chat: Reply) -> None:
    wechat.order("send", "429")
    with pytest.raises(ChannelUnavailable) as error:
        chat.send("Yes.")
    assert (error.value.retry_after_s, error.value.is_doubtful) == (600.0, False)


@pytest.mark.parametrize("steps", range(1, 4))
def test_at_most_one_part_is_there_twice_at_whatever_step_the_worker_is_killed(
    wechat: WeChatAPI, chat: Reply, steps: int
) -> None:
    text = "\n\n".join(f"{n}" + "这是一个句子。" * 90 for n in range(3))
    chat.notes.dies_after = steps - 1
    with suppress(Killed):
        chat.send(text)
    chat.notes.dies_after = None
    assert chat.send(text, is_doubtful=True)
    assert [int(each[0]) for each in dict.fromkeys(wechat.texts)] == [0, 1, 2]
    assert len(wechat.texts) <= 4


def test_the_check_tells_whether_the_account_may_send(
    wechat: WeChatAPI, section: WeChatSection
) -> None:
    assert [finding.level for finding in check_wechat(section)] == [Level.OK, Level.OK]
    wechat.is_verified = False
    *_, finding = check_wechat(section)
    assert (finding.level, "微信认证" in (finding.fix or "")) == (Level.BROKEN, True)
    wechat.refusals = {"stable_token": [40164]}
    (finding,) = check_wechat(section)
    assert "whitelist" in (finding.fix or "")
