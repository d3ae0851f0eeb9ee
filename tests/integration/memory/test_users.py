"""What is kept of users: facts that give way to later ones, within bounds, until forgotten."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from turnmill.producer.memory import users
from turnmill.producer.memory.forgetting import read_erasure
from turnmill.producer.tenants import create_key, create_tenant, ensure_defaults
from turnmill.schemas.errors import InvalidInput, NotFound
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import load_settings

ADA = "api:ada"


class Keeper:
    """A tenant's users."""

    def __init__(self, url: str) -> None:
        self.settings = load_settings(database={"url": url}, engine={"name": "echo"})
        self.database = Database(self.settings.database)
        self.tenant_id = ensure_defaults(self.database, self.settings)

    def __getattr__(self, name: str) -> Any:
        use_case = getattr(users, name)
        return lambda *given, **named: use_case(self.database, self.tenant_id, *given, **named)

    def facts(self, key: str = ADA) -> dict[str, str]:
        return {fact.key: fact.value for fact in self.list_facts(key)}


@pytest.fixture
def keeper(database_url: str) -> Iterator[Keeper]:
    keeper = Keeper(database_url)
    yield keeper
    keeper.database.close()


def test_a_later_value_replaces_an_earlier_one_and_both_are_exported(keeper: Keeper) -> None:
    keeper.remember(ADA, "city", "Bremen")
    keeper.remember(ADA, "city", "Ulm")
    assert keeper.facts() == {"city": "Ulm"}
    exported = keeper.export(ADA)["facts"]
    assert [(each["value"], each["is_earlier"]) for each in exported] == [
        ("Ulm", False),
        ("Bremen", True),
    ]
    for n in range(2 * users.MAX_EARLIER):
        keeper.remember(ADA, "city", f"city {n}")
    assert len(keeper.export(ADA)["facts"]) == users.MAX_EARLIER + 1


def test_a_proposed_fact_replaces_none_that_is_in_force(keeper: Keeper) -> None:
    keeper.remember(ADA, "city", "Bremen")
    keeper.remember(ADA, "city", "Ulm", source="proposed")
    keeper.remember(ADA, "city", "Bonn", source="proposed")
    assert [(f.value, f.source) for f in keeper.list_facts(ADA)] == [
        ("Bremen", "explicit"),
        ("Bonn", "proposed"),
    ]
    assert keeper.read_user(ADA).fact_count == 1
    keeper.remember(ADA, "city", "Bonn", source="confirmed")
    assert [(f.value, f.source) for f in keeper.list_facts(ADA)] == [("Bonn", "confirmed")]


def test_a_forgotten_fact_leaves_nothing(keeper: Keeper) -> None:
    keeper.remember(ADA, "city", "Bremen")
    keeper.remember(ADA, "city", "Ulm")
    keeper.forget_fact(ADA, "city")
    assert keeper.database.run("SELECT FROM facts") == []
    with pytest.raises(NotFound, match="no such fact"):
        keeper.forget_fact(ADA, "city")


def test_what_is_kept_of_a_user_is_bounded(keeper: Keeper) -> None:
    for n in range(users.MAX_FACTS):
        keeper.remember(ADA, f"fact {n}", "x")
    with pytest.raises(InvalidInput, match="100 facts"):
        keeper.remember(ADA, "one more", "x")
    keeper.remember(ADA, "fact 1", "y")
    assert keeper.facts()["fact 1"] == "y"
    for name, value in (("", "x"), ("x" * 65, "x"), ("a\0b", "x"), ("x", " "), ("x", "y" * 501)):
        with pytest.raises(InvalidInput):
            keeper.remember(ADA, name, value)
    for key in ("ada", ":ada", "api:", "a" * 256 + ":b", "api:\0"):
        with pytest.raises(InvalidInput, match="user's key"):
            keeper.remember(key, "x", "y")
    with pytest.raises(InvalidInput, match="20 preferences"):
        keeper.set_preferences(ADA, {f"p{n}": "x" for n in range(21)})


def test_whoever_asks_for_a_key_without_its_source_learns_its_form(keeper: Keeper) -> None:
    keeper.remember(ADA, "city", "Bremen")
    for ask in (
        lambda: keeper.list_facts("ada"),
        lambda: keeper.read_user("ada"),
        lambda: keeper.export("a"),
        lambda: keeper.forget_fact("ada", "city"),
        lambda: keeper.answer_proposal("ada", "city", is_right=True),
        lambda: read_erasure(keeper.database, keeper.tenant_id, "ada"),
    ):
        with pytest.raises(InvalidInput, match="api:4711"):
            ask()


def test_a_consent_that_is_taken_back_leaves_no_date(keeper: Keeper) -> None:
    keeper.set_memory(ADA, is_on=True)
    agreed = keeper.read_user(ADA)
    assert agreed.memory_on
    assert agreed.consent_at
    keeper.set_memory(ADA, is_on=True)
    assert keeper.read_user(ADA).consent_at == agreed.consent_at
    keeper.set_memory(ADA, is_on=False)
    assert (keeper.read_user(ADA).memory_on, keeper.read_user(ADA).consent_at) == (False, None)


def test_a_tenant_knows_only_its_own_users(keeper: Keeper) -> None:
    keeper.remember(ADA, "city", "Bremen")
    other = create_tenant(keeper.database, "other", keeper.settings)
    assert users.list_users(keeper.database, other) == []
    assert users.list_facts(keeper.database, other, ADA) == []
    with pytest.raises(NotFound):
        users.read_user(keeper.database, other, ADA)
    with pytest.raises(NotFound):
        users.forget_fact(keeper.database, other, ADA, "city")
    assert keeper.facts() == {"city": "Bremen"}


@pytest.fixture
def client(keeper: Keeper, serve_api: Any) -> Iterator[httpx.Client]:
    key = create_key(keeper.database, keeper.tenant_id, "test")
    with serve_api(keeper.settings) as url:
        headers = {"Authorization": f"Bearer {key}"}
        with httpx.Client(base_url=url, headers=headers) as client:
            yield client


@pytest.mark.parametrize("user", ["api:ada", "api:https%3A%2F%2Fid.example%2Fada", "zoom:阿达"])
def test_facts_and_preferences_by_call(client: httpx.Client, user: str) -> None:
    path = f"/users/{user}"
    assert client.get(path).status_code == 404
    assert client.put(f"{path}/facts/city", json={"value": "Bremen"}).status_code == 204
    [fact] = client.get(f"{path}/facts").json()
    assert (fact["key"], fact["value"], fact["source"]) == ("city", "Bremen", "explicit")
    assert client.put(f"{path}/preferences", json={"tone": "brief"}).status_code == 204
    assert client.get(f"{path}/preferences").json() == {"tone": "brief"}
    assert client.patch(path, json={"memory_on": True}).status_code == 204
    found = client.get(path).json()
    assert (found["memory_on"], found["fact_count"]) == (True, 1)
    assert [each["key"] for each in client.get("/users").json()] == [found["key"]]
    exported = client.get(f"{path}/export").json()
    assert exported["preferences"] == {"tone": "brief"}
    assert client.delete(f"{path}/facts/city").status_code == 204
    assert client.get(f"{path}/facts").json() == []
    assert client.delete(f"{path}/facts/city").status_code == 404


def test_a_proposed_fact_is_confirmed_or_dropped_by_call(
    keeper: Keeper, client: httpx.Client
) -> None:
    for is_right in (True, False):
        keeper.remember(ADA, "city", f"Bremen {is_right}", source="proposed")
        answer = client.post(f"/users/{ADA}/facts/city/confirmation", json={"is_right": is_right})
        assert answer.status_code == 204
        assert [fact.source for fact in keeper.list_facts(ADA)] == ["confirmed"]
    assert keeper.facts() == {"city": "Bremen True"}
    answer = client.post(f"/users/{ADA}/facts/city/confirmation", json={})
    assert answer.status_code == 404


def test_a_fact_with_a_slash_in_its_name_is_deleted(client: httpx.Client) -> None:
    place = "/users/api:ada/facts/size/eu"
    assert client.put(place, json={"value": "43"}).status_code == 204
    assert [fact["key"] for fact in client.get("/users/api:ada/facts").json()] == ["size/eu"]
    assert client.delete(place).status_code == 204
    assert client.get("/users/api:ada/facts").json() == []


def test_a_wrong_call_says_what_is_wrong(client: httpx.Client) -> None:
    answer = client.put("/users/ada/facts/city", json={"value": "Bremen"})
    assert answer.status_code == 400
    assert "api:4711" in answer.json()["error"]["message"]
    assert client.put("/users/api:ada/facts/city", json={"value": ""}).status_code == 400
    assert client.put("/users/api:ada/preferences", json={"a\0b": "x"}).status_code == 400
    assert client.put("/users/api:a%00da/facts/city", json={"value": "x"}).status_code == 400
    assert client.get("/users/api:a%00da/facts").status_code in (200, 400)
    assert client.get("/users?after=%00").status_code == 400


def test_users_by_command(keeper: Keeper, turnmill: Any) -> None:
    assert turnmill("users", "list") == (0, "Nothing is remembered of anybody yet.\n")
    turnmill("users", "remember", ADA, "shoe size", "43")
    turnmill("users", "set", ADA, "--memory", "--preference", "language=Deutsch")
    status, said = turnmill("users", "show", ADA)
    assert status == 0
    assert "memory on, agreed" in said
    assert "prefers language: Deutsch" in said
    assert "shoe size 43 explicit" in " ".join(said.split())
    assert "api:ada on 1 1" in " ".join(turnmill("users", "list")[1].split())
    exported = json.loads(turnmill("users", "export", ADA)[1])
    assert exported["facts"][0]["value"] == "43"
    assert turnmill("users", "forget", ADA, "shoe size")[0] == 0
    assert "No facts" in turnmill("users", "show", ADA)[1]
    assert "no such fact" in turnmill("users", "forget", ADA, "shoe size")[1]
