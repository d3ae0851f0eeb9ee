"""What Teams sends, in our words, and who is believed."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jwt
import pytest

from turnmill.infra.mocks.teams.activities import (
    APP_ID,
    APP_SECRET,
    Chat,
    Payload,
    claims,
    encode,
    sign,
)
from turnmill.infra.mocks.teams.api import TeamsAPI
from turnmill.infra.mocks.teams.keys import another_key, private_key
from turnmill.producer.channels.base import KeysNeeded, Parsed, Request
from turnmill.producer.channels.teams import keys
from turnmill.producer.channels.teams.channel import TeamsChannel
from turnmill.producer.channels.teams.check import check_teams
from turnmill.schemas.channels.policies import CommandName
from turnmill.schemas.channels.sections.base import SecretReference
from turnmill.schemas.channels.sections.teams import TeamsSection
from turnmill.schemas.channels.teams import Services, message_key
from turnmill.schemas.errors import BadSignature, TransientError


@pytest.fixture
def teams() -> Iterator[TeamsAPI]:
    with TeamsAPI() as api:
        yield api


@pytest.fixture
def channel(teams: TeamsAPI, monkeypatch: pytest.MonkeyPatch) -> TeamsChannel:
    monkeypatch.setenv("TEAMS_SECRET", "made-up")
    return TeamsChannel("t", section(teams.url))


@pytest.fixture
def chat(teams: TeamsAPI) -> Chat:
    return Chat(teams.service)


def section(api_url: str | None) -> TeamsSection:
    secret = SecretReference(env="TEAMS_SECRET")
    return TeamsSection(kind="teams", bot="b", app_id=APP_ID, app_secret=secret, api_url=api_url)


def request_of(payload: Payload, said: Payload | None = None, **how: Any) -> Request:
    signed = sign(encode(payload), said or claims(payload["serviceUrl"]), **how)
    headers = {name.lower(): value for name, value in signed.headers.items()}
    return Request("POST", headers, signed.body, time.time())


def verify(channel: TeamsChannel, request: Request) -> None:
    """As the API does: what needs keys waits for them."""
    try:
        channel.verify(request)
    except KeysNeeded as needed:
        needed.fetching.result(timeout=10)
        channel.verify(request)


def parse(channel: TeamsChannel, payload: Payload) -> Parsed:
    request = request_of(payload)
    verify(channel, request)
    return channel.parse(request)


def event_of(channel: TeamsChannel, payload: Payload) -> Any:
    (event,) = parse(channel, payload).events
    return event


def event_at_microsoft(payload: Payload) -> Any:
    """The event of a bot whose section names no address: files are at Microsoft's hosts."""
    parsed = TeamsChannel("t", section(None)).parse(Request("POST", {}, encode(payload), 0.0))
    (event,) = parsed.events
    return event


def test_a_direct_chat_is_one_conversation_and_so_is_each_thread_of_a_channel(
    channel: TeamsChannel, chat: Chat
) -> None:
    direct = event_of(channel, chat.message("hi"))
    assert (direct.content, direct.author, direct.address.thread) == ("hi", chat.user, chat.direct)
    assert direct.address.target["service"] == chat.service
    thread = event_of(channel, chat.mention("hi", "17"))
    assert (thread.content, thread.address.thread) == ("hi", f"{chat.channel};messageid=17")
    group = event_of(channel, chat.mention("hi", None))
    assert (group.content, group.begins) == ("hi", True)


def test_an_app_id_in_upper_case_is_the_same_app(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, teams: TeamsAPI
) -> None:
    monkeypatch.setenv("TEAMS_SECRET", "made-up")
    app_id = "0000ABCD-0000-4000-8000-000000000001"
    given = section(teams.url).model_dump() | {"app_id": app_id}
    channel = TeamsChannel("t", TeamsSection.model_validate(given))
    verify(channel, request_of(chat.message("hi"), claims(chat.service, app_id.lower())))


def test_what_mentions_nobody_belongs_to_a_thread_that_is_there_and_to_no_group_chat(
    channel: TeamsChannel, chat: Chat
) -> None:
    in_channel = chat.mention("hi", entities=[], text="And then?")
    event = event_of(channel, in_channel)
    assert (event.content, event.begins) == ("And then?", False)
    in_group = chat.mention("hi", None, entities=[], text="hi")
    assert parse(channel, in_group).ignored == "not_addressed"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<at>Turnmill</at>&nbsp;hi", "hi"),
        ("hi <at>Turnmill</at>", "hi"),
        ("`<at>Turnmill</at>` <at>Turnmill</at> what is it?", "`<at>Turnmill</at>`  what is it?"),
        ("<at>Turnmill</at> see\n```\n<at>Turnmill</at>\n```", "see\n```\n<at>Turnmill</at>\n```"),
        ("<at>Turnmill</at> ask <at>Bob</at>", "ask @Bob B"),
    ],
)
def test_the_bots_mention_is_cut_out_but_not_in_code(
    channel: TeamsChannel, chat: Chat, text: str, shown: str
) -> None:
    mentions = [("<at>Turnmill</at>", chat.bot, "Turnmill"), ("<at>Bob</at>", "29:bob", "Bob B")]
    entities = [
        {"type": "mention", "text": mark, "mentioned": {"id": who, "name": name}}
        for mark, who, name in mentions
    ]
    assert event_of(channel, chat.mention("", text=text, entities=entities)).content == shown


def test_files_are_named_and_teams_own_html_is_none(channel: TeamsChannel, chat: Chat) -> None:
    event = event_of(channel, chat.message("look", attachments=[chat.file("a.pdf")]))
    said, named = (part.text for part in event.content)
    assert (said, "a.pdf" in named) == ("look", True)


URL = "https://smba.trafficmanager.net/emea/v3/attachments/1/views/original"
DRIVE = "https://contoso-my.sharepoint.com/download.aspx?tempauth=x"
CARD = "application/vnd.microsoft.card.adaptive"


@pytest.mark.parametrize(
    ("attached", "files"),
    [
        (lambda chat: chat.picture(URL), [("image", URL, "")]),
        (lambda chat: [chat.file("Voice.M4A", DRIVE)], [("audio", DRIVE, "Voice.M4A")]),
        (lambda chat: [chat.file("a.png", DRIVE)], [("image", DRIVE, "a.png")]),
        (lambda chat: [chat.file("a.pdf", DRIVE)], []),
        (lambda chat: [chat.file("a.png", "")], []),
        (lambda chat: [{**chat.file("", DRIVE), "content": {"downloadUrl": 5}}], []),
        (lambda chat: [{"contentType": CARD, "content": {"type": "AdaptiveCard"}}], []),
        (lambda _: [{"contentType": "image/png", "contentUrl": "data:image/png;base64,AA=="}], []),
        (lambda _: [{"contentType": "image/png", "contentUrl": None, "content": "x"}], []),
    ],
)
def test_pictures_and_sounds_are_noted_by_their_address(
    channel: TeamsChannel,
    chat: Chat,
    attached: Callable[[Chat], list[Payload]],
    files: list[tuple[str, str, str]],
) -> None:
    event = event_at_microsoft(chat.message("look", attachments=attached(chat)))
    assert [(each.kind, each.ref, each.name) for each in event.files] == files


@pytest.mark.parametrize(
    "url",
    [
        "https://eu-api.asm.skype.com/v1/objects/0-weu/views/imgo",
        "https://a.example/cat.png",
        "https://onedrive.live.com/download?resid=1",
        "https://smba.trafficmanager.net/emea/v3/conversations/a/activities",
    ],
)
def test_a_picture_at_another_site_is_named_and_not_fetched(
    channel: TeamsChannel, chat: Chat, url: str
) -> None:
    for attached in (chat.picture(url), [chat.file("a.png", url)]):
        event = event_at_microsoft(chat.message("look", attachments=attached))
        said, named = (part.text for part in event.content)
        assert (said, named.startswith("[file: "), event.files) == ("look", True, ())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"type": "messageUpdate"}, "edit"),
        ({"type": "conversationUpdate"}, "unknown"),
        ({"type": "installationUpdate"}, "unknown"),
        ({"from": {"id": "28:another"}}, "bot"),
        ({"from": {"id": "29:x", "role": "bot"}}, "bot"),
        ({"from": {"id": f"28:{APP_ID}"}}, "own"),
        ({"type": "invoke", "name": "composeExtension/query"}, "invoke"),
        ({"text": "", "value": {"another": "app's card"}}, "action"),
        ({"conversation": {"id": "x" * 300}}, "unknown"),
        ({"id": 7}, "unknown"),
    ],
)
def test_what_is_no_message_to_the_bot_is_named(
    channel: TeamsChannel, chat: Chat, change: Payload, word: str
) -> None:
    parsed = parse(channel, chat.message("hi", **change))
    assert (parsed.events, parsed.ignored) == ((), word)


def test_thumbs_and_reactions_are_ratings_of_the_message_they_stand_at(
    channel: TeamsChannel, chat: Chat
) -> None:
    judged = parse(channel, chat.judged("99", "dislike", "Too long."))
    (rating,) = judged.events
    assert (rating.score, rating.comment, rating.turn_id) == (-1, "Too long.", None)
    assert rating.message_id == message_key(chat.direct, "99")
    assert judged.answer.body == b"{}"
    in_thread = chat.place(f"{chat.channel};messageid=17", "channel")
    rating = event_of(channel, chat.judged("99", conversation=in_thread))
    assert rating.message_id == message_key(chat.channel, "99")
    assert event_of(channel, chat.reacted("99")).score == 1
    assert event_of(channel, chat.reacted("99", "1f44e_thumbsdown")).score == -1
    assert event_of(channel, chat.reacted("99", is_removed=True)).score == 0
    assert parse(channel, chat.reacted("99", "sad")).ignored == "reaction"


def test_a_button_acts_in_the_thread_that_it_names_within_its_chat(
    channel: TeamsChannel, chat: Chat
) -> None:
    here = chat.place(chat.channel, "channel")
    thread = f"{chat.channel};messageid=17"
    pressed = chat.pressed({"turnmill": "hand_off", "thread": thread}, conversation=here)
    event = event_of(channel, pressed)
    assert (event.name, event.address.thread) == (CommandName.HAND_OFF, thread)
    forged = chat.pressed({"turnmill": "resume", "thread": "19:another@thread.tacv2"})
    assert event_of(channel, forged).address.thread == chat.direct


def changed(chat: Chat, **changes: Any) -> dict[str, Any]:
    return {"said": claims(chat.service) | changes}


def test_a_token_is_believed_only_if_all_of_it_is_right(channel: TeamsChannel, chat: Chat) -> None:
    now = int(time.time())
    verify(channel, request_of(chat.message("hi")))
    wrong: list[dict[str, Any]] = [
        changed(chat, iss="https://sts.windows.net/x/"),
        changed(chat, aud="another-app"),
        changed(chat, aud=None),
        changed(chat, exp=now - 330),
        changed(chat, nbf=now + 330),
        changed(chat, serviceurl="https://smba.trafficmanager.net/emea/"),
        changed(chat, serviceurl=None),
        {"key": another_key()},
        {"key_id": "unknown"},
    ]
    for how in wrong:
        with pytest.raises(BadSignature):
            verify(channel, request_of(chat.message("hi"), **how))
    for nearly in (changed(chat, exp=now - 200), changed(chat, nbf=now + 200)):
        verify(channel, request_of(chat.message("hi"), **nearly))


def test_a_token_without_a_signature_or_with_a_public_keys_is_refused(
    channel: TeamsChannel, chat: Chat
) -> None:
    request = request_of(chat.message("hi"))
    verify(channel, request)
    said = claims(chat.service)
    for algorithm, key in (("none", None), ("HS256", "x" * 32)):
        token = jwt.encode(said, key, algorithm=algorithm, headers={"kid": "turnmill-mock"})
        forged = Request("POST", {"authorization": f"Bearer {token}"}, request.body, time.time())
        with pytest.raises(BadSignature):
            verify(channel, forged)
    token = jwt.encode(said, private_key(), algorithm="RS384", headers={"kid": "turnmill-mock"})
    forged = Request("POST", {"authorization": f"Bearer {token}"}, request.body, time.time())
    with pytest.raises(BadSignature):
        verify(channel, forged)


def test_a_key_speaks_only_for_the_platforms_that_it_is_endorsed_for(
    channel: TeamsChannel, chat: Chat
) -> None:
    with pytest.raises(BadSignature, match="endorsed"):
        verify(channel, request_of(chat.message("hi", channelId="webchat")))


@pytest.mark.parametrize(
    ("url", "is_trusted"),
    [
        ("https://smba.trafficmanager.net/emea/", True),
        ("https://smba.infra.gcc.teams.microsoft.com/teams", True),
        ("http://smba.trafficmanager.net/emea/", False),
        ("https://evil.trafficmanager.net/", False),
        ("https://smba.trafficmanager.net.evil.example/", False),
        ("https://smba.trafficmanager.net:8443/", False),
        ("https://smba.trafficmanager.net@evil.example/", False),
        ("https://evil.example/.teams.microsoft.com", False),
        ("https://evil.example\\.teams.microsoft.com/", False),
        ("https://evil.example#.teams.microsoft.com", False),
        ("https://[::1/", False),
        ("", False),
    ],
)
def test_replies_go_to_microsofts_own_hosts_alone(url: str, is_trusted: bool) -> None:
    assert Services.of(section(None)).is_trusted(url) is is_trusted


def test_another_serviceurl_than_microsofts_is_refused_though_it_is_signed(
    channel: TeamsChannel, chat: Chat
) -> None:
    elsewhere = "https://evil.example/teams/"
    with pytest.raises(BadSignature, match="no address of Teams"):
        verify(channel, request_of(chat.message("hi", serviceUrl=elsewhere)))


def test_keys_are_fetched_once_and_not_for_rubbish(
    channel: TeamsChannel, chat: Chat, teams: TeamsAPI
) -> None:
    rubbish = ["", "Bearer ", "Bearer a.b.c", "Bearer é", "Basic eDp5", "Bearer " + "a" * 9000]
    stale = claims(chat.service) | {"exp": 1, "nbf": 1}
    others = claims(chat.service) | {"aud": "another-app"}
    requests = [Request("POST", {"authorization": each}, b"{}", 0) for each in rubbish]
    requests += [request_of(chat.message("hi"), said) for said in (stale, others)]
    for request in requests:
        with pytest.raises(BadSignature):
            channel.verify(request)
    assert teams.calls == []
    for _ in range(3):
        verify(channel, request_of(chat.message("hi")))
    assert (teams.count("metadata"), teams.count("keys")) == (1, 1)


def test_requests_that_need_keys_at_once_wait_for_the_same_fetch(
    channel: TeamsChannel, chat: Chat, teams: TeamsAPI
) -> None:
    order = teams.order("metadata", "before")
    request = request_of(chat.message("hi"))
    waiting = []
    for _ in range(3):
        with pytest.raises(KeysNeeded) as needed:
            channel.verify(request)
        waiting.append(needed.value.fetching)
    order.go.set()
    for fetching in waiting:
        fetching.result(timeout=10)
    channel.verify(request)
    assert teams.count("keys") == 1


def test_an_unknown_key_is_looked_up_after_a_pause(
    channel: TeamsChannel, chat: Chat, teams: TeamsAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify(channel, request_of(chat.message("hi")))
    for _ in range(3):
        with pytest.raises(BadSignature, match="does not name"):
            verify(channel, request_of(chat.message("hi"), key_id="new"))
    assert teams.count("keys") == 1
    monkeypatch.setattr(keys, "UNKNOWN_PAUSE_S", -1.0)
    with pytest.raises(KeysNeeded) as needed:
        channel.verify(request_of(chat.message("hi"), key_id="new"))
    needed.value.fetching.result(timeout=10)
    assert teams.count("keys") == 2


def test_without_keys_the_activity_is_wanted_again(
    monkeypatch: pytest.MonkeyPatch, chat: Chat
) -> None:
    monkeypatch.setenv("TEAMS_SECRET", "made-up")
    channel = TeamsChannel("t", section("http://127.0.0.1:9"))
    with pytest.raises(TransientError, match="keys cannot be fetched"):
        verify(channel, request_of(chat.message("hi")))


def test_known_keys_serve_on_while_nobody_has_newer_ones(
    channel: TeamsChannel, chat: Chat, teams: TeamsAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify(channel, request_of(chat.message("hi")))
    monkeypatch.setattr(keys, "GOOD_S", -1.0)
    monkeypatch.setattr(keys, "UNKNOWN_PAUSE_S", -1.0)
    teams.order("metadata", "500")
    verify(channel, request_of(chat.message("hi")))
    assert teams.count("metadata") == 2


def test_a_check_asks_for_a_token_and_for_keys_and_shows_no_secret(
    teams: TeamsAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEAMS_SECRET", APP_SECRET)
    details = [finding.detail for finding in check_teams(section(teams.url))]
    assert details == [f"the app is {APP_ID}", "1 signing keys"]
    monkeypatch.setenv("TEAMS_SECRET", "wrong")
    token, _ = check_teams(section(teams.url))
    assert (token.detail, "tenant_id" in token.fix) == ("token: invalid_client", True)
    silent = list(check_teams(section("http://127.0.0.1:9")))
    assert all("does not answer" in finding.detail for finding in silent)
