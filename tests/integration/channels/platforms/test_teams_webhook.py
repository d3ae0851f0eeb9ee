"""Replies in Teams by a workflow, against the mock that keeps its rules."""

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from tests.adapting import Killed, Reply, long_text
from turnmill.infra.mocks.teams.webhooks import MAX_REQUEST, THREAD, TOKEN, Workflow
from turnmill.schemas.channels.sections.base import SecretReference
from turnmill.schemas.channels.sections.teams_webhook import TeamsWebhookSection
from turnmill.schemas.errors import ChannelUnavailable, DeliveryRefused, SettingsError
from turnmill.schemas.settings import DeliverySettings
from turnmill.workers.delivery.teams.workflow import WorkflowDelivery, card


@pytest.fixture
def workflow() -> Iterator[Workflow]:
    with Workflow() as api:
        yield api


@pytest.fixture
def delivery(workflow: Workflow, monkeypatch: pytest.MonkeyPatch) -> WorkflowDelivery:
    return make(workflow.address, monkeypatch)


def make(address: str, monkeypatch: pytest.MonkeyPatch) -> WorkflowDelivery:
    monkeypatch.setenv("TEAMS_TOKEN", TOKEN)
    monkeypatch.setenv("TEAMS_URL", address)
    token, url = SecretReference(env="TEAMS_TOKEN"), SecretReference(env="TEAMS_URL")
    section = TeamsWebhookSection(kind="teams-webhook", bot="b", token=token, reply_url=url)
    return WorkflowDelivery("t", section, DeliverySettings(timeout_s=1, lease_s=2))


@pytest.fixture
def thread(delivery: WorkflowDelivery) -> Reply:
    return Reply(delivery, conversation=THREAD, message="17")


def test_a_reply_is_a_card_that_says_which_message_it_answers(
    workflow: Workflow, thread: Reply
) -> None:
    assert thread.send("**Yes.**")
    ((_, given),) = workflow.calls
    assert given["type"] == "message"
    assert given["turnmill"] == {"conversation": THREAD, "message": "17"}
    assert workflow.cards[0].text == "**Yes.**"


@pytest.mark.parametrize(
    ("text", "elements"),
    [
        ("One.\nTwo.", [("TextBlock", "One.\n\nTwo.")]),
        ("# Title\n\n- a\n- b", [("TextBlock", "**Title**\n\n• a\n\n• b")]),
        (
            "See:\n```python\nx = 1\n\nif x:\n    y = `2`\n```\nSo.",
            [
                ("TextBlock", "See:"),
                ("CodeBlock", "x = 1\n\nif x:\n    y = `2`"),
                ("TextBlock", "So."),
            ],
        ),
        ("![p](https://a.example/b.png)", [("TextBlock", "[p](https://a.example/b.png)")]),
        ("[x](javascript:a)", [("TextBlock", "x (javascript:a)")]),
    ],
)
def test_a_card_shows_prose_and_code(text: str, elements: list[tuple[str, str]]) -> None:
    shown = [(each["type"], each.get("text") or each["codeSnippet"]) for each in card(text)["body"]]
    assert shown == elements


def test_a_long_reply_comes_in_cards_that_teams_takes(workflow: Workflow, thread: Reply) -> None:
    text = "这是一个句子。" * 3000 + "\n\n" + long_text()
    assert thread.send(text)
    shown = [each.text for each in workflow.cards]
    for n in range(800):
        assert any(f"x{n} = {n}" in each.split("\n") for each in shown)
    assert "".join(shown).count("这是一个句子。") == 3000
    assert max(len(json.dumps(given).encode()) for _, given in workflow.calls) < MAX_REQUEST


@pytest.mark.parametrize("is_legacy", [False, True])
def test_a_limit_is_a_pause_for_all_that_the_workflow_posts(
    workflow: Workflow, delivery: WorkflowDelivery, thread: Reply, is_legacy: bool
) -> None:
    workflow.is_legacy = is_legacy
    workflow.order("post", "429", retry_after_s=7)
    with pytest.raises(ChannelUnavailable) as error:
        thread.send("Yes.")
    pause_s = 10.0 if is_legacy else 7.0
    assert (error.value.retry_after_s, error.value.is_doubtful) == (pause_s, False)
    with pytest.raises(ChannelUnavailable, match="asked to wait"):
        Reply(delivery, conversation="another").send("Yes.")
    assert workflow.cards == []


@pytest.mark.parametrize("kind", ["dies", "500", "silence"])
def test_a_call_in_doubt_is_repeated_and_leaves_at_most_one_part_twice(
    workflow: Workflow, thread: Reply, kind: str
) -> None:
    workflow.order("post", kind)
    with pytest.raises(ChannelUnavailable) as error:
        thread.send("Yes.")
    assert error.value.is_doubtful
    assert thread.send("Yes.", is_doubtful=True)
    assert len(workflow.cards) == (2 if kind == "dies" else 1)


def test_a_refusal_says_what_to_do_and_does_not_show_the_address(
    workflow: Workflow, thread: Reply
) -> None:
    workflow.statuses = [404]
    with pytest.raises(DeliveryRefused, match="reply_url") as error:
        thread.send("Yes.")
    assert (error.value.reason, "made-up" in error.value.message) == ("http_404", False)


def test_an_address_that_is_none_is_found_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="TEAMS_URL holds no URL"):
        make("not an address", monkeypatch)


@pytest.mark.parametrize("steps", range(1, 4))
def test_at_most_one_part_is_there_twice_at_whatever_step_the_worker_is_killed(
    workflow: Workflow, thread: Reply, steps: int
) -> None:
    text = "\n\n".join(f"{n}" + "This is a sentence. " * 400 for n in range(3))
    thread.notes.dies_after = steps - 1
    with suppress(Killed):
        thread.send(text)
    thread.notes.dies_after = None
    assert thread.send(text, is_doubtful=True)
    shown: list[Any] = [each.text for each in workflow.cards]
    assert [int(each[0]) for each in dict.fromkeys(shown)] == [0, 1, 2]
    assert len(shown) <= 4
