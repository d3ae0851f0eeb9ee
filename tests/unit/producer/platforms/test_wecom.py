"""What WeCom sends, in our words."""

import time
from typing import Any

import pytest
from pydantic import SecretStr

from turnmill.infra.mocks.wecom import messages
from turnmill.producer.channels.base import Parsed, Request
from turnmill.producer.channels.sealed.xml import read_fields
from turnmill.producer.channels.wecom.channel import WeComChannel
from turnmill.schemas.channels.sections.base import SecretReference
from turnmill.schemas.channels.sections.wecom import WeComSection
from turnmill.schemas.channels.wechat import Sealer
from turnmill.schemas.errors import BadSignature, InvalidInput, SettingsError

TOKEN, KEY, CORP = "made-up-token", "jWmYm7qr5nMoAUwZRjGtBxmz3KA1tkAj3ykkR6q2B2C", "wwturnmill"
SEALER = Sealer(SecretStr(TOKEN), SecretStr(KEY), CORP)


@pytest.fixture
def channel(monkeypatch: pytest.MonkeyPatch) -> WeComChannel:
    monkeypatch.setenv("WECOM_TOKEN", TOKEN)
    monkeypatch.setenv("WECOM_KEY", KEY)
    section = WeComSection(
        kind="wecom",
        bot="b",
        corp_id=CORP,
        agent_id=1000002,
        secret=SecretReference(env="WECOM_TOKEN"),
        token=SecretReference(env="WECOM_TOKEN"),
        encoding_aes_key=SecretReference(env="WECOM_KEY"),
    )
    return WeComChannel("w", section)


def parse(channel: WeComChannel, plain: bytes, sealer: Sealer = SEALER) -> Parsed:
    signed = messages.sign(sealer, plain)
    request = Request("POST", {}, signed.body, time.time(), signed.query)
    channel.verify(request)
    return channel.parse(request)


def event_of(channel: WeComChannel, **fields: str) -> Any:
    (event,) = parse(channel, messages.encode(messages.message("hi", **fields))).events
    return event


def test_the_check_of_the_address_is_answered_with_what_was_encrypted(
    channel: WeComChannel,
) -> None:
    sealed = SEALER.seal(b"12345")
    query = {**messages.query(SEALER, sealed), "echostr": sealed}
    request = Request("GET", {}, b"", time.time(), query)
    channel.verify(request)
    assert channel.parse(request).answer.body == b"12345"
    with pytest.raises(BadSignature):
        channel.verify(Request("GET", {}, b"", time.time(), {**query, "echostr": "another"}))


def test_a_person_has_one_conversation_with_the_application(channel: WeComChannel) -> None:
    event = event_of(channel, MsgId="1")
    assert (event.event_id, event.content, event.author) == ("1", "hi", "alice")
    assert (event.address.thread, event.address.target) == ("alice", {"user": "alice"})


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"MsgType": "voice", "Recognition": "Where is it?", "Content": ""}, "Where is it?"),
        ({"MsgType": "voice"}, ""),
        ({"MsgType": "image"}, ""),
        ({"MsgType": "file"}, ""),
    ],
)
def test_voice_is_read_where_wecom_heard_it_and_files_are_not(
    channel: WeComChannel, fields: dict[str, str], text: str
) -> None:
    assert event_of(channel, **fields).content == text


def test_what_is_for_another_enterprise_is_refused(channel: WeComChannel) -> None:
    other = Sealer(SecretStr(TOKEN), SecretStr(KEY), "wwother")
    with pytest.raises(InvalidInput, match="somebody else"):
        parse(channel, messages.encode(messages.message("hi")), other)


@pytest.mark.parametrize(
    "body",
    [
        b'<!DOCTYPE x [<!ENTITY a "b">]><xml><Content>&a;</Content></xml>',
        b'<!DOCTYPE x SYSTEM "http://127.0.0.1/"><xml/>',
        b"<xml>" + b"<a/>" * 5000 + b"</xml>",
        b"<a>" * 100 + b"</a>" * 100,
        b"<xml><Content>\x00</Content></xml>",
        b"<xml>",
        b"",
    ],
)
def test_xml_that_defines_anything_or_is_no_messages_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        read_fields(body)


def test_of_xml_the_texts_within_the_root_are_read_and_no_deeper_ones() -> None:
    body = b"<xml>a<A>1 &lt; <![CDATA[2 & <b>]]></A><B><A>deep</A></B><C/></xml>"
    assert read_fields(body) == {"A": "1 < 2 & <b>", "B": "", "C": ""}


@pytest.mark.parametrize("key", ["", "short", KEY + "A", "-" * 43, "é" * 43])
def test_a_key_that_is_none_is_told_at_the_start(key: str) -> None:
    with pytest.raises(SettingsError, match="EncodingAESKey"):
        Sealer(SecretStr(TOKEN), SecretStr(key), CORP)
