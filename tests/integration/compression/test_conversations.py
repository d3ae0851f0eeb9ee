"""A tenant's own conversations out of PostgreSQL: with consent, masked, and nobody else's."""

from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

from turnmill.compression.conversations import tenant_conversations
from turnmill.producer.accept import accept
from turnmill.producer.cli.app import app
from turnmill.producer.tenants import (
    create_tenant,
    find_tenant,
    list_tenants,
    set_conversation_training,
    set_training,
)
from turnmill.schemas.errors import InvalidInput, NotFound
from turnmill.schemas.ids import Prefix, parse_id


@pytest.fixture
def answered(make_system: Callable[..., Any], database_url: str, valkey_url: str) -> Any:
    """A system in which two tenants had a conversation of two turns each."""
    system = make_system(database_url, valkey_url)
    system.start("relay")
    system.start_worker()
    create_tenant(system.database, "acme", system.settings)
    for name in ("default", "acme"):
        tenant_id = find_tenant(system.database, name)

        def ask(text: str, tenant_id: Any = tenant_id, **fields: Any) -> Any:
            request = system.request(text, **fields).model_copy(update={"tenant_id": tenant_id})
            return accept(system.database, request)

        first = ask(f"I am {name}, write to me@{name}.example")
        ask("or call +44 20 7946 0000", conversation_id=first.conversation_id)
    system.wait_until_settled()
    return system


def test_conversations_come_whole_masked_and_of_one_tenant(answered: Any) -> None:
    set_training(answered.database, "acme", is_allowed=True)

    (conversation,) = tenant_conversations(answered.database, "acme")

    assert conversation.id.startswith("conv_")
    roles = [each["role"] for each in conversation.messages]
    assert roles == ["user", "assistant", "user", "assistant"]
    texts = [each["content"] for each in conversation.messages]
    assert texts[0] == "I am acme, write to <email>"
    assert texts[2] == "or call <number>"
    assert "acme.example" not in repr(texts)
    assert "7946" not in repr(texts)


def test_a_tenant_that_has_not_agreed_or_withdrew_is_refused(answered: Any) -> None:
    for is_allowed in (True, False):
        set_training(answered.database, "acme", is_allowed=is_allowed)
    assert [each.allows_training for each in list_tenants(answered.database)] == [False, False]

    for name in ("acme", "default"):
        with pytest.raises(InvalidInput, match=f"turnmill tenants training {name} --allow"):
            tenant_conversations(answered.database, name)


def test_an_unknown_tenant_or_one_without_conversations_is_refused(answered: Any) -> None:
    create_tenant(answered.database, "new", answered.settings)
    set_training(answered.database, "new", is_allowed=True)

    with pytest.raises(InvalidInput, match="no answered conversation that may train"):
        tenant_conversations(answered.database, "new")
    with pytest.raises(NotFound, match="no tenant 'nobody'"):
        tenant_conversations(answered.database, "nobody")
    with pytest.raises(NotFound, match="no tenant 'nobody'"):
        set_training(answered.database, "nobody", is_allowed=True)


def test_a_conversation_that_refuses_is_left_out_whatever_its_tenant_agreed_to(
    answered: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_training(answered.database, "acme", is_allowed=True)
    request = answered.request("Another one.").model_copy(
        update={"tenant_id": find_tenant(answered.database, "acme")}
    )
    accept(answered.database, request)
    answered.wait_until_settled()
    both = [each.id for each in tenant_conversations(answered.database, "acme")]
    monkeypatch.setenv("TURNMILL_DATABASE__URL", answered.settings.database.url.get_secret_value())

    def turnmill(*words: str) -> None:
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        assert done.exit_code == 0, done.output

    turnmill("tenants", "training", "acme", "--forbid", "--conversation", both[1])
    assert [each.id for each in tenant_conversations(answered.database, "acme")] == both[:1]

    turnmill("tenants", "training", "acme", "--forbid", "--conversation", both[0])
    with pytest.raises(InvalidInput, match="no answered conversation that may train"):
        tenant_conversations(answered.database, "acme")

    turnmill("tenants", "training", "acme", "--allow", "--conversation", both[1])
    assert [each.id for each in tenant_conversations(answered.database, "acme")] == both[1:]


def test_no_tenant_decides_for_a_conversation_of_another(answered: Any) -> None:
    set_training(answered.database, "acme", is_allowed=True)
    (conversation,) = tenant_conversations(answered.database, "acme")
    stranger = find_tenant(answered.database, "default")

    with pytest.raises(NotFound, match="no such conversation"):
        set_conversation_training(
            answered.database,
            stranger,
            parse_id(Prefix.CONVERSATION, conversation.id),
            is_allowed=False,
        )
    assert tenant_conversations(answered.database, "acme")
