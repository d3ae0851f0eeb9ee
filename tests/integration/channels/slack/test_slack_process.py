"""Replies reach Slack through the real processes."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.delivering import Asked
from turnmill.infra.mocks.slack.api import TOKEN, SlackAPI
from turnmill.producer.cancel import cancel

Eventually = Callable[..., None]
CHANNEL = "C0GENERAL"

on_one_broker = pytest.mark.parametrize("broker_url", ["valkey"], indirect=True)


@pytest.fixture
def slack() -> Iterator[SlackAPI]:
    with SlackAPI() as api:
        yield api


@pytest.fixture
def thread(slack: SlackAPI, channels: Any) -> "Thread":
    token = {"env": "SLACK_TOKEN"}
    fields = {"bot_token": token, "signing_secret": token, "api_url": slack.url}
    channels.configure("slack", kind="slack", **fields)
    channels.environment["SLACK_TOKEN"] = TOKEN
    return Thread(slack, channels)


class Thread(Asked):
    """A thread with one turn."""

    def __init__(self, slack: SlackAPI, channels: Any) -> None:
        super().__init__(channels, "slack")
        self.slack = slack

    def ask_in_thread(self, text: str = "question") -> None:
        root, workspace = self.slack.board.say(text), self.slack.board.workspace
        self.ts = root.ts
        target = {"channel": CHANNEL, "thread_ts": root.ts}
        self.ask(text, **target, user=workspace.user, team=workspace.team)

    @property
    def replies(self) -> list[str]:
        return self.slack.board.replies(CHANNEL, self.ts)

    @property
    def status(self) -> str | None:
        return self.slack.board.status(CHANNEL, self.ts)


def test_a_turn_shows_its_place_then_its_reply_as_it_is_written(
    thread: Thread, eventually: Eventually
) -> None:
    system = thread.channels.system
    thread.channels.deliver(eventually)
    system.start("relay")
    thread.ask_in_thread("one two three four five six seven eight nine ten " * 3)
    eventually(lambda: thread.status == "is about to begin…")
    system.start_worker(TURNMILL_ENGINE__ECHO_TOKEN_S="0.1")  # noqa: S106 - seconds
    eventually(thread.channels.all_sent, 60)
    (reply,) = thread.channels.database.run("SELECT content FROM replies")
    (message,) = [m for m in thread.slack.board.messages if m.user is None]
    assert message.text == reply.content
    assert 0 < len(message.history[0]) < len(message.text), "streamed"
    assert [block["type"] for block in message.blocks] == ["context_actions", "actions"]
    assert thread.slack.limited_count == 0


@on_one_broker
def test_a_cancelled_turns_stream_stays_as_it_was_shown(
    thread: Thread, eventually: Eventually
) -> None:
    thread.channels.deliver(eventually)
    thread.channels.system.start("relay")
    thread.ask_in_thread()
    thread.write("Once upon a time ")
    eventually(lambda: thread.replies == ["Once upon a time "])
    cancel(thread.channels.database, thread.channels.system.tenant_id, thread.turn.turn_id)
    eventually(thread.channels.all_sent)
    assert thread.replies == ["Once upon a time "]
    assert not thread.slack.board.messages[-1].is_streaming


@on_one_broker
def test_a_turn_that_failed_is_answered_with_the_bots_own_words(
    thread: Thread, eventually: Eventually
) -> None:
    thread.channels.deliver(eventually)
    thread.channels.system.start("relay")
    thread.ask_in_thread()
    thread.channels.database.run(
        """UPDATE bots SET policies = '{"texts": {"failed": "Ask Bob."}}'"""
    )
    thread.channels.database.run("UPDATE turns SET state = 'failed', error_code = 'engine_failure'")
    eventually(thread.channels.all_sent)
    assert thread.replies == ["Ask Bob."]


@on_one_broker
def test_a_refusal_is_kept_with_advice(thread: Thread, eventually: Eventually) -> None:
    thread.slack.token_error = "token_revoked"  # noqa: S105 - an error's name
    worker = thread.channels.deliver(eventually)
    thread.channels.system.start("relay")
    thread.ask_in_thread()
    thread.finish("Yes.")
    eventually(lambda: thread.channels.states("slack") == ["failed"])
    (row,) = thread.channels.database.run("SELECT error_code, error_message FROM deliveries")
    assert row.error_code == "token_revoked"
    assert "Install the app again" in row.error_message
    assert not worker.says(TOKEN)
