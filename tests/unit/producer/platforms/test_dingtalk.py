"""What DingTalk sends, in our words."""

import time
from typing import Any

import pytest

from turnmill.infra.mocks import dingtalk
from turnmill.infra.mocks.dingtalk import CONVERSATION, USER, Payload
from turnmill.producer.channels.base import Request
from turnmill.producer.channels.dingtalk import DingTalkChannel
from turnmill.producer.channels.dingtalk_check import check_dingtalk
from turnmill.producer.doctor.findings import Level
from turnmill.schemas.channels.sections.base import SecretReference
from turnmill.schemas.channels.sections.dingtalk import DingTalkSection

SECRET = "made-up-client-secret"  # noqa: S105


@pytest.fixture
def channel(monkeypatch: pytest.MonkeyPatch) -> DingTalkChannel:
    monkeypatch.setenv("DINGTALK_SECRET", SECRET)
    section = DingTalkSection(
        kind="dingtalk",
        bot="b",
        client_id="ding1",
        client_secret=SecretReference(env="DINGTALK_SECRET"),
        api_url="http://127.0.0.1:9",
    )
    return DingTalkChannel("d", section)


def event_of(channel: DingTalkChannel, payload: Payload) -> Any:
    signed = dingtalk.sign(SECRET, dingtalk.encode(payload))
    request = Request("POST", signed.headers, signed.body, time.time())
    channel.verify(request)
    (event,) = channel.parse(request).events
    return event


def test_a_chat_is_one_conversation_and_the_mention_is_gone(channel: DingTalkChannel) -> None:
    event = event_of(channel, dingtalk.in_group("hi"))
    assert (event.content, event.author, event.address.thread) == ("hi", USER, CONVERSATION)
    assert "user" not in event.address.target
    direct = event_of(channel, dingtalk.message("hi"))
    assert direct.address.target["user"] == USER
    outside = event_of(channel, dingtalk.message("hi", senderStaffId=""))
    assert (outside.author, outside.address.target["user"]) == ("$:LWCP_v1:$alice", "")


@pytest.mark.parametrize(
    ("url", "is_taken"),
    [
        ("https://oapi.dingtalk.com/robot/sendBySession?session=1", True),
        ("http://127.0.0.1:9/robot/sendBySession", True),
        ("http://oapi.dingtalk.com/robot/sendBySession", False),
        ("https://oapi.dingtalk.com.evil.example/", False),
        ("https://evil.example/?.dingtalk.com", False),
        ("https://evil.example#.dingtalk.com", False),
        ("http://127.0.0.1:10/", False),
        ("https://[::1/", False),
        ("", False),
    ],
)
def test_replies_go_to_dingtalks_own_hosts_alone(
    channel: DingTalkChannel, url: str, is_taken: bool
) -> None:
    event = event_of(channel, dingtalk.message("hi", sessionWebhook=url))
    assert ("webhook" in event.address.target) is is_taken
    assert ("expires_at" in event.address.target) is is_taken


@pytest.mark.parametrize(
    ("msgtype", "content", "text"),
    [
        ("audio", {"duration": 4000, "recognition": "Where is it?"}, "Where is it?"),
        ("audio", {"duration": 4000}, ""),
        ("file", {"fileName": "a.pdf", "downloadCode": "1"}, ""),
        ("interactiveCard", {}, ""),
    ],
)
def test_voice_is_read_where_dingtalk_heard_it_and_other_messages_are_not(
    channel: DingTalkChannel, msgtype: str, content: Payload, text: str
) -> None:
    assert event_of(channel, dingtalk.message(msgtype=msgtype, content=content)).content == text


def test_rich_text_is_read_with_its_pictures_named(channel: DingTalkChannel) -> None:
    pieces = [{"text": "see "}, {"type": "picture", "downloadCode": "1"}, {"text": "this"}]
    event = event_of(channel, dingtalk.message(msgtype="richText", content={"richText": pieces}))
    assert [part.text for part in event.content] == ["see this", "[file: unnamed, image]"]


@pytest.mark.parametrize(
    ("msgtype", "content", "files"),
    [
        ("picture", {"downloadCode": "1"}, [("image", "1", "")]),
        ("picture", {"pictureDownloadCode": "2"}, [("image", "2", "")]),
        ("audio", {"downloadCode": "1", "duration": 4000}, [("audio", "1", "")]),
        # DingTalk brought its words.
        ("audio", {"downloadCode": "1", "recognition": "Where is it?"}, []),
        ("file", {"downloadCode": "1", "fileName": "A.PNG"}, [("image", "1", "A.PNG")]),
        ("file", {"downloadCode": "1", "fileName": "a.m4a"}, [("audio", "1", "a.m4a")]),
        ("file", {"downloadCode": "1", "fileName": "a.pdf"}, []),
        ("video", {"downloadCode": "1", "videoType": "mp4"}, []),
        (
            "richText",
            {"richText": [{"text": "a"}, {"type": "picture", "downloadCode": "1"}]},
            [("image", "1", "")],
        ),
        ("picture", {"downloadCode": None}, []),
        ("picture", {"downloadCode": "x" * 5000}, []),
        ("picture", {}, []),
    ],
)
def test_pictures_and_voice_are_noted_by_their_code(
    channel: DingTalkChannel, msgtype: str, content: Payload, files: list[tuple[str, str, str]]
) -> None:
    event = event_of(channel, dingtalk.message(msgtype=msgtype, content=content))
    assert [(each.kind, each.ref, each.name) for each in event.files] == files


@pytest.mark.parametrize("fields", [{"msgId": ""}, {"conversationId": "x" * 300}, {"text": "hi"}])
def test_what_is_out_of_its_bounds_is_no_event(channel: DingTalkChannel, fields: Payload) -> None:
    body = dingtalk.encode({**dingtalk.message("hi"), **fields})
    assert channel.parse(Request("POST", {}, body, time.time())).events == ()


def test_the_check_tells_whether_the_permission_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINGTALK_SECRET", dingtalk.CLIENT_SECRET)
    with dingtalk.DingTalkAPI() as api:
        section = DingTalkSection(
            kind="dingtalk",
            bot="b",
            client_id=dingtalk.CLIENT_ID,
            client_secret=SecretReference(env="DINGTALK_SECRET"),
            api_url=api.url,
        )
        assert [each.level for each in check_dingtalk(section)] == [Level.OK]
        api.errors.append((403, "Forbidden.AccessDenied.AccessTokenPermissionDenied"))
        good, lacking = check_dingtalk(section)
        assert (good.level, lacking.level) == (Level.OK, Level.WARNING)
        assert "pictures" in lacking.detail and "qyapi_robot_sendmsg" in lacking.fix
