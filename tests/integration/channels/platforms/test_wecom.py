"""Replies in WeCom, against the mock that keeps its rules."""

import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.adapting import Killed, Reply, long_text
from turnmill.infra.mocks.wecom.api import AGENT_ID, CORP_ID, MAX_TEXT, SECRET, WeComAPI
from turnmill.producer.channels.wecom.check import check_wecom
from turnmill.producer.doctor.findings import Level
from turnmill.schemas.channels.sections.base import SecretReference
from turnmill.schemas.channels.sections.wecom import WeComSection
from turnmill.schemas.errors import ChannelUnavailable, DeliveryRefused
from turnmill.schemas.settings import DeliverySettings
from turnmill.workers.delivery.texts.plain import to_plain
from turnmill.workers.delivery.wecom.adapter import MAX_A_MINUTE, WeComDelivery, mark


@pytest.fixture
def wecom() -> Iterator[WeComAPI]:
    with WeComAPI() as api:
        yield api


@pytest.fixture
def section(wecom: WeComAPI, monkeypatch: pytest.MonkeyPatch) -> WeComSection:
    monkeypatch.setenv("WECOM_SECRET", SECRET)
    secret = SecretReference(env="WECOM_SECRET")
    return WeComSection(
        kind="wecom",
        bot="b",
        corp_id=CORP_ID,
        agent_id=AGENT_ID,
        secret=secret,
        token=secret,
        encoding_aes_key=secret,
        api_url=wecom.url,
    )


@pytest.fixture
def delivery(section: WeComSection) -> WeComDelivery:
    return WeComDelivery("w", section, DeliverySettings(timeout_s=1, lease_s=2))


@pytest.fixture
def chat(delivery: WeComDelivery) -> Reply:
    return Reply(delivery, user="alice")


def shown(text: str) -> str:
    """A text without its mark."""
    return text[: -len(mark(""))]


def test_a_reply_is_a_text_without_markdowns_marks(wecom: WeComAPI, chat: Reply) -> None:
    assert chat.send("**Yes.** See [this](https://a.example).")
    assert [shown(text) for text in wecom.texts] == ["Yes. See this (https://a.example)."]
    assert wecom.messages[0][0] == "alice"


def test_a_long_reply_comes_in_texts_that_wecom_neither_cuts_nor_drops(
    wecom: WeComAPI, chat: Reply, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, ahead_s = time.monotonic, 0.0
    monkeypatch.setattr(time, "monotonic", lambda: real() + ahead_s)
    text = "这是一个句子。" * 2000 + "\n\n" + long_text()
    pauses = 0
    while True:
        try:
            assert chat.send(text)
            break
        except ChannelUnavailable as error:
            assert error.retry_after_s is not None
            assert not error.is_doubtful
            pauses, ahead_s = pauses + 1, ahead_s + error.retry_after_s
    assert pauses == len(wecom.texts) // MAX_A_MINUTE == 1
    assert max(len(each.encode()) for each in wecom.texts) <= MAX_TEXT
    whole = "\n".join(map(shown, wecom.texts))
    assert whole.count("这是一个句子。") == 2000
    assert all(f"x{n} = {n}\n" in f"{whole}\n" for n in range(800))


def test_parts_that_say_the_same_are_all_there(wecom: WeComAPI, chat: Reply) -> None:
    part = "这是一个句子。" * 90
    assert chat.send(f"{part}\n\n{part}\n\n{part}")
    assert [shown(text).strip() for text in wecom.texts] == [to_plain(part)] * 3


@pytest.mark.parametrize("kind", ["dies", "500", "silence"])
def test_a_call_in_doubt_is_repeated_and_nothing_stands_there_twice(
    wecom: WeComAPI, chat: Reply, kind: str
) -> None:
    wecom.order("send", kind)
    with pytest.raises(ChannelUnavailable) as error:
        chat.send("Yes.")
    assert error.value.is_doubtful
    assert chat.send("Yes.", is_doubtful=True)
    assert [shown(text) for text in wecom.texts] == ["Yes."]


@pytest.mark.parametrize("steps", range(1, 5))
def test_a_reply_is_there_once_at_whatever_step_the_worker_is_killed(
    wecom: WeComAPI, chat: Reply, steps: int
) -> None:
    text = "\n\n".join(f"{n}" + "这是一个句子。" * 90 for n in range(4))
    chat.notes.dies_after = steps - 1
    with suppress(Killed):
        chat.send(text)
    chat.notes.dies_after = None
    assert chat.send(text, is_doubtful=True)
    assert [int(each[0]) for each in wecom.texts] == [0, 1, 2, 3]


def test_one_token_serves_all_calls_and_is_renewed_when_wecom_takes_it_no_more(
    wecom: WeComAPI, chat: Reply, delivery: WeComDelivery
) -> None:
    chat.send("One.")
    wecom.tokens.clear()
    assert Reply(delivery, user="alice").send("Two.")
    assert (wecom.count("gettoken"), len(wecom.texts)) == (2, 2)


def test_a_limit_is_a_pause_and_a_refusal_says_what_to_do(
    wecom: WeComAPI, chat: Reply, delivery: WeComDelivery
) -> None:
    wecom.refusals = {"send": [45009]}
    with pytest.raises(ChannelUnavailable) as limit:
        chat.send("Yes.")
    assert limit.value.retry_after_s == 30.0
    wecom.users.add("bob")
    wecom.refusals = {"send": [60020]}
    with pytest.raises(DeliveryRefused, match="trusted IP"):
        Reply(delivery, user="bob").send("Yes.")
    with pytest.raises(DeliveryRefused, match="visible range"):
        Reply(delivery, user="stranger").send("Yes.")
    wecom.unlicensed.add("bob")
    with pytest.raises(DeliveryRefused, match="licence"):
        Reply(delivery, user="bob").send("Yes.")
    wecom.refusals = {"gettoken": [40001]}
    wecom.tokens.clear()
    with pytest.raises(DeliveryRefused) as error:
        Reply(delivery, user="bob").send("Yes.")
    assert SECRET not in error.value.message


def test_the_check_asks_for_the_application(wecom: WeComAPI, section: WeComSection) -> None:
    assert [finding.level for finding in check_wecom(section)] == [Level.OK, Level.OK]
    wecom.refusals = {"gettoken": [40013]}
    (finding,) = check_wecom(section)
    assert (finding.level, "corp_id" in (finding.fix or "")) == (Level.BROKEN, True)
