"""Replies reach Slack through the real processes, once, whatever kills the delivery worker."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from turnmill.infra.mocks.slack.api import TOKEN, SlackAPI
from turnmill.producer.accept import accept
from turnmill.producer.cancel import cancel
from turnmill.schemas.store.advance import advance, lock_conversations
from turnmill.workers.delivery.markdown import split

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


class Thread:
    """A thread with one turn, which the test itself answers where no worker runs."""

    def __init__(self, slack: SlackAPI, channels: Any) -> None:
        self.slack, self.channels, self.database = slack, channels, channels.database
        self.system = channels.system

    def ask(self, text: str = "question") -> None:
        root, workspace = self.slack.board.say(text), self.slack.board.workspace
        self.ts = root.ts
        self.turn = accept(self.database, self.system.request(text))
        target = {"channel": CHANNEL, "thread_ts": root.ts}
        target |= {"user": workspace.user, "team": workspace.team}
        self.channels.owe(self.turn, "slack", **target)

    def write(self, text: str) -> None:
        """The model writes more of the reply."""
        turn_id = self.turn.turn_id
        self.database.run("UPDATE turns SET state = 'running' WHERE id = %s", (turn_id,))
        self.database.run(
            "INSERT INTO chunks SELECT %s, count(*), %s, 1 FROM chunks WHERE turn_id = %s",
            (turn_id, text, turn_id),
        )

    def finish(self, text: str) -> None:
        turn = self.turn
        with self.database.cursor() as cursor:
            lock_conversations(cursor, [turn.conversation_id])
            cursor.execute(
                "INSERT INTO replies (turn_id, attempt, content, finish_reason, prompt_tokens, "
                "completion_tokens) VALUES (%s, 1, %s, 'stop', 1, 1)",
                (turn.turn_id, text),
            )
            cursor.execute("DELETE FROM chunks WHERE turn_id = %s", (turn.turn_id,))
            cursor.execute("DELETE FROM outbox WHERE turn_id = %s", (turn.turn_id,))
            cursor.execute("UPDATE turns SET state = 'completed' WHERE id = %s", (turn.turn_id,))
            advance(cursor, [turn.conversation_id])

    @property
    def replies(self) -> list[str]:
        return self.slack.board.replies(CHANNEL, self.ts)

    @property
    def status(self) -> str | None:
        return self.slack.board.status(CHANNEL, self.ts)


def test_a_turn_shows_its_place_then_its_reply_as_it_is_written(
    thread: Thread, eventually: Eventually
) -> None:
    system = thread.system
    thread.channels.deliver(eventually)
    system.start("relay")
    thread.ask("one two three four five six seven eight nine ten " * 3)
    eventually(lambda: thread.status == "is about to begin…")
    system.start_worker(TURNMILL_ENGINE__ECHO_TOKEN_S="0.1")  # noqa: S106 - seconds
    eventually(thread.channels.all_sent, 60)
    (reply,) = thread.database.run("SELECT content FROM replies")
    (message,) = [m for m in thread.slack.board.messages if m.user is None]
    assert message.text == reply.content
    assert 0 < len(message.history[0]) < len(message.text), "streamed"
    assert [block["type"] for block in message.blocks] == ["context_actions", "actions"]
    assert not any("429" in str(call) for call in thread.slack.calls)


@on_one_broker
def test_a_cancelled_turns_stream_stays_as_it_was_shown(
    thread: Thread, eventually: Eventually
) -> None:
    thread.channels.deliver(eventually)
    thread.system.start("relay")
    thread.ask()
    thread.write("Once upon a time ")
    eventually(lambda: thread.replies == ["Once upon a time "])
    cancel(thread.database, thread.system.tenant_id, thread.turn.turn_id)
    eventually(thread.channels.all_sent)
    assert thread.replies == ["Once upon a time "]
    assert not thread.slack.board.messages[-1].is_streaming


@on_one_broker
def test_a_turn_that_failed_is_answered_with_the_bots_own_words(
    thread: Thread, eventually: Eventually
) -> None:
    thread.channels.deliver(eventually)
    thread.system.start("relay")
    thread.ask()
    thread.database.run("""UPDATE bots SET policies = '{"texts": {"failed": "Ask Bob."}}'""")
    thread.database.run("UPDATE turns SET state = 'failed', error_code = 'engine_failure'")
    eventually(thread.channels.all_sent)
    assert thread.replies == ["Ask Bob."]


@on_one_broker
def test_a_refusal_is_kept_with_advice(thread: Thread, eventually: Eventually) -> None:
    thread.slack.token_error = "token_revoked"  # noqa: S105 - an error's name
    worker = thread.channels.deliver(eventually)
    thread.system.start("relay")
    thread.ask()
    thread.finish("Yes.")
    eventually(lambda: thread.channels.states("slack") == ["failed"])
    (row,) = thread.database.run("SELECT error_code, error_message FROM deliveries")
    assert row.error_code == "token_revoked"
    assert "Install the app again" in row.error_message
    assert not worker.says(TOKEN)


WHOLE = " ".join(f"This is sentence number {n}." for n in range(200))


@on_one_broker
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(
    "method",
    ["assistant.threads.setStatus", "chat.startStream", "chat.appendStream", "chat.stopStream"],
)
def test_a_streamed_reply_is_there_once_whenever_the_worker_is_killed(
    thread: Thread, eventually: Eventually, method: str, moment: str
) -> None:
    held = thread.slack.order(method, moment)
    victim = thread.channels.deliver(eventually)
    thread.system.start("relay")
    thread.ask()
    for end in (30, 60):
        if method != "assistant.threads.setStatus" and not held.reached.is_set():
            thread.write(WHOLE[end - 30 : end])
            eventually(lambda end=end: held.reached.is_set() or thread.replies == [WHOLE[:end]])
    if method == "chat.stopStream":
        thread.finish(WHOLE)
    assert held.reached.wait(20)
    victim.kill()
    held.go.set()
    if method != "chat.stopStream":
        thread.finish(WHOLE)
    thread.channels.deliver(eventually)
    eventually(thread.channels.all_sent, 30)
    assert thread.replies == ([WHOLE] if method != "assistant.threads.setStatus" else _parts())
    assert not any(message.is_streaming for message in thread.slack.board.messages)


@on_one_broker
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("part", [0, 1])
def test_a_reply_in_parts_is_there_once_whenever_the_worker_is_killed(
    thread: Thread, eventually: Eventually, part: int, moment: str
) -> None:
    for _ in range(part):
        thread.slack.order("chat.postMessage", "before").go.set()
    held = thread.slack.order("chat.postMessage", moment)
    victim = thread.channels.deliver(eventually)
    thread.system.start("relay")
    thread.ask()
    thread.finish(WHOLE)
    assert held.reached.wait(20)
    victim.kill()
    held.go.set()
    thread.channels.deliver(eventually)
    eventually(thread.channels.all_sent, 30)
    assert thread.replies == _parts()


@on_one_broker
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("method", ["chat.postMessage", "chat.update"])
def test_an_edited_reply_is_there_once_whenever_the_worker_is_killed(
    thread: Thread, eventually: Eventually, method: str, moment: str
) -> None:
    thread.slack.methods.streams = False
    held = thread.slack.order(method, moment)
    victim = thread.channels.deliver(eventually)
    thread.system.start("relay")
    thread.ask()
    thread.write(WHOLE[:30])
    if method == "chat.update":
        eventually(lambda: thread.replies)
        thread.write(WHOLE[30:60])
    assert held.reached.wait(20)
    victim.kill()
    held.go.set()
    thread.finish(WHOLE)
    thread.channels.deliver(eventually)
    eventually(thread.channels.all_sent, 30)
    assert thread.replies == _parts()


def _parts() -> list[str]:
    return split(WHOLE, 3000)
