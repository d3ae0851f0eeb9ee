"""What Slack's payloads become: messages, commands, ratings, or nothing, with the reason."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from turnmill.infra.mocks.slack import events as mock
from turnmill.infra.mocks.slack.payloads import Workspace
from turnmill.producer.channels.base import Parsed, Request
from turnmill.producer.channels.slack.channel import SlackChannel
from turnmill.producer.channels.slack.mrkdwn import plain_text
from turnmill.producer.channels.slack.scopes import BOT_EVENTS, BOT_SCOPES
from turnmill.schemas.channels.events import Command, Rating, UserMessage
from turnmill.schemas.channels.sections.base import SecretReference
from turnmill.schemas.channels.sections.slack import SlackSection
from turnmill.schemas.content import text_of
from turnmill.schemas.errors import BadSignature

ROOT = Path(__file__).parents[4]
SECRET = "0123456789abcdef"  # noqa: S105 - a made-up one
NOW = 1_800_000_000.0
WORKSPACE = Workspace()
TURN = "turn_" + "0" * 32


@pytest.fixture
def slack(monkeypatch: pytest.MonkeyPatch) -> SlackChannel:
    monkeypatch.setenv("SLACK_SECRET", SECRET)
    reference = SecretReference(env="SLACK_SECRET")
    section = SlackSection(
        kind="slack", bot="support", signing_secret=reference, bot_token=reference
    )
    return SlackChannel("acme", section)


def request(signed: mock.Signed) -> Request:
    headers = {name.lower(): value for name, value in signed.headers.items()}
    return Request("POST", headers, signed.body, NOW)


def parse(slack: SlackChannel, signed: mock.Signed) -> Parsed:
    return slack.parse(request(signed))


def event(slack: SlackChannel, payload: dict[str, Any]) -> Any:
    """The event of a payload, or the word that says why there is none."""
    parsed = parse(slack, mock.sign_callback(SECRET, WORKSPACE.callback(payload)))
    return parsed.events[0] if parsed.events else parsed.ignored


def pressed(slack: SlackChannel, action: dict[str, str], **place: Any) -> Any:
    payload = WORKSPACE.pressed(action, **place)
    return parse(slack, mock.sign_interaction(SECRET, payload)).events


# Messages


def test_a_mention_begins_a_conversation_in_its_own_thread(slack: SlackChannel) -> None:
    payload = WORKSPACE.mention("Where is my parcel?")
    message = event(slack, payload)
    assert isinstance(message, UserMessage)
    assert (message.content, message.begins) == ("Where is my parcel?", True)
    assert message.address.thread == f"{WORKSPACE.channel}/{payload['ts']}"
    assert message.address.target == {
        "team": WORKSPACE.team,
        "channel": WORKSPACE.channel,
        "user": WORKSPACE.user,
        "message_ts": payload["ts"],
        "thread_ts": payload["ts"],
    }


def test_a_mention_within_a_thread_belongs_to_it(slack: SlackChannel) -> None:
    message = event(slack, WORKSPACE.mention("And now?", thread_ts="1.000001"))
    assert message.address.thread == f"{WORKSPACE.channel}/1.000001"


def test_a_channels_message_counts_only_where_a_conversation_is(slack: SlackChannel) -> None:
    message = event(slack, WORKSPACE.message("And now?", thread_ts="1.000001"))
    assert (message.address.thread, message.begins) == (f"{WORKSPACE.channel}/1.000001", False)


def test_a_direct_message_is_one_conversation_outside_threads(slack: SlackChannel) -> None:
    first = event(slack, WORKSPACE.direct_message("hi"))
    second = event(slack, WORKSPACE.direct_message("there"))
    threaded = event(slack, WORKSPACE.direct_message("hi", thread_ts="1.000001"))
    assert first.address.thread == second.address.thread == WORKSPACE.direct
    assert "thread_ts" not in first.address.target
    assert threaded.address.thread == f"{WORKSPACE.direct}/1.000001"
    assert first.begins


def test_a_mention_that_comes_as_a_message_too_is_read_once(slack: SlackChannel) -> None:
    mention = WORKSPACE.mention("hi")
    again = {**mention, "type": "message", "channel_type": "channel"}
    assert isinstance(event(slack, mention), UserMessage)
    assert event(slack, again) == "mention"
    # In a direct message there is no app_mention.
    direct = WORKSPACE.direct_message(f"<@{WORKSPACE.bot_user}> hi")
    assert event(slack, direct).content == "hi"


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (WORKSPACE.by_the_bot(), "own"),
        (WORKSPACE.by_the_bot(user=None), "own"),
        (WORKSPACE.message("hi", user=WORKSPACE.bot_user), "own"),
        (WORKSPACE.message("hi", bot_id="B1", app_id="A1"), "bot"),
        (WORKSPACE.mention("hi", bot_id="B1", app_id="A1"), "bot"),
        (WORKSPACE.message("hi", subtype="bot_message", user=None), "bot"),
        (WORKSPACE.direct_message("hi", user="USLACKBOT"), "bot"),
        (WORKSPACE.edited(), "edit"),
        (WORKSPACE.message("hi", subtype="message_deleted"), "edit"),
        (WORKSPACE.message("joined", subtype="channel_join"), "subtype"),
        ({"type": "assistant_thread_started", "assistant_thread": {}}, "unknown"),
        ({"type": "assistant_thread_context_changed"}, "unknown"),
        ({"type": "message"}, "unknown"),
        ({"type": ["message"]}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_what_no_person_wrote_is_ignored(
    slack: SlackChannel, payload: dict[str, Any], reason: str
) -> None:
    assert event(slack, payload) == reason


def test_files_are_named_beside_the_text_and_alone_are_nothing_to_read(slack: SlackChannel) -> None:
    files = [WORKSPACE.file("bill.pdf", "application/pdf"), {"id": "F1", "mode": "tombstone"}]
    with_text = WORKSPACE.direct_message("See this", subtype="file_share", files=files)
    assert text_of(event(slack, with_text).content).splitlines() == [
        "See this",
        "[file: bill.pdf, application/pdf]",
        "[file: unnamed, unknown type]",
    ]
    alone = WORKSPACE.direct_message("", subtype="file_share", files=files)
    assert event(slack, alone).content == ""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<@U0BOT> hi", "hi"),
        ("<@U0BOT|turnmill>: hi", "hi"),
        ("  <@U0BOT>, <@U0BOT> hi", "hi"),
        ("ask <@U0BOT> or <@U0BOB|bob>", "ask @U0BOT or @bob"),
        ("<@U0BOTTLE> hi", "@U0BOTTLE hi"),
        ("in <#C1|general> and <#C2>", "in #general and #C2"),
        ("<!here> <!subteam^S1|@team> <!date^1^{date}|Monday>", "@here @team Monday"),
        ("<!subteam^S1>", "@subteam"),
        ("see <https://a.example/x>", "see https://a.example/x"),
        ("see <https://a.example/x|the page>", "see the page (https://a.example/x)"),
        ("see <http://a.example|a.example>", "see a.example"),
        ("<mailto:a@b.example|a@b.example>", "a@b.example"),
        ("1 &lt; 2 &amp;&amp; 3 &gt; 2, &amp;lt;", "1 < 2 && 3 > 2, &lt;"),
        ("&quot;&nbsp;", "&quot;&nbsp;"),
        ("`<@U0BOT> &lt;b&gt;`", "`<@U0BOT> <b>`"),
        ("```\ncurl <https://a.example|a.example>\n<@U1>\n``` <@U1|al>", None),
        ("שלום <@U0BOT> 👩‍👩‍👧", "שלום @U0BOT 👩‍👩‍👧"),
        ("a <b", "a <b"),
        ("", ""),
    ],
)
def test_markup_becomes_what_was_typed(text: str, shown: str | None) -> None:
    if shown is None:
        shown = "```\ncurl a.example\n<@U1>\n``` @al"
    assert plain_text(text, "U0BOT") == shown


# Commands, buttons, reactions


def test_a_slash_command_is_a_message_that_everybody_sees(slack: SlackChannel) -> None:
    fields = WORKSPACE.slash_command("Where is <@U1|al>?")
    parsed = parse(slack, mock.sign_command(SECRET, fields))
    (message,) = parsed.events
    assert isinstance(message, UserMessage)
    assert (message.content, message.event_id) == ("Where is @al?", fields["trigger_id"])
    assert message.address.thread == f"{WORKSPACE.channel}/@{WORKSPACE.user}"
    assert message.address.target["response_url"] == fields["response_url"]
    assert message.address.target["is_command"] == "yes"
    assert json.loads(slack.acknowledge(parsed, []).body) == {"response_type": "in_channel"}


@pytest.mark.parametrize("word", ["stop", "Reset "])
def test_stop_and_reset_are_commands(slack: SlackChannel, word: str) -> None:
    parsed = parse(slack, mock.sign_command(SECRET, WORKSPACE.slash_command(word)))
    (command,) = parsed.events
    assert isinstance(command, Command)
    assert command.name == word.strip().lower()
    assert slack.acknowledge(parsed, []).body == b""


@pytest.mark.parametrize("text", ["", " ", "help", "HELP"])
def test_help_is_answered_at_once_to_its_author_alone(slack: SlackChannel, text: str) -> None:
    parsed = parse(slack, mock.sign_command(SECRET, WORKSPACE.slash_command(text, "/ask-us")))
    shown = json.loads(parsed.answer.body)
    assert parsed.events == ()
    assert shown["response_type"] == "ephemeral"
    assert "/ask-us stop" in shown["text"]


@pytest.mark.parametrize(("value", "score"), [("good", 1), ("bad", -1)])
def test_a_feedback_button_rates_its_turn(slack: SlackChannel, value: str, score: int) -> None:
    action = {
        "action_id": "turnmill_feedback",
        "block_id": f"turnmill:{TURN}",
        "value": value,
        "type": "feedback_buttons",
    }
    (rating,) = pressed(slack, action, ts="2.000001", thread_ts="1.000001")
    assert isinstance(rating, Rating)
    assert (rating.turn_id, rating.score) == (TURN, score)
    assert (rating.author, rating.address.thread) == (WORKSPACE.user, "C0GENERAL/1.000001")


def test_hand_off_and_resume_buttons_are_commands_of_their_thread(slack: SlackChannel) -> None:
    for action, name in (("turnmill_hand_off", "hand_off"), ("turnmill_resume", "resume")):
        (command,) = pressed(slack, {"action_id": action}, ts="2.000001", thread_ts="1.000001")
        assert (command.name, command.address.thread) == (name, "C0GENERAL/1.000001")
    block = {"action_id": "turnmill_hand_off", "block_id": f"hand_off:turnmill:{TURN}"}
    (command,) = pressed(slack, block, ts="2.000001")
    assert (command.turn_id, command.address.target["is_command"]) == (TURN, "yes")
    conversation = f"conv_{0:032x}"
    block = {"action_id": "turnmill_resume", "block_id": f"resume:turnmill:{conversation}"}
    (command,) = pressed(slack, block, ts="2.000001")
    assert (command.turn_id, command.conversation_id) == (None, conversation)
    (direct,) = pressed(slack, {"action_id": "turnmill_hand_off"}, ts="2.000001", direct=True)
    assert direct.address.thread == WORKSPACE.direct


def test_each_press_is_an_event_of_its_own_and_its_repetition_is_not(slack: SlackChannel) -> None:
    payload = WORKSPACE.pressed({"action_id": "turnmill_resume"}, ts="2.000001")
    signed = mock.sign_interaction(SECRET, payload)
    ids = [parse(slack, signed).events[0].event_id for _ in range(2)]
    (other,) = pressed(slack, {"action_id": "turnmill_resume"}, ts="2.000001")
    assert ids[0] == ids[1] != other.event_id


@pytest.mark.parametrize(
    "action",
    [
        {"action_id": "somebody_elses"},
        {"action_id": "turnmill_feedback", "block_id": "another", "value": "good"},
        {"value": "good"},
    ],
)
def test_other_buttons_are_ignored(slack: SlackChannel, action: dict[str, str]) -> None:
    assert pressed(slack, action, ts="2.000001") == ()


def test_other_interactions_are_ignored(slack: SlackChannel) -> None:
    assert parse(slack, mock.sign_interaction(SECRET, {"type": "view_submission"})).events == ()


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"reaction": "+1"}, 1),
        ({"reaction": "thumbsup::skin-tone-2"}, 1),
        ({"reaction": "-1"}, -1),
        ({"reaction": "-1", "type": "reaction_removed"}, 0),
        ({"reaction": "tada"}, "reaction"),
        ({"reaction": "+1", "item_user": "U0BOB"}, "reaction"),
        ({"reaction": "+1", "user": "U0BOT"}, "own"),
    ],
)
def test_a_thumb_on_the_bots_message_rates_it(
    slack: SlackChannel, fields: dict[str, str], found: int | str
) -> None:
    rating = event(slack, WORKSPACE.reaction("2.000001", **fields))
    if isinstance(found, str):
        assert rating == found
    else:
        assert (rating.score, rating.message_id) == (found, "2.000001")
        assert rating.address.target["channel"] == WORKSPACE.channel


# Slack's own requests


def test_the_challenge_is_answered(slack: SlackChannel) -> None:
    challenge = {"type": "url_verification", "token": "x", "challenge": "3eZbrw"}
    parsed = parse(slack, mock.sign_callback(SECRET, challenge))
    assert json.loads(parsed.answer.body) == {"challenge": "3eZbrw"}


def test_a_check_of_the_certificate_needs_no_signature_and_does_nothing(
    slack: SlackChannel,
) -> None:
    fields = "ssl_check=1&token=x&" + "command=%2Fask&text=hi&channel_id=C1&user_id=U1&trigger_id=1"
    check = Request("POST", {"content-type": mock.FORM}, fields.encode(), NOW)
    slack.verify(check)
    parsed = slack.parse(check)
    assert (parsed.events, parsed.answer.body) == ((), b"")


def test_without_a_signing_secret_no_request_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLACK_SECRET", SECRET)
    token = SecretReference(env="SLACK_SECRET")
    section = SlackSection(kind="slack", bot="support", bot_token=token, app_token=token)
    with pytest.raises(BadSignature):
        SlackChannel("acme", section).verify(request(mock.sign("", b"{}", at=NOW)))


# What the app asks for


def test_the_manifest_asks_for_what_the_code_uses() -> None:
    manifest = yaml.safe_load((ROOT / "infra/samples/slack-manifest.yaml").read_text())
    assert manifest["oauth_config"]["scopes"]["bot"] == sorted(BOT_SCOPES)
    subscriptions = manifest["settings"]["event_subscriptions"]
    assert subscriptions["bot_events"] == sorted(BOT_EVENTS)
    addresses = {
        subscriptions["request_url"],
        manifest["settings"]["interactivity"]["request_url"],
        *(command["url"] for command in manifest["features"]["slash_commands"]),
    }
    assert addresses == {"https://YOUR-HOST/channels/acme-slack"}


def test_the_guide_explains_every_scope() -> None:
    guide = (ROOT / "docs/channels/slack.md").read_text()
    assert [scope for scope in BOT_SCOPES if f"`{scope}`" not in guide] == []
