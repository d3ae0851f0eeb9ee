"""Replies in Teams, against the mock that keeps its rules."""

import json
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.adapting import Killed, Reply, long_text
from turnmill.infra.mocks.teams.activities import APP_ID, APP_SECRET
from turnmill.infra.mocks.teams.api import MAX_MESSAGE, TeamsAPI
from turnmill.schemas.channels.sections.base import SecretReference
from turnmill.schemas.channels.sections.teams import TeamsSection
from turnmill.schemas.channels.teams import message_key
from turnmill.schemas.errors import ChannelUnavailable, DeliveryRefused
from turnmill.schemas.settings import DeliverySettings
from turnmill.workers.delivery.teams.adapter import TeamsDelivery
from turnmill.workers.delivery.teams.markdown import most_bytes, to_teams

THREAD = "19:general@thread.tacv2;messageid=1700000000001"


@pytest.fixture
def teams() -> Iterator[TeamsAPI]:
    with TeamsAPI() as api:
        yield api


@pytest.fixture
def delivery(teams: TeamsAPI, monkeypatch: pytest.MonkeyPatch) -> TeamsDelivery:
    monkeypatch.setenv("TEAMS_SECRET", APP_SECRET)
    secret = SecretReference(env="TEAMS_SECRET")
    section = TeamsSection(
        kind="teams", bot="b", app_id=APP_ID, app_secret=secret, api_url=teams.url
    )
    return TeamsDelivery("t", section, DeliverySettings(timeout_s=1, lease_s=2))


@pytest.fixture
def chat(teams: TeamsAPI, delivery: TeamsDelivery) -> Reply:
    return Reply(
        delivery, service=teams.service, conversation=THREAD, type="channel", message="17",
        bot="28:bot",
    )  # fmt: skip


def test_a_reply_stands_in_its_thread_with_teams_thumbs_and_a_way_to_a_person(
    teams: TeamsAPI, chat: Reply
) -> None:
    assert chat.send("**Yes.**")
    (posted,) = teams.messages
    assert (posted.conversation, posted.text) == (THREAD, "**Yes.**  ")
    assert posted.given["replyToId"] == "17"
    assert posted.given["channelData"] == {"feedbackLoop": {"type": "default"}}
    assert posted.given["entities"][0]["additionalType"] == ["AIGeneratedContent"]
    data = {"turnmill": "hand_off", "thread": THREAD}
    assert [button["data"] for button in posted.buttons] == [data]
    assert chat.notes.value["parts"] == {"0": message_key(THREAD, posted.activity_id)}


def test_a_notice_is_no_work_of_a_model_and_may_give_the_chat_back(
    teams: TeamsAPI, chat: Reply
) -> None:
    assert chat.notify("A person will answer.", is_handed_off=True)
    (posted,) = teams.messages
    assert [button["data"]["turnmill"] for button in posted.buttons] == ["resume"]
    assert "entities" not in posted.given
    assert "channelData" not in posted.given


def test_a_reply_is_edited_while_it_is_written_and_judged_when_it_is_complete(
    teams: TeamsAPI, chat: Reply
) -> None:
    assert chat.show() == 4.0
    assert chat.show("One.") == 3.0
    chat.show("One.")
    assert "channelData" not in teams.messages[0].given
    assert chat.send("One. Two.")
    (posted,) = teams.messages
    assert posted.history == ["One.  ", "One. Two.  "]
    assert posted.given["channelData"]
    assert [teams.count(name) for name in ("typing", "send", "update")] == [1, 1, 1]


def test_a_message_that_somebody_deleted_is_sent_anew(teams: TeamsAPI, chat: Reply) -> None:
    chat.show("One.")
    teams.messages.clear()
    assert chat.send("One. Two.")
    assert teams.texts == ["One. Two.  "]


def test_a_cancelled_turns_message_stays_as_it_was_shown(teams: TeamsAPI, chat: Reply) -> None:
    chat.show("One.")
    assert chat.send(None)
    assert teams.texts == ["One.  "]


def test_a_long_reply_comes_in_messages_that_teams_takes(teams: TeamsAPI, chat: Reply) -> None:
    text = "这是一个句子。" * 3000 + "\n\n" + long_text()
    assert chat.send(text)
    assert all(each.count("```") % 2 == 0 for each in teams.texts)
    for n in range(800):
        assert any(f"\nx{n} = {n}\n" in each for each in teams.texts)
    assert "".join(teams.texts).count("这是一个句子。") == 3000
    given = [json.dumps(g, ensure_ascii=False) for name, g in teams.calls if name == "send"]
    assert MAX_MESSAGE * 0.8 < max(2 * len(each) for each in given) < MAX_MESSAGE
    # Thumbs under the first, by which a judgement is found; the button under the last.
    thumbs = ["channelData" in message.given for message in teams.messages]
    assert thumbs == [True] + [False] * (len(given) - 1)
    assert [bool(m.buttons) for m in teams.messages] == thumbs[::-1]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("# Title\ntext", "**Title**  \ntext  "),
        ("<at>Bob</at> a < b", "&lt;at>Bob&lt;/at> a < b  "),
        ("`<b>` <b>", "`<b>` &lt;b>  "),
        ("```html\n<b>\n```", "```html\n<b>\n```"),
        ("![photo](https://a.example/b.png)", "[photo](https://a.example/b.png)  "),
        ("<https://a.example>", "https://a.example  "),
        ("[x](javascript:alert(1))", "x (javascript:alert(1))  "),
        ("| a | b |\n|---|---|\n| 1 | 2 |", "```\n| a | b |\n|---|---|\n| 1 | 2 |\n```"),
    ],
)
def test_what_a_model_writes_mentions_nobody_and_shows_no_picture(text: str, shown: str) -> None:
    assert to_teams(text) == shown
    assert len(json.dumps(shown).encode("utf-16-le")) <= most_bytes(text)


@pytest.mark.parametrize("kind", ["dies", "500", "silence"])
def test_a_call_in_doubt_is_repeated_and_leaves_at_most_one_part_twice(
    teams: TeamsAPI, chat: Reply, kind: str
) -> None:
    teams.order("send", kind)
    with pytest.raises(ChannelUnavailable) as error:
        chat.send("Yes.")
    assert error.value.is_doubtful
    assert chat.send("Yes.", is_doubtful=True)
    assert len(teams.texts) == (2 if kind == "dies" else 1)


def test_a_limit_is_a_pause_for_its_conversation_alone(
    teams: TeamsAPI, delivery: TeamsDelivery, chat: Reply
) -> None:
    teams.order("send", "429", retry_after_s=7)
    with pytest.raises(ChannelUnavailable) as error:
        chat.send("Yes.")
    assert (error.value.retry_after_s, error.value.is_doubtful) == (7.0, False)
    with pytest.raises(ChannelUnavailable, match="asked to wait"):
        chat.send("Yes.")
    other = Reply(delivery, service=teams.service, conversation="a:1", type="personal")
    assert other.send("Yes.")
    teams.errors = [(412, "PreconditionFailed")]
    with pytest.raises(ChannelUnavailable):
        Reply(delivery, service=teams.service, conversation="a:2").send("No.")


def test_one_token_serves_all_calls_and_is_renewed_when_it_is_taken_no_more(
    teams: TeamsAPI, chat: Reply
) -> None:
    chat.show("One.")
    chat.show("One. Two.")
    assert teams.count("token") == 1
    teams.tokens.clear()
    assert chat.send("One. Two. Three.")
    assert teams.count("token") == 2


def test_a_refusal_names_teams_code_and_what_to_do(
    teams: TeamsAPI, chat: Reply, delivery: TeamsDelivery
) -> None:
    teams.errors = [(403, "BotNotInConversationRoster"), (404, "ConversationNotFound")]
    with pytest.raises(DeliveryRefused, match=r"BotNotInConversationRoster\. .*Add it again"):
        chat.send("Yes.")
    with pytest.raises(DeliveryRefused, match="ConversationNotFound"):
        chat.send("Yes.")


@pytest.mark.parametrize(
    "service", ["https://evil.example/teams/", "http://127.0.0.1:9/", "file:///etc/passwd", ""]
)
def test_the_token_goes_to_no_other_host(
    teams: TeamsAPI, delivery: TeamsDelivery, service: str
) -> None:
    with pytest.raises(DeliveryRefused) as error:
        Reply(delivery, service=service, conversation="a:1").send("Yes.")
    assert error.value.reason == "address_refused"
    assert teams.calls == []


def test_a_wrong_secret_fails_the_delivery_and_is_not_told(
    teams: TeamsAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEAMS_SECRET", "wrong")
    secret = SecretReference(env="TEAMS_SECRET")
    section = TeamsSection(
        kind="teams", bot="b", app_id=APP_ID, app_secret=secret, api_url=teams.url
    )
    delivery = TeamsDelivery("t", section, DeliverySettings(timeout_s=1, lease_s=2))
    with pytest.raises(DeliveryRefused, match="invalid_client") as error:
        Reply(delivery, service=teams.service, conversation="a:1").send("Yes.")
    assert "wrong" not in error.value.message


@pytest.mark.parametrize("steps", range(1, 5))
def test_at_most_one_part_is_there_twice_at_whatever_step_the_worker_is_killed(
    teams: TeamsAPI, chat: Reply, steps: int
) -> None:
    text = "\n\n".join(f"{n}" + "This is a sentence. " * 500 for n in range(4))
    chat.notes.dies_after = steps - 1
    with suppress(Killed):
        chat.send(text)
    chat.notes.dies_after = None
    assert chat.send(text, is_doubtful=True)
    assert [int(each[0]) for each in dict.fromkeys(teams.texts)] == [0, 1, 2, 3]
    assert len(teams.texts) <= 5
