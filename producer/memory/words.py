"""What users say of their own memory in a channel, answered without the model.

"Remember that …", "forget …" and "what do you know about me" are data of the bot's policy. What
does not fit is an ordinary message: "forget the order" is for the model, unless a fact has that
name or value.
"""

from typing import NamedTuple
from uuid import UUID

from turnmill.producer.conversations import Standing
from turnmill.producer.memory.users import (
    MAX_FACTS,
    answer_proposal_in,
    forget_fact_in,
    forget_facts_in,
    remember_in,
    set_memory_in,
)
from turnmill.schemas.channels.events import UserMessage
from turnmill.schemas.channels.memory import MemoryPolicy, read_fact, rest_after, user_key
from turnmill.schemas.channels.policies import Policies, Texts, plain
from turnmill.schemas.content import text_of
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.postgres.database import Cursor
from turnmill.schemas.postgres.rows import fetch


class _Fact(NamedTuple):
    key: str
    value: str


_FACTS = f"""
SELECT f.key, f.value FROM facts f JOIN users u ON u.id = f.user_id
WHERE u.tenant_id = %s AND u.key = %s AND f.superseded_by IS NULL
  AND (f.source = 'proposed') = %s
ORDER BY f.key LIMIT {MAX_FACTS}
"""


class _Preferences(NamedTuple):
    preferences: dict[str, str]


_PREFERENCES = "SELECT preferences FROM users WHERE tenant_id = %s AND key = %s"

#: What facts without a name of their own are called, with a number.
NOTE = "note"

#: Characters of a list of facts: platforms refuse longer messages.
_MAX_LIST = 3000


def answer_about_memory(
    cursor: Cursor, standing: Standing, policies: Policies, event: UserMessage
) -> str | None:
    """Do what a message asks of its author's memory, and return what the bot says to that.

    None: it asks for nothing of the kind, and the model is to answer it.
    """
    memory, text = policies.memory, text_of(event.content)
    if not memory.on:
        return None
    person = _Person(cursor, standing.tenant_id, user_key(event.address.channel, event.author))
    if plain(text.strip().rstrip("?\uff1f")) in map(plain, memory.recall_words):
        return person.known(policies.texts)
    sentence = rest_after(text, memory.remember_words)
    if sentence is not None and not sentence.endswith(("?", "\uff1f")):
        return person.remember(sentence, policies.texts)
    if (named := rest_after(text, memory.confirm_words)) is not None:
        return person.confirm(named, policies.texts)
    if (named := rest_after(text, memory.forget_words)) is not None:
        return person.forget(named, memory, policies.texts)
    return None


class _Person:
    """A user who speaks about what is remembered of them."""

    def __init__(self, cursor: Cursor, tenant_id: UUID, key: str) -> None:
        self._cursor = cursor
        self._who = (tenant_id, key)

    def known(self, texts: Texts) -> str:
        users = fetch(self._cursor, _Preferences, _PREFERENCES, self._who)
        lines = sorted(f"{k}: {v}" for user in users for k, v in user.preferences.items())
        lines += [f"{key}: {value}" for key, value in self._facts().items()]
        said = [texts.known, *lines] if lines else [texts.nothing_known]
        if proposed := self._facts(is_proposed=True):
            said += [texts.proposed, *(f"{key}: {value}" for key, value in proposed.items())]
        return "\n".join(said)[:_MAX_LIST]

    def remember(self, sentence: str, texts: Texts) -> str:
        """To ask for it is to agree to be remembered."""
        name, value = read_fact(sentence)
        known = self._facts()
        if name is None and value in known.values():
            return texts.remembered
        try:
            remember_in(self._cursor, *self._who, name or _next_note(known), value)
        except InvalidInput:
            return texts.not_remembered
        set_memory_in(self._cursor, *self._who, is_on=True)
        return texts.remembered

    def confirm(self, named: str, texts: Texts) -> str | None:
        for key in self._facts(is_proposed=True):
            if plain(key) == plain(named):
                answer_proposal_in(self._cursor, *self._who, key, is_right=True)
                return texts.remembered
        return None

    def forget(self, named: str, memory: MemoryPolicy, texts: Texts) -> str | None:
        if plain(named) in map(plain, memory.everything_words):
            forget_facts_in(self._cursor, *self._who)
            return texts.forgotten
        meant = {plain(named), plain(named.removeprefix("my ").removeprefix("我的"))}
        for key, value in self._facts().items():
            if not meant.isdisjoint((plain(key), plain(value))):
                forget_fact_in(self._cursor, *self._who, key)
                return texts.forgotten
        return None

    def _facts(self, *, is_proposed: bool = False) -> dict[str, str]:
        params = (*self._who, is_proposed)
        return {row.key: row.value for row in fetch(self._cursor, _Fact, _FACTS, params)}


def _next_note(known: dict[str, str]) -> str:
    taken = {key for key in known if key.startswith(NOTE)}
    return next(
        name for number in range(1, len(taken) + 2) if (name := f"{NOTE} {number}") not in taken
    )
