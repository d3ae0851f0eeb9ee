"""The mock of Slack's Web API keeps Slack's rules; slack_sdk's own client is the judge."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError

from turnmill.infra.mocks.slack.api import TOKEN, SlackAPI

CHANNEL = "C0GENERAL"


@pytest.fixture
def slack() -> Iterator[SlackAPI]:
    with SlackAPI(limited=False) as api:
        yield api


@pytest.fixture
def client(slack: SlackAPI) -> WebClient:
    return WebClient(TOKEN, base_url=slack.url, timeout=5, retry_handlers=[])


def error(call: Any, **arguments: Any) -> str:
    with pytest.raises(SlackApiError) as caught:
        call(**arguments)
    return str(caught.value.response["error"])


def test_a_message_is_posted_in_its_thread_with_metadata_that_can_be_found_again(
    slack: SlackAPI, client: WebClient
) -> None:
    root = slack.board.say("question")
    metadata = {"event_type": "turnmill_delivery", "event_payload": {"part": 0}}
    posted = client.chat_postMessage(
        channel=CHANNEL, thread_ts=root.ts, text="answer", metadata=metadata
    )
    found = client.conversations_replies(channel=CHANNEL, ts=root.ts, include_all_metadata=True)
    assert [m["text"] for m in found["messages"]] == ["question", "answer"]
    assert found["messages"][1]["metadata"] == metadata
    assert found["messages"][1]["ts"] == posted["ts"]
    plain = client.conversations_replies(channel=CHANNEL, ts=root.ts)
    assert "metadata" not in plain["messages"][1]


def test_replies_come_in_pages(slack: SlackAPI, client: WebClient) -> None:
    root = slack.board.say("question")
    for n in range(5):
        client.chat_postMessage(channel=CHANNEL, thread_ts=root.ts, text=str(n))
    pages = client.conversations_replies(channel=CHANNEL, ts=root.ts, limit=4)
    assert [len(page["messages"]) for page in pages] == [4, 2]


def test_tokens_scopes_and_channels_are_checked(slack: SlackAPI, client: WebClient) -> None:
    answer = client.auth_test()
    assert "chat:write" in answer.headers["x-oauth-scopes"]
    assert answer["bot_id"] == slack.board.workspace.bot_id
    stranger = WebClient("xoxb-stranger", base_url=slack.url)
    assert error(stranger.auth_test) == "invalid_auth"
    assert error(client.chat_postMessage, channel="X1", text="hi") == "channel_not_found"
    slack.methods.troubles[CHANNEL] = "is_archived"
    assert error(client.chat_postMessage, channel=CHANNEL, text="hi") == "is_archived"
    slack.token_error = "token_revoked"  # noqa: S105 - an error's name
    assert error(client.auth_test) == "token_revoked"


def test_lengths_are_limited(slack: SlackAPI, client: WebClient) -> None:
    posted = client.chat_postMessage(channel=CHANNEL, text="x" * 50_000)
    assert len(slack.board.messages[0].text) == 40_000
    section = {"type": "section", "text": {"type": "mrkdwn", "text": "x" * 3001}}
    long = {"channel": CHANNEL, "ts": posted["ts"], "text": "x" * 4001}
    assert error(client.chat_update, **long) == "msg_too_long"
    post = client.chat_postMessage
    assert error(post, channel=CHANNEL, text="x", blocks=[section]) == "invalid_blocks"
    assert error(post, channel=CHANNEL, markdown_text="x" * 12_001) == "msg_too_long"
    with pytest.warns(UserWarning, match="text"):  # of the client, before it sends
        assert error(post, channel=CHANNEL, text="") == "no_text"


def test_a_stream_goes_from_start_over_append_to_stop(slack: SlackAPI, client: WebClient) -> None:
    root = slack.board.say("question")
    place = {"channel": CHANNEL, "thread_ts": root.ts}
    assert error(client.chat_startStream, **place) == "missing_recipient_user_id"
    to = {"recipient_user_id": "U0ALICE", "recipient_team_id": "T0TURNMILL"}
    ts = str(client.chat_startStream(**place, **to, markdown_text="Hel")["ts"])
    client.chat_appendStream(channel=CHANNEL, ts=ts, markdown_text="lo")
    edit = {"channel": CHANNEL, "ts": ts, "text": "changed"}
    assert error(client.chat_update, **edit) == "streaming_state_conflict"
    client.chat_stopStream(channel=CHANNEL, ts=ts, markdown_text="!")
    assert slack.board.replies(CHANNEL, root.ts) == ["Hello!"]
    more = {"channel": CHANNEL, "ts": ts, "markdown_text": "?"}
    assert error(client.chat_appendStream, **more) == "message_not_in_streaming_state"
    assert error(client.chat_stopStream, channel=CHANNEL, ts=ts) == "message_not_in_streaming_state"


def test_a_status_ends_with_a_message(slack: SlackAPI, client: WebClient) -> None:
    root = slack.board.say("question")
    client.assistant_threads_setStatus(
        channel_id=CHANNEL, thread_ts=root.ts, status="is thinking..."
    )
    assert slack.board.status(CHANNEL, root.ts) == "is thinking..."
    client.chat_postMessage(channel=CHANNEL, thread_ts=root.ts, text="answer")
    assert slack.board.status(CHANNEL, root.ts) is None


def test_too_many_calls_are_told_when_to_come_back() -> None:
    with SlackAPI() as slack:
        client = WebClient(TOKEN, base_url=slack.url, retry_handlers=[])
        with pytest.raises(SlackApiError) as caught:
            for n in range(6):
                client.chat_postMessage(channel=CHANNEL, text=str(n))
        assert caught.value.response.status_code == 429
        assert int(caught.value.response.headers["Retry-After"]) >= 1
        client.chat_postMessage(channel="C0OTHER", text="each channel has its own")


def test_failures_come_on_order(slack: SlackAPI, client: WebClient) -> None:
    hasty = WebClient(TOKEN, base_url=slack.url, timeout=1, retry_handlers=[])
    for kind in ("429", "500", "silence", "dies"):
        slack.order("chat.postMessage", kind)
        with pytest.raises((SlackApiError, OSError)):
            hasty.chat_postMessage(channel=CHANNEL, text=kind)
    assert [m.text for m in slack.board.messages] == ["dies"]
    order = slack.order("chat.postMessage", "after")
    thread = threading.Thread(
        target=lambda: client.chat_postMessage(channel=CHANNEL, text="held"), daemon=True
    )
    thread.start()
    assert order.reached.wait(5)
    assert slack.board.messages[-1].text == "held"
    order.go.set()
    thread.join(5)
    assert not thread.is_alive()
