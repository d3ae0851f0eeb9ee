"""Customers, the bot and the team in one conversation of Chatwoot, through real processes."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.conversing import prompt_of
from turnmill.infra.mocks import chatwoot
from turnmill.infra.mocks.chatwoot import BOT_TOKEN, ChatwootAPI, Payload
from turnmill.infra.mocks.sending import send
from turnmill.producer.turns import read_conversation
from turnmill.schemas.channels.policies import Texts

SECRET = "whole-way-secret"  # noqa: S105

pytestmark = pytest.mark.parametrize("broker_url", ["valkey"], indirect=True)


class Desk:
    """The conversation: its events carry the status that the mock has."""

    def __init__(self, api: ChatwootAPI, url: str) -> None:
        self.api, self._url = api, url

    def customer(self, text: str) -> None:
        self._send(chatwoot.message(text, status=self.api.held.status))

    def person(self, text: str) -> None:
        self._send(chatwoot.by_agent(text, status=self.api.held.status))

    def set(self, status: str) -> None:
        self.api.held.status = status
        if status != "pending":
            self._send(chatwoot.changed(status))

    def _send(self, payload: Payload) -> None:
        sent = send(self._url, chatwoot.sign(SECRET, chatwoot.encode(payload)))
        assert sent.is_accepted, sent


@pytest.fixture
def desk(channels: Any, eventually: Callable[..., None]) -> Any:
    with ChatwootAPI() as api:
        channels.configure(
            "acme",
            kind="chatwoot",
            account_id=chatwoot.ACCOUNT,
            webhook_secret={"env": "CHATWOOT_SECRET"},
            bot_token={"env": "CHATWOOT_TOKEN"},
            api_url=api.url,
        )
        channels.environment |= {"CHATWOOT_SECRET": SECRET, "CHATWOOT_TOKEN": BOT_TOKEN}
        yield Desk(api, f"{channels.serve(eventually)}/channels/acme")


def test_the_team_takes_a_conversation_and_gives_it_back(
    desk: Desk, channels: Any, eventually: Callable[..., None]
) -> None:
    desk.customer("Where is my parcel?")
    eventually(lambda: desk.api.texts == ["Where is my parcel?"], 40)
    desk.customer("human")
    eventually(lambda: desk.api.held.status == "open", 20)
    assert desk.api.texts[-1] == Texts().handed_off
    assert desk.api.notes == ["The user asked for a person."]
    desk.set("open")
    desk.customer("Is anybody there?")
    desk.person("It is on its way.")
    desk.set("pending")
    desk.customer("Thanks!")
    eventually(lambda: desk.api.texts[-1] == "Thanks!", 40)
    desk.person("I am here again.")
    eventually(lambda: desk.api.held.status == "open", 20)
    assert len(desk.api.texts) == 3
    (began,) = channels.database.run("SELECT conversation_id AS id FROM turns WHERE seq = 1")
    turns = read_conversation(channels.database, channels.system.tenant_id, began.id)
    (thanks,) = (turn for turn in turns if turn.messages[-1].text == "Thanks!")
    assert prompt_of(channels.database, thanks) == [
        ("user", "Where is my parcel?"),
        ("assistant", "Where is my parcel?"),
        ("user", "Is anybody there?"),
        ("assistant", "It is on its way."),
        ("user", "Thanks!"),
    ]
