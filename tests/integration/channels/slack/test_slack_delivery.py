"""Replies in Slack, against the mock that keeps Slack's rules: parts, streams, doubts, refusals."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from turnmill.infra.mocks.slack.api import TOKEN, SlackAPI
from turnmill.schemas.channels.deliveries import DeliveryKind
from turnmill.schemas.channels.sections.base import SecretReference
from turnmill.schemas.channels.sections.slack import SlackSection
from turnmill.schemas.errors import ChannelUnavailable, DeliveryRefused
from turnmill.schemas.ids import Prefix, new_id, show_id
from turnmill.schemas.settings import DeliverySettings
from turnmill.schemas.turns import TurnState
from turnmill.workers.delivery.base import Job, LeaseLost, Look
from turnmill.workers.delivery.calls.posting import guarded
from turnmill.workers.delivery.slack.adapter import SlackDelivery
from turnmill.workers.delivery.slack.calls import Calls

CHANNEL = "C0GENERAL"
RUNNING = TurnState.RUNNING


class Notes:
    """A memory without a database."""

    def __init__(self) -> None:
        self.value: dict[str, Any] = {}

        self.is_held = True

    def keep(self, **changes: Any) -> None:
        self.value.update(changes)

    def hold(self) -> None:
        if not self.is_held:
            raise LeaseLost


class Thread:
    """One thread with one delivery on its way into it."""

    def __init__(self, slack: SlackAPI, delivery: SlackDelivery, **target: str) -> None:
        self.slack, self.delivery, self.notes = slack, delivery, Notes()
        self.root = slack.board.say("question")
        workspace = slack.board.workspace
        target = target or {"channel": CHANNEL, "thread_ts": self.root.ts}
        self.job = Job(
            delivery_id=new_id(),
            kind=DeliveryKind.REPLY,
            turn_id=new_id(),
            conversation_id=new_id(),
            target={"team": workspace.team, "user": workspace.user, **target},
            text=None,
            is_reply=True,
            is_handed_off=False,
            is_doubtful=False,
        )

    def send(self, text: str | None, *, is_doubtful: bool = False) -> bool:
        job = replace(self.job, text=text, is_doubtful=is_doubtful)
        with guarded(self.notes.hold):
            return self.delivery.send(job, self.notes)

    def show(self, text: str, state: TurnState = RUNNING, **look: Any) -> float | None:
        is_doubtful = look.pop("is_doubtful", False)
        job = replace(self.job, is_doubtful=is_doubtful)
        with guarded(self.notes.hold):
            return self.delivery.show(job, Look(state, text, **look), self.notes)

    @property
    def replies(self) -> list[str]:
        return self.slack.board.replies(CHANNEL, self.root.ts)

    @property
    def status(self) -> str | None:
        return self.slack.board.status(CHANNEL, self.root.ts)

    @property
    def last_blocks(self) -> list[str]:
        return [block["type"] for block in self.slack.board.messages[-1].blocks]


@pytest.fixture
def slack() -> Iterator[SlackAPI]:
    with SlackAPI(limited=False) as api:
        yield api


@pytest.fixture
def delivery(slack: SlackAPI, monkeypatch: pytest.MonkeyPatch) -> SlackDelivery:
    monkeypatch.setattr("turnmill.workers.delivery.slack.calls.POST_EVERY_S", 0.0)
    monkeypatch.setenv("SLACK_TOKEN", TOKEN)
    secret = SecretReference(env="SLACK_TOKEN")
    section = SlackSection(
        kind="slack", bot="bot", bot_token=secret, signing_secret=secret, api_url=slack.url
    )
    return SlackDelivery("slack", section, DeliverySettings(timeout_s=1, lease_s=2))


@pytest.fixture
def thread(slack: SlackAPI, delivery: SlackDelivery) -> Thread:
    return Thread(slack, delivery)


def test_a_reply_stands_in_its_thread_translated_with_buttons_that_name_its_turn(
    slack: SlackAPI, thread: Thread
) -> None:
    assert thread.send("**Yes** & <no>.")
    assert thread.replies == ["*Yes* &amp; &lt;no&gt;."]
    assert thread.last_blocks == ["section", "context_actions", "actions"]
    _, feedback, person = slack.board.messages[-1].blocks
    assert thread.job.turn_id is not None
    assert feedback["block_id"] == f"turnmill:turn_{thread.job.turn_id.hex}"
    (element,) = feedback["elements"]
    assert element["action_id"] == "turnmill_feedback"
    assert [element[f"{kind}_button"]["value"] for kind in ("positive", "negative")] == [
        "good",
        "bad",
    ]
    assert person["elements"][0]["action_id"] == "turnmill_hand_off"


def test_a_notice_has_no_buttons(thread: Thread) -> None:
    thread.job = replace(thread.job, kind=DeliveryKind.NOTICE, is_reply=False, turn_id=None)
    thread.send("Stopped.")
    assert (thread.replies, thread.last_blocks) == (["Stopped."], [])


def test_a_notice_of_a_person_who_answers_has_a_button_back_to_the_bot(
    slack: SlackAPI, thread: Thread
) -> None:
    thread.job = replace(
        thread.job, kind=DeliveryKind.NOTICE, is_reply=False, is_handed_off=True, turn_id=None
    )
    assert thread.send("A person will answer here.")
    assert thread.last_blocks == ["section", "actions"]
    block = slack.board.messages[-1].blocks[1]
    assert block["elements"][0]["action_id"] == "turnmill_resume"
    shown = show_id(Prefix.CONVERSATION, thread.job.conversation_id)
    assert block["block_id"] == f"resume:turnmill:{shown}"


def test_a_reply_of_40000_characters_comes_in_parts_with_buttons_on_the_last(
    slack: SlackAPI, thread: Thread
) -> None:
    code = "```python\n" + "".join(f"x{n} = {n}\n" for n in range(800)) + "```"
    prose = " ".join(f"This is sentence number {n}." for n in range(900))
    text = f"{prose}\n\n{code}\n\n{prose}"[:40_000]
    thread.send(text)
    assert len(thread.replies) >= 13
    assert max(len(reply) for reply in thread.replies) <= 3000
    assert all(reply.count("```") % 2 == 0 for reply in thread.replies)
    for n in range(800):
        assert any(f"\nx{n} = {n}\n" in reply for reply in thread.replies)
    with_buttons = [bool(m.blocks) for m in slack.board.messages if m.user is None]
    assert with_buttons == [False] * (len(with_buttons) - 1) + [True]


def test_a_reply_is_streamed_and_completed_with_what_is_missing(
    slack: SlackAPI, thread: Thread
) -> None:
    assert thread.show("") is not None
    assert thread.status == "is thinking…"
    assert thread.show("One. ") == 1.0
    assert thread.status is None
    thread.show("One. Two. ")
    thread.show("One. Two. ")
    thread.send("One. Two. Three.")
    (message,) = [m for m in slack.board.messages if m.user is None]
    assert message.history == ["One. ", "One. Two. ", "One. Two. Three."]
    assert not message.is_streaming
    assert thread.last_blocks == ["context_actions", "actions"]


def test_what_has_no_room_in_a_stream_follows_in_parts(slack: SlackAPI, thread: Thread) -> None:
    text = "```sh\n" + "".join(f"echo {n}\n" for n in range(2500)) + "```\nDone."
    for end in range(3000, len(text), 3000):
        thread.show(text[:end])
    thread.send(text)
    streamed, *others = thread.replies
    assert 10_000 < len(streamed) <= 12_000
    assert streamed.endswith("\n```")
    assert others[0].startswith("```\n")
    said = [line for reply in thread.replies for line in reply.split("\n") if "echo" in line]
    assert said == [f"echo {n}" for n in range(2500)]
    assert thread.replies[-1].endswith("Done.")


def test_a_reply_that_was_begun_anew_replaces_what_was_streamed(
    slack: SlackAPI, thread: Thread
) -> None:
    thread.show("Once upon a time")
    thread.show("In the beginning")
    thread.send("In the beginning was the word.")
    assert thread.replies == ["In the beginning was the word."]


def test_a_stream_that_slack_ended_by_itself_is_completed_all_the_same(
    slack: SlackAPI, thread: Thread
) -> None:
    thread.show("One. ")
    slack.methods.end_streams()
    thread.send("One. Two.")
    assert thread.replies == ["One. Two."]
    assert thread.notes.value["is_torn"]
    kinds = [block["type"] for block in slack.board.messages[-1].blocks]
    assert kinds == ["section", "context_actions", "actions"]


def test_a_long_stream_that_ended_is_completed_in_sections_above_the_buttons(
    slack: SlackAPI, thread: Thread
) -> None:
    text = " ".join(f"This is sentence number {n}." for n in range(250))
    thread.show(text[:30])
    slack.methods.end_streams()
    thread.send(text)
    message = slack.board.messages[-1]
    assert [block["type"] for block in message.blocks[-2:]] == ["context_actions", "actions"]
    assert message.shown.replace(" ", "") == text.replace(" ", "")


def test_nothing_is_written_to_a_stream_that_slack_ended_before_the_reply_is_complete(
    slack: SlackAPI, thread: Thread
) -> None:
    thread.show("One. ")
    slack.methods.end_streams()
    assert thread.show("One. Two. ") is None
    thread.send("One. Two. Three.")
    assert thread.replies == ["One. Two. Three."]


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("is_doubtful", [True, False])
def test_a_reply_is_posted_anew_if_somebody_deleted_what_was_written_of_it(
    slack: SlackAPI, thread: Thread, streams: bool, is_doubtful: bool
) -> None:
    slack.methods.streams = streams
    thread.show("One. ")
    slack.board.messages.pop()
    thread.send("One. Two.", is_doubtful=is_doubtful)
    assert thread.replies == ["One. Two."]


def test_a_cancelled_turns_stream_that_slack_ended_or_somebody_deleted_is_left(
    slack: SlackAPI, delivery: SlackDelivery
) -> None:
    ended, deleted = Thread(slack, delivery), Thread(slack, delivery)
    deleted.show("One.")
    slack.board.messages.pop()
    ended.show("One.")
    slack.methods.end_streams()
    assert ended.send(None)
    assert deleted.send(None)
    assert (ended.replies, deleted.replies) == (["One."], [])


def test_a_status_in_doubt_is_no_doubt_about_the_reply(slack: SlackAPI, thread: Thread) -> None:
    slack.order("assistant.threads.setStatus", "dies")
    with pytest.raises(ChannelUnavailable) as caught:
        thread.show("")
    assert not caught.value.is_doubtful


def test_a_cancelled_turns_stream_ends_with_what_was_shown(thread: Thread) -> None:
    thread.show("One. Two.")
    assert thread.send(None)
    assert thread.replies == ["One. Two."]
    assert not thread.slack.board.messages[-1].is_streaming


def test_a_cancelled_turn_of_which_nothing_was_shown_leaves_nothing(thread: Thread) -> None:
    thread.show("", TurnState.QUEUED, place=3)
    assert thread.status is not None
    assert not thread.send(None)
    assert (thread.replies, thread.status) == ([], None)


def test_where_a_workspace_does_not_stream_a_message_is_edited(
    slack: SlackAPI, thread: Thread
) -> None:
    slack.methods.streams = False
    for text in ("One.", "One. Two."):
        assert thread.show(text) == 1.0
    thread.send("One. Two. Three.")
    (message,) = [m for m in slack.board.messages if m.user is None]
    assert message.history == ["One.", "One. Two.", "One. Two. Three."]
    assert slack.count("chat.startStream") == 1
    assert thread.last_blocks == ["section", "context_actions", "actions"]


def test_a_direct_message_without_a_thread_is_edited_too(
    slack: SlackAPI, delivery: SlackDelivery
) -> None:
    thread = Thread(slack, delivery, channel="D0ALICE")
    assert thread.show("", TurnState.QUEUED, place=1) is not None
    thread.show("One.")
    thread.send("One. Two.")
    assert slack.board.messages[-1].shown == "One. Two."
    assert slack.board.messages[-1].channel == "D0ALICE"
    assert slack.count("assistant.threads.setStatus") == 0


def test_a_status_says_what_is_waited_for_and_is_refreshed_before_it_vanishes(
    slack: SlackAPI, thread: Thread
) -> None:
    thread.show("", TurnState.WAITING)
    assert thread.status == "is still answering your earlier message…"
    thread.show("", TurnState.QUEUED, place=3, estimate_s=130.0)
    assert thread.status == "is busy: 3 messages before yours, about 3 minutes…"
    before = slack.count("assistant.threads.setStatus")
    thread.show("", TurnState.QUEUED, place=3, estimate_s=125.0)
    assert slack.count("assistant.threads.setStatus") == before
    thread.notes.value["status"]["at"] -= 95
    thread.show("", TurnState.QUEUED, place=3, estimate_s=125.0)
    assert slack.count("assistant.threads.setStatus") == before + 1


@pytest.mark.parametrize("kind", ["dies", "500", "silence"])
@pytest.mark.parametrize("failing", [1, 3])
def test_a_part_in_doubt_is_looked_up_before_it_is_sent_again(
    slack: SlackAPI, thread: Thread, kind: str, failing: int
) -> None:
    text = " ".join(f"This is sentence number {n}." for n in range(400))
    for _ in range(failing - 1):
        slack.order("chat.postMessage", "before").go.set()
    slack.order("chat.postMessage", kind)
    with pytest.raises(ChannelUnavailable) as caught:
        thread.send(text)
    assert caught.value.is_doubtful
    thread.send(text, is_doubtful=True)
    assert " ".join(thread.replies) == text
    assert len(set(thread.replies)) == len(thread.replies) == 5 - (len(text) < 12_000)


@pytest.mark.parametrize("method", ["chat.startStream", "chat.appendStream", "chat.stopStream"])
@pytest.mark.parametrize("kind", ["dies", "500", "silence"])
def test_a_streamed_reply_in_doubt_is_set_right(
    slack: SlackAPI, thread: Thread, method: str, kind: str
) -> None:
    slack.order(method, kind)
    is_doubtful = False
    for step in (lambda: thread.show("One. "), lambda: thread.show("One. Two. ")):
        try:
            step()
        except ChannelUnavailable as error:
            is_doubtful = error.is_doubtful
            break
    if method == "chat.stopStream":
        with pytest.raises(ChannelUnavailable):
            thread.send("One. Two. Three.")
        is_doubtful = True
    assert is_doubtful
    thread.show("One. Two. ", is_doubtful=method != "chat.stopStream")
    thread.send("One. Two. Three.", is_doubtful=True)
    assert thread.replies == ["One. Two. Three."]
    assert not any(m.is_streaming for m in slack.board.messages)


@pytest.mark.parametrize("kind", ["dies", "500"])
def test_an_edited_reply_in_doubt_is_found_again(
    slack: SlackAPI, thread: Thread, kind: str
) -> None:
    slack.methods.streams = False
    slack.order("chat.postMessage", kind)
    with pytest.raises(ChannelUnavailable):
        thread.show("One.")
    thread.show("One. Two.", is_doubtful=True)
    thread.send("One. Two. Three.", is_doubtful=True)
    assert thread.replies == ["One. Two. Three."]


def test_a_limit_is_kept_for_its_method_and_channel(slack: SlackAPI, thread: Thread) -> None:
    slack.order("chat.postMessage", "429", retry_after_s=30)
    for _ in range(2):
        with pytest.raises(ChannelUnavailable) as caught:
            thread.send("hello")
        assert caught.value.retry_after_s is not None
        assert 25 < caught.value.retry_after_s <= 30
        assert not caught.value.is_doubtful
    assert slack.count("chat.postMessage") == 1
    other = Thread(slack, thread.delivery, channel="C0OTHER")
    other.send("hello")
    assert slack.count("chat.postMessage") == 2


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        ("token_revoked", "Install the app again"),
        ("invalid_auth", "Copy it again"),
        ("channel_not_found", "/invite"),
        ("not_in_channel", "/invite"),
        ("is_archived", "Unarchive"),
    ],
)
def test_what_slack_refuses_for_good_says_what_to_do(
    slack: SlackAPI, thread: Thread, error: str, advice: str
) -> None:
    slack.order("chat.postMessage", error)
    with pytest.raises(DeliveryRefused, match=advice) as caught:
        thread.send("hello")
    assert caught.value.reason == error
    assert TOKEN not in caught.value.message


@pytest.mark.parametrize("channel", [CHANNEL, "D0TWOPEOPLE"])
def test_a_slash_command_is_answered_through_its_response_url(
    slack: SlackAPI, delivery: SlackDelivery, channel: str
) -> None:
    slack.methods.troubles[channel] = "not_in_channel"
    url = slack.response_url(channel)
    thread = Thread(slack, delivery, channel=channel, response_url=url, is_command="yes")
    assert thread.show("One.") is None
    text = " ".join(f"This is sentence number {n}." for n in range(1300))
    thread.send(text)
    assert slack.count("chat.postMessage") == 0
    assert slack.count("response_url") == 5
    assert slack.board.messages[-1].blocks[-1]["type"] == "actions"
    with pytest.raises(DeliveryRefused, match="five answers within 30 minutes"):
        Thread(slack, delivery, channel=channel, response_url=url, is_command="yes").send(
            "once more"
        )


def test_a_slash_command_that_is_answered_late_is_answered_by_a_message(
    slack: SlackAPI, delivery: SlackDelivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a person, or after an outage."""
    monkeypatch.setattr("turnmill.infra.mocks.slack.api.USABLE_S", 0.0)
    url = slack.response_url(CHANNEL)
    thread = Thread(slack, delivery, channel=CHANNEL, response_url=url, is_command="yes")
    text = " ".join(f"This is sentence number {n}." for n in range(600))
    slack.order("chat.postMessage", "dies")
    with pytest.raises(ChannelUnavailable) as caught:
        thread.send(text)
    assert caught.value.is_doubtful
    assert thread.send(text, is_doubtful=True)
    first, second = [m for m in slack.board.messages if m.user is None]
    assert first.shown.startswith("<@U0ALICE>This is sentence number 0.")
    assert second.shown.endswith("This is sentence number 599.")
    assert "<@" not in second.shown
    assert [b["type"] for b in second.blocks[-2:]] == ["context_actions", "actions"]


def test_posts_to_one_channel_keep_their_distance(slack: SlackAPI) -> None:
    """Against the mock that counts: none is refused."""
    slack.limits.are_on = True
    calls = Calls(TOKEN, slack.url, 5)
    for n in range(6):
        calls.call("chat.postMessage", CHANNEL, text=str(n))
    assert [m.text for m in slack.board.messages] == [str(n) for n in range(6)]


@pytest.mark.parametrize("known", [{}, {"stream": True}, {"draft": True}])
def test_nothing_is_said_when_the_delivery_is_another_attempts(
    slack: SlackAPI, delivery: SlackDelivery, known: dict[str, bool]
) -> None:
    thread = Thread(slack, delivery)
    if "draft" in known:
        slack.methods.streams = False
    if known:
        thread.show("Hello")
    thread.notes.is_held = False
    count = len(slack.calls)
    tries: list[Callable[[], object]] = [
        lambda: thread.send("Hello, world."),
        lambda: thread.send("Hello, world.", is_doubtful=True),
        lambda: thread.show("Hello, world"),
    ]
    if not known:
        tries += [lambda: thread.show("", place=1)]
    for attempt in tries:
        with pytest.raises(LeaseLost):
            attempt()
    looks = {"conversations.replies", "conversations.history", "auth.test"}
    assert [name for name, _ in slack.calls[count:] if name not in looks] == []


def test_no_slash_command_is_answered_when_the_delivery_is_another_attempts(
    slack: SlackAPI, delivery: SlackDelivery
) -> None:
    url = slack.response_url(CHANNEL)
    thread = Thread(slack, delivery, channel=CHANNEL, response_url=url, is_command="yes")
    thread.notes.is_held = False
    with pytest.raises(LeaseLost):
        thread.send("Hello")
    assert slack.count("response_url") == 0
