"""What Feishu sends, in our words."""

import json
import time
from typing import Any

import pytest

from turnmill.infra.mocks.feishu import events
from turnmill.infra.mocks.feishu.payloads import Payload, Tenant
from turnmill.producer.channels.base import Parsed, Request
from turnmill.producer.channels.feishu.channel import FeishuChannel
from turnmill.schemas.channels.feishu import seal
from turnmill.schemas.channels.sections.base import SecretReference
from turnmill.schemas.channels.sections.feishu import FeishuSection
from turnmill.schemas.errors import BadSignature, InvalidInput

KEY = "made-up-encrypt-key"
TENANT = Tenant()


@pytest.fixture
def channel(monkeypatch: pytest.MonkeyPatch) -> FeishuChannel:
    monkeypatch.setenv("FEISHU_KEY", KEY)
    monkeypatch.setenv("FEISHU_TOKEN", TENANT.token)
    return FeishuChannel("feishu", section())


def section(**fields: Any) -> FeishuSection:
    key, token = SecretReference(env="FEISHU_KEY"), SecretReference(env="FEISHU_TOKEN")
    given = {"open_id": TENANT.bot, **fields}
    return FeishuSection(
        kind="feishu", bot="b", app_id="cli_1", app_secret=key, encrypt_key=key,
        verification_token=token, **given,
    )  # fmt: skip


def request_of(payload: Payload) -> Request:
    signed = events.sign(KEY, json.dumps(payload).encode())
    headers = {name.lower(): value for name, value in signed.headers.items()}
    return Request("POST", headers, signed.body, time.time())


def parse(channel: FeishuChannel, payload: Payload) -> Parsed:
    request = request_of(payload)
    channel.verify(request)
    return channel.parse(request)


def message(channel: FeishuChannel, payload: Payload) -> Any:
    (event,) = parse(channel, payload).events
    return event


def test_the_check_of_the_address_is_answered_though_it_is_not_signed(
    channel: FeishuChannel,
) -> None:
    request = request_of(TENANT.challenge("abc"))
    unsigned = Request("POST", {"content-type": "application/json"}, request.body, time.time())
    channel.verify(unsigned)
    assert json.loads(channel.parse(unsigned).answer.body) == {"challenge": "abc"}


def test_an_event_that_is_not_signed_is_refused_though_it_is_encrypted(
    channel: FeishuChannel,
) -> None:
    request = request_of(TENANT.text("hi"))
    with pytest.raises(BadSignature):
        channel.verify(Request("POST", {}, request.body, time.time()))


def test_another_verification_token_is_refused(channel: FeishuChannel) -> None:
    for payload in (Tenant(token="wrong").text("hi"), Tenant(token="é").challenge("abc")):  # noqa: S106
        with pytest.raises(BadSignature):
            parse(channel, payload)


def test_what_is_not_encrypted_or_with_another_key_is_refused(channel: FeishuChannel) -> None:
    for body in (json.dumps(TENANT.text("hi")).encode(), seal_with("another"), b'{"encrypt": "a"}'):
        with pytest.raises(InvalidInput):
            channel.parse(Request("POST", {}, body, time.time()))


def seal_with(key: str) -> bytes:
    from pydantic import SecretStr

    return seal(SecretStr(key), json.dumps(TENANT.text("hi")).encode())


def test_a_direct_chat_is_one_conversation_and_its_topics_are_others(
    channel: FeishuChannel,
) -> None:
    event = message(channel, TENANT.text("hi"))
    assert (event.content, event.begins, event.address.thread) == ("hi", True, "oc_alice")
    assert "in_thread" not in event.address.target
    event = message(channel, TENANT.text("hi", root_id="om_1", thread_id="omt_1"))
    assert event.address.thread == "oc_alice/om_1"
    assert event.address.target["in_thread"] == "yes"


def test_a_mention_in_a_group_begins_a_conversation_that_is_its_topic(
    channel: FeishuChannel,
) -> None:
    event = message(channel, TENANT.mention("ask @_user_12 and @_user_1"))
    first = event.address.target["message"]
    assert event.content == "ask @_user_12 and @Turnmill"
    assert (event.begins, event.address.thread) == (True, f"oc_general/{first}")
    group = {"chat_id": "oc_general", "chat_type": "group"}
    event = message(channel, TENANT.text("go on", root_id=first, thread_id="omt_1", **group))
    assert (event.begins, event.address.thread) == (False, f"oc_general/{first}")


@pytest.mark.parametrize(
    ("open_id", "mention", "begins"),
    [
        ("ou_bot", TENANT.mentioned("ou_bob", "Bob"), False),
        (None, TENANT.mentioned("ou_bob", "Bob", mentioned_type="user"), False),
        (None, TENANT.mentioned("ou_bot", "Turnmill", mentioned_type="bot"), True),
        (None, TENANT.mentioned("ou_bot", "Turnmill"), True),
        (None, {"key": "@_all", "id": {}, "name": "all"}, False),
    ],
)
def test_only_a_mention_of_the_bot_begins_a_conversation(
    channel: FeishuChannel, open_id: str | None, mention: Payload, begins: bool
) -> None:
    channel = FeishuChannel("feishu", section(open_id=open_id))
    event = message(channel, TENANT.mention("hi", mentions=[mention]))
    assert event.begins is begins


def test_rich_text_is_read_with_its_links_code_and_mentions(channel: FeishuChannel) -> None:
    content = {
        "title": "Question",
        "content": [
            [{"tag": "at", "user_id": "@_user_1"}, {"tag": "text", "text": " see "},
             {"tag": "a", "text": "this", "href": "https://a.example"}, {"tag": "img"}],
            [{"tag": "code_block", "language": "PYTHON", "text": "print(1)"}],
        ],
    }  # fmt: skip
    mention = TENANT.mentioned("ou_bob", "Bob")
    event = message(channel, TENANT.message(content, "post", mentions=[mention]))
    shown = "Question\n@Bob see this (https://a.example)\n\n```python\nprint(1)\n```"
    assert event.content == shown


@pytest.mark.parametrize("content", ["", "[]", "no JSON", '{"text": 1}', '{"content": [1, [2]]}'])
def test_a_content_that_cannot_be_read_ends_in_no_error(
    channel: FeishuChannel, content: str
) -> None:
    for kind in ("text", "post", "image"):
        event = message(channel, TENANT.message({}, kind, content=content))
        assert event.content in ("", "1")


def test_what_cannot_be_stored_within_a_message_is_replaced(channel: FeishuChannel) -> None:
    said = r"""{"text": "a\u0000b\ud800c"}"""
    event = message(channel, TENANT.message({}, content=said))
    assert (event.content[0], event.content[-1]) == ("a", "c")
    assert not set(event.content) & {"\x00", "\ud800"}


def test_a_message_is_the_same_one_whatever_id_its_event_has(channel: FeishuChannel) -> None:
    ids = [
        message(channel, TENANT.text("hi", message_id="om_1", event_id=event_id)).event_id
        for event_id in ("first", "again")
    ]
    assert ids == ["om_1", "om_1"]


def test_buttons_rate_and_ask_for_a_person_in_their_thread(channel: FeishuChannel) -> None:
    turn = f"turn_{'ab' * 16}"
    value = {"turnmill": f"good:{turn}", "thread": "oc_general/om_1"}
    parsed = parse(channel, TENANT.pressed(value, "om_2", "oc_general"))
    assert (parsed.events[0].turn_id, parsed.events[0].score) == (turn, 1)  # type: ignore[union-attr]
    assert parsed.answer.body == b"{}"
    event = message(channel, TENANT.pressed({**value, "turnmill": "hand_off"}, "om_2"))
    assert (event.kind, event.name, event.address.thread) == (
        "command",
        "hand_off",
        "oc_general/om_1",
    )
    assert parse(channel, TENANT.pressed({"mine": 1}, "om_2")).ignored == "action"
