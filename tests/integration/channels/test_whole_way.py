"""The whole way, in processes of their own: an event of Slack comes in, its reply goes back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conversing import prompt_of
from turnmill.infra.mocks.slack.api import TOKEN, SlackAPI
from turnmill.infra.mocks.slack.events import (
    Try,
    deliver,
    sign_callback,
    sign_command,
    sign_interaction,
)
from turnmill.producer.turns import read_conversation

SECRET = "whole-way-signing-secret"  # noqa: S105

pytestmark = pytest.mark.parametrize("broker_url", ["valkey"], indirect=True)


class Slack:
    """A workspace: what it sends to our API, and what our delivery worker posts to it."""

    def __init__(self, api: SlackAPI, url: str) -> None:
        self.secret = SECRET
        self.board = api.board
        self.workspace = api.board.workspace
        self.response_url = api.response_url
        self.url = url

    def mention(self, text: str, **fields: Any) -> str:
        """Mention the bot; the message's `ts`."""
        event = self.workspace.mention(text, **fields)
        self.send(event)
        return str(event["ts"])

    def send(self, event: dict[str, Any]) -> None:
        self._accept(deliver(self.url, sign_callback(self.secret, self.workspace.callback(event))))

    def press(self, action: dict[str, Any], message: Any) -> None:
        place = {"ts": message.ts, "thread_ts": message.thread_ts}
        payload = self.workspace.pressed(action, **place)
        self._accept(deliver(self.url, sign_interaction(self.secret, payload)))

    def command(self, text: str) -> None:
        fields = self.workspace.slash_command(text)
        fields["response_url"] = self.response_url(self.workspace.channel)
        self._accept(deliver(self.url, sign_command(self.secret, fields)))

    def replies(self, ts: str) -> list[str]:
        return self.board.replies(self.workspace.channel, ts)

    def last(self, ts: str) -> Any:
        return self.board.thread(self.workspace.channel, ts)[-1]

    @staticmethod
    def _accept(tries: list[Try]) -> None:
        assert tries[-1].is_accepted, tries


@pytest.fixture
def slack(channels: Any, eventually: Callable[..., None]) -> Any:
    with SlackAPI(limited=False) as api:
        channels.configure(
            "acme",
            kind="slack",
            signing_secret={"env": "SLACK_SECRET"},
            bot_token={"env": "SLACK_TOKEN"},
            api_url=api.url,
        )
        channels.environment |= {"SLACK_SECRET": SECRET, "SLACK_TOKEN": TOKEN}
        yield Slack(api, f"{channels.serve(eventually)}/channels/acme")


def test_a_mention_is_answered_in_its_thread_and_the_thread_goes_on(
    slack: Slack, channels: Any, eventually: Callable[..., None]
) -> None:
    ts = slack.mention("Where is my parcel?")
    eventually(lambda: len(slack.replies(ts)) == 1 and not slack.last(ts).is_streaming, 40)
    assert "Where is my parcel?" in slack.replies(ts)[0]
    slack.send(slack.workspace.message("And now?", thread_ts=ts))
    eventually(lambda: len(slack.replies(ts)) == 2 and not slack.last(ts).is_streaming, 40)
    assert "And now?" in slack.replies(ts)[1]
    slack.send(slack.workspace.message("Not for the bot"))
    eventually(channels.all_sent)
    assert channels.database.run("SELECT count(*) AS n FROM turns")[0].n == 2


def test_an_interrupted_reply_stops_where_it_is_and_stays_part_of_what_was_said(
    slack: Slack, channels: Any, eventually: Callable[..., None]
) -> None:
    channels.database.run("""UPDATE bots SET policies = '{"double_texting": "interrupt"}'""")
    ts = slack.mention("[[tokens=5000]] Tell me everything.")
    eventually(lambda: slack.replies(ts) and "w10 " in slack.replies(ts)[0], 40)
    seen = slack.replies(ts)[0]
    slack.send(slack.workspace.message("Only the price!", thread_ts=ts))
    # The first reply would take more than 100 s.
    eventually(lambda: len(slack.replies(ts)) == 2 and not slack.last(ts).is_streaming, 60)
    eventually(channels.all_sent)
    first, second = slack.replies(ts)
    assert not any(message.is_streaming for message in slack.board.messages)
    assert (first.startswith(seen), second) == (True, "Only the price!")
    (began,) = channels.database.run("SELECT conversation_id AS id FROM turns WHERE seq = 1")
    turns = read_conversation(channels.database, channels.system.tenant_id, began.id)
    asked, said, again = prompt_of(channels.database, turns[1])
    assert asked == ("user", "[[tokens=5000]] Tell me everything.")
    assert (said[0], said[1].strip()) == ("assistant", first.strip())
    assert again == ("user", "Only the price!")


def test_buttons_and_thumbs_under_a_reply_rate_it(
    slack: Slack, channels: Any, eventually: Callable[..., None]
) -> None:
    ts = slack.mention("Where is my parcel?")
    eventually(lambda: slack.replies(ts) and slack.last(ts).blocks, 40)
    message = slack.last(ts)
    (block,) = (each for each in message.blocks if each["type"] == "context_actions")
    (element,) = block["elements"]
    action = {"action_id": element["action_id"], "block_id": block["block_id"]}
    value = element["negative_button"]["value"]
    slack.press({**action, "type": "feedback_buttons", "value": value}, message)

    def scores() -> list[tuple[Any, int]]:
        rows = channels.database.run("SELECT turn_id, score FROM ratings")
        return [(row.turn_id, row.score) for row in rows]

    (turn,) = channels.database.run("SELECT id FROM turns")
    assert scores() == [(turn.id, -1)]
    eventually(channels.all_sent)
    slack.send(slack.workspace.reaction(message.ts))
    assert scores() == [(turn.id, 1)]


def test_a_slash_command_is_answered_where_it_was_asked(
    slack: Slack, eventually: Callable[..., None]
) -> None:
    slack.command("Where is my parcel?")
    eventually(lambda: any("my parcel" in m.shown for m in slack.board.messages), 40)


def test_a_person_takes_over_by_button_and_gives_back(
    slack: Slack, channels: Any, eventually: Callable[..., None]
) -> None:
    ts = slack.mention("Where is my parcel?")
    eventually(lambda: slack.replies(ts) and slack.last(ts).blocks, 40)
    slack.press({"action_id": "turnmill_hand_off", "block_id": "x"}, slack.last(ts))
    eventually(lambda: len(slack.replies(ts)) == 2)
    slack.send(slack.workspace.message("Is anybody there?", thread_ts=ts))
    slack.send(slack.workspace.message("It is on its way.", thread_ts=ts, user="U0PERSON"))
    slack.press({"action_id": "turnmill_resume", "block_id": "x"}, slack.last(ts))
    eventually(lambda: len(slack.replies(ts)) == 3)
    slack.send(slack.workspace.message("Thanks", thread_ts=ts))
    eventually(lambda: len(slack.replies(ts)) == 4 and "Thanks" in slack.replies(ts)[3], 40)


def test_secrets_in_files_are_rotated_while_everything_runs(
    channels: Any, eventually: Callable[..., None], tmp_path: Path
) -> None:
    secret, token = tmp_path / "secret", tmp_path / "token"
    secret.write_text(SECRET)
    token.write_text(TOKEN)
    with SlackAPI(limited=False) as api:
        files = {"signing_secret": {"file": "secret"}, "bot_token": {"file": "token"}}
        channels.configure("acme", kind="slack", api_url=api.url, **files)
        slack = Slack(api, f"{channels.serve(eventually)}/channels/acme")
        first = slack.mention("before")
        eventually(lambda: len(slack.replies(first)) == 1, 40)
        eventually(channels.all_sent)
        slack.secret, api.tokens = "rotated", {"xoxb-rotated"}
        token.write_text("xoxb-rotated")
        secret.write_text("")  # as it is while it is being written
        event = slack.workspace.mention("after")
        request = sign_callback("rotated", slack.workspace.callback(event))
        assert deliver(slack.url, request, ())[-1].status == 401
        secret.write_text("rotated")
        eventually(lambda: deliver(slack.url, request, ())[-1].is_accepted)
        eventually(lambda: len(slack.replies(event["ts"])) == 1, 40)
        request = sign_callback(SECRET, slack.workspace.callback(slack.workspace.mention("old")))
        assert deliver(slack.url, request, ())[-1].status == 401
