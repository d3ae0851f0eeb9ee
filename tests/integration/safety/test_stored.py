"""What a bot wants masked in what is stored is in no table, however the message came."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.safety.conftest import Obedient
from turnmill.producer.accept import accept
from turnmill.producer.texting import accept_call
from turnmill.schemas.channels.policies import DoubleTexting
from turnmill.schemas.content import ToolCall
from turnmill.schemas.turns import Message, Role
from turnmill.workers.testing import InlineWorker

pytest.importorskip("phonenumbers", reason="pip install 'turnmill[personal]'")

PHONE, MAIL = "+49 30 123456", "ada@mail.example"
PARTS: Any = [{"type": "text", "text": f"Call {PHONE}"}]

_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"


def everything(system: Any) -> str:
    """All rows of all tables, as text."""
    names = [row.tablename for row in system.database.run(_TABLES)]
    rows = (system.database.run(f'SELECT t::text AS row FROM "{name}" t') for name in names)
    return "\n".join(row.row for each in rows for row in each)


def test_personal_data_is_in_no_table(
    system: Any, save: Callable[..., None], engine: Obedient
) -> None:
    save(stored="masked")
    first = accept(system.database, said(system, Message(role=Role.USER, content=PARTS)))
    more = system.request(f"Or {PHONE}", conversation_id=first.conversation_id)
    collected = accept_call(system.database, more, DoubleTexting.COLLECT)
    assert collected.turn_id == first.turn_id
    call = ToolCall(id="c", name="dial", arguments=f'{{"number": "{PHONE}"}}')
    with InlineWorker(system.settings):
        system.wait_until_settled()
        later = said(
            system,
            Message(role=Role.USER, content=f"Call {PHONE}"),
            Message(role=Role.ASSISTANT, content=f"Dialing {PHONE}", tool_calls=(call,)),
            Message(role=Role.TOOL, content=f"{PHONE} is busy", tool_call_id="c"),
            Message(role=Role.USER, content=f"Then write to {MAIL}, or {PHONE}!"),
        )
        accept(system.database, later)
        system.wait_until_settled()
    assert PHONE not in everything(system)
    assert MAIL not in everything(system)
    stored = str(system.database.run("SELECT input FROM turns"))
    assert stored.count("<phone>") == 7
    assert "or <phone>!" in engine.prompts[-1].messages[-1].text


def said(system: Any, *messages: Message) -> Any:
    return system.request("x").model_copy(update={"messages": messages})


def test_the_same_call_finds_its_turn_though_its_text_is_masked(
    system: Any, save: Callable[..., None], engine: Obedient
) -> None:
    save(stored="masked")
    request = system.request(f"Call {PHONE}", idempotency_key="k")
    first, again = accept(system.database, request), accept(system.database, request)
    assert again.turn_id == first.turn_id
    assert again.is_duplicate


def test_a_bot_that_says_nothing_of_it_stores_what_was_sent(
    system: Any, save: Callable[..., None], engine: Obedient
) -> None:
    save()
    accept(system.database, system.request(f"Call {PHONE}"))
    [turn] = system.database.run("SELECT input FROM turns")
    assert PHONE in str(turn.input)
