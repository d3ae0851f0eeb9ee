"""What WeChat sends to an official account, in our words."""

import time
from dataclasses import replace

import pytest
from pydantic import SecretStr

from turnmill.infra.mocks import wechat
from turnmill.infra.mocks.wechat import APP_ID, USER
from turnmill.infra.mocks.wecom.messages import XML, Fields, encode
from turnmill.producer.channels.base import Parsed, Request
from turnmill.producer.channels.wechat.channel import WeChatChannel
from turnmill.schemas.channels.sections.base import SecretReference
from turnmill.schemas.channels.sections.wechat import WeChatSection
from turnmill.schemas.channels.wechat import Sealer
from turnmill.schemas.errors import BadSignature

TOKEN, KEY = "made-up-token", "jWmYm7qr5nMoAUwZRjGtBxmz3KA1tkAj3ykkR6q2B2C"
SEALER = Sealer(SecretStr(TOKEN), SecretStr(KEY), APP_ID)


@pytest.fixture
def channel(monkeypatch: pytest.MonkeyPatch) -> WeChatChannel:
    monkeypatch.setenv("WECHAT_TOKEN", TOKEN)
    monkeypatch.setenv("WECHAT_KEY", KEY)
    section = WeChatSection(
        kind="wechat",
        bot="b",
        app_id=APP_ID,
        app_secret=SecretReference(env="WECHAT_TOKEN"),
        token=SecretReference(env="WECHAT_TOKEN"),
        encoding_aes_key=SecretReference(env="WECHAT_KEY"),
    )
    return WeChatChannel("w", section)


def parse(channel: WeChatChannel, fields: Fields) -> Parsed:
    signed = wechat.sign(SEALER, encode(fields))
    # What else WeChat writes into its addresses changes nothing.
    query = {"signature": "1", "openid": USER, "encrypt_type": "aes", **signed.query}
    request = Request("POST", {}, signed.body, time.time(), query)
    channel.verify(request)
    return channel.parse(request)


def test_the_check_of_the_address_is_answered_with_its_own_text(channel: WeChatChannel) -> None:
    request = Request("GET", {}, b"", time.time(), wechat.check(SEALER, "5930473"))
    channel.verify(request)
    assert channel.parse(request).answer.body == b"5930473"
    for name in ("signature", "timestamp", "nonce"):
        with pytest.raises(BadSignature):
            channel.verify(replace(request, query={**request.query, name: "1"}))
    with pytest.raises(BadSignature):
        channel.verify(replace(request, arrived_at=time.time() + 330))


def test_a_person_has_one_conversation_and_wechat_is_told_at_once(channel: WeChatChannel) -> None:
    parsed = parse(channel, wechat.message("hi", MsgId="1"))
    (event,) = parsed.events
    assert (event.event_id, event.author) == ("1", USER)
    assert (event.address.thread, event.address.target) == (USER, {"user": USER})
    assert channel.acknowledge(parsed, ()).body == b"success"


@pytest.mark.parametrize("fields", [{"Event": "subscribe"}, {"Event": "CLICK", "EventKey": "a"}])
def test_events_of_the_account_are_no_messages(channel: WeChatChannel, fields: Fields) -> None:
    parsed = parse(channel, wechat.message("", MsgType="event", **fields))
    assert (parsed.events, parsed.ignored) == ((), "unknown")


def test_what_is_not_encrypted_is_refused_in_words(channel: WeChatChannel) -> None:
    query = SEALER.sign(stamp := str(int(time.time())), "1")
    address = {"signature": query, "timestamp": stamp, "nonce": "1"}
    body = encode(wechat.message("hi"))
    with pytest.raises(BadSignature, match="safe mode"):
        channel.verify(Request("POST", {"content-type": XML}, body, time.time(), address))
