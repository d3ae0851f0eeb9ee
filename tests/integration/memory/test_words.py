"""What users say of their own memory in a channel is done without the model."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.conversing import Replica
from turnmill.producer.converse import Kind
from turnmill.producer.memory import users
from turnmill.schemas.channels.policies import Texts

MEMORY = {"on": True}
TEXTS = Texts()


@pytest.fixture
def replica(database_url: str) -> Iterator[Replica]:
    replica = Replica(database_url)
    yield replica
    replica.database.close()


def say(replica: Replica, text: str, author: str = "U1", **policies: Any) -> Kind:
    return replica.say(text, author=author, **({"memory": MEMORY} | policies)).kind


def known(replica: Replica, author: str = "U1") -> dict[str, str]:
    facts = users.list_facts(replica.database, replica.tenant_id, f"slack:{author}")
    return {fact.key: fact.value for fact in facts}


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("Remember that my shoe size is 43.", ("shoe size", "43")),
        ("Please remember that my shoe size is 43.", ("shoe size", "43")),
        ("please remember: I am allergic to nuts!", ("note 1", "I am allergic to nuts")),
        ("记住我的城市是不来梅。", ("城市", "不来梅")),
        ("请记住，我不吃花生", ("note 1", "我不吃花生")),
    ],
)
def test_what_is_to_be_remembered_is_and_no_turn(
    replica: Replica, text: str, fact: tuple[str, str]
) -> None:
    assert say(replica, text) is Kind.REMEMBERED
    assert known(replica) == dict([fact])
    assert replica.notices() == [TEXTS.remembered]
    assert replica.turns() == []
    user = users.read_user(replica.database, replica.tenant_id, "slack:U1")
    assert user.memory_on
    assert user.consent_at


@pytest.mark.parametrize(
    "text",
    [
        "remember that parcel of last week?",
        "remember that",
        "remember that " + "x" * 400,
        "forget the order, I want another one",
        "forgetful people",
        "What do you know about my parcel?",
        "I remember that my shoe size is 43",
    ],
)
def test_other_messages_are_for_the_model(replica: Replica, text: str) -> None:
    assert say(replica, text) is Kind.ACCEPTED
    assert known(replica) == {}


def test_words_count_only_where_the_bot_remembers(replica: Replica) -> None:
    assert replica.say("Remember that my shoe size is 43.").kind is Kind.ACCEPTED
    assert known(replica) == {}


def test_a_correction_replaces_and_a_repetition_adds_nothing(replica: Replica) -> None:
    for text in ("my shoe size is 43", "my shoe size is 44", "I like red", "I like red"):
        say(replica, f"Remember that {text}")
    assert known(replica) == {"shoe size": "44", "note 1": "I like red"}


@pytest.mark.parametrize("named", ["my shoe size", "Shoe Size.", "44", "shoe size"])
def test_a_fact_is_forgotten_by_its_name_or_value(replica: Replica, named: str) -> None:
    say(replica, "Remember that my shoe size is 44")
    say(replica, "Remember that I like red")
    assert say(replica, f"Forget {named}") is Kind.REMEMBERED
    assert known(replica) == {"note 1": "I like red"}
    assert replica.notices()[-1] == TEXTS.forgotten


@pytest.mark.parametrize(
    "text",
    ["Forget everything about me!", "forget me", "Please forget about me.", "忘记关于我的一切"],
)
def test_all_is_forgotten_and_nothing_more_remembered(replica: Replica, text: str) -> None:
    say(replica, "Remember that my shoe size is 44")
    users.set_preferences(replica.database, replica.tenant_id, "slack:U1", {"tone": "brief"})
    assert say(replica, text) is Kind.REMEMBERED
    user = users.read_user(replica.database, replica.tenant_id, "slack:U1")
    assert (user.fact_count, user.preferences, user.memory_on) == (0, {}, False)


@pytest.mark.parametrize("text", ["What do you know about me?", "你知道我什么？"])
def test_users_see_what_is_remembered_of_them_and_of_nobody_else(
    replica: Replica, text: str
) -> None:
    say(replica, "Remember that my shoe size is 44")
    say(replica, "Remember that my shoe size is 38", "U2")
    assert say(replica, text) is Kind.REMEMBERED
    assert replica.notices()[-1] == f"{TEXTS.known}\nshoe size: 44"
    say(replica, text, "U3")
    assert replica.notices()[-1] == TEXTS.nothing_known


def test_a_turn_knows_its_user_and_one_of_several_people_none(replica: Replica) -> None:
    say(replica, "Hello", double_texting="interrupt")
    say(replica, "And me?", "U2", double_texting="interrupt")
    rows = replica.rows("SELECT user_key FROM turns ORDER BY id")
    assert [row.user_key for row in rows] == ["slack:U1", None]


def test_a_person_who_answers_is_no_user(replica: Replica) -> None:
    say(replica, "human")
    say(replica, "My parcel is lost")
    say(replica, "I will look", "U2")
    rows = replica.rows("SELECT user_key FROM turns ORDER BY id")
    assert [row.user_key for row in rows] == ["slack:U1", None]


def test_a_proposed_fact_is_shown_and_confirmed(replica: Replica) -> None:
    user = (replica.database, replica.tenant_id, "slack:U1")
    users.remember(*user, "city", "Bremen", source="proposed")
    say(replica, "What do you know about me?")
    assert replica.notices()[-1] == f"{TEXTS.nothing_known}\n{TEXTS.proposed}\ncity: Bremen"
    assert say(replica, "confirm city", "U2") is Kind.ACCEPTED
    assert say(replica, "Confirm City.") is Kind.REMEMBERED
    (fact,) = users.list_facts(*user)
    assert (fact.value, fact.source) == ("Bremen", "confirmed")
    assert say(replica, "confirm my order") is Kind.ACCEPTED
