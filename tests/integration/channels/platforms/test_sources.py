"""What a reply cites stands below it on channels, if its bot shows that."""

from typing import Any

import pytest
from psycopg.types.json import Jsonb

from tests.delivering import Asked
from turnmill.producer.tenants import save_bot
from turnmill.schemas.channels.policies import Policies
from turnmill.schemas.ids import new_id
from turnmill.schemas.turns import GenerationParams
from turnmill.workers.delivery.base import Job
from turnmill.workers.delivery.claims import Holder, claim_delivery
from turnmill.workers.delivery.webhook import _data

pytestmark = pytest.mark.parametrize("broker_url", ["valkey"], indirect=True)

REPLY = "Within 30 days [1]."
PINNED = [
    {"document_id": "a", "version": 1, "uri": "returns.md", "title": "Returns", "score": 1.0,
     "content": "Within 30 days.", "url": "https://help.example/returns"},
    {"document_id": "b", "version": 1, "uri": "shipping.md", "title": "Shipping", "score": 0.5,
     "content": "On weekdays."},
]  # fmt: skip


def delivered(channels: Any, reply: str = REPLY, *, first_number: int | None = 1) -> Job:
    """The delivery of a reply whose turn was shown both passages."""
    asked = Asked(channels, "desk")
    asked.ask(room="7")
    channels.database.run(
        "INSERT INTO turn_sources (turn_id, sources, shown, first_number) VALUES (%s, %s, 2, %s) "
        "RETURNING turn_id",
        (asked.turn.turn_id, Jsonb(PINNED), first_number),
    )
    asked.finish(reply)
    [row] = channels.database.run("SELECT id FROM deliveries ORDER BY ordinal DESC LIMIT 1")
    claim = claim_delivery(Holder(channels.database, new_id(), 30.0), "desk", row.id)
    assert claim is not None
    return claim.job


def save(channels: Any, **policies: Any) -> None:
    system = channels.system
    bot = system.settings.engine.model_name
    save_bot(system.database, system.tenant_id, bot, bot, "", GenerationParams(),
             policies=Policies(**policies))  # fmt: skip


def test_cited_sources_stand_below_a_reply(channels: Any) -> None:
    job = delivered(channels)
    assert job.text == f"{REPLY}\n\nSources:\n- [1] [Returns](https://help.example/returns)"


def test_nothing_stands_below_a_reply_that_cites_nothing_or_was_not_to_cite(channels: Any) -> None:
    assert delivered(channels, "Within 30 days.").text == "Within 30 days."
    assert delivered(channels, first_number=None).text == REPLY


def test_a_bot_may_show_no_sources_or_name_them_in_its_language(channels: Any) -> None:
    save(channels, shows_sources=False)
    assert delivered(channels).text == REPLY
    save(channels, texts={"sources": "来源："})
    assert "\n\n来源：\n- [1] [Returns]" in str(delivered(channels).text)


def test_a_webhook_gets_the_reply_alone_and_its_sources_beside_it(channels: Any) -> None:
    data = _data(delivered(channels))
    assert data["text"] == REPLY
    shown = [(each["index"], each["uri"], each["cited"]) for each in data["sources"]]
    assert shown == [(1, "returns.md", True), (2, "shipping.md", False)]
