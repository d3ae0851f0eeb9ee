"""Conversations that a person answers for a while, and how it is judged that nothing went lost.

In one of ten threads the user asks for a person before message `HAND_OFF_AT`. Somebody else answers
before `PERSON_AT`, and gives the thread back to the bot before `RESUME_AT`. That message asks the
engine what it was shown (`RECALL`): everything that was said until then, and what the person said.
"""

from collections.abc import Sequence

from turnmill.infra.chaos.breaking.engine import RECALL, said_in
from turnmill.infra.chaos.record import Intent
from turnmill.schemas.channels.policies import Texts

HAND_OFF_AT, PERSON_AT, RESUME_AT = 4, 5, 7

_EVERY, _REST = 10, 6
HANDED_OFF, RESUMED = Texts().handed_off, Texts().resumed
#: What the bot says by itself, and before which message.
NOTICES = {HANDED_OFF: HAND_OFF_AT, RESUMED: RESUME_AT}


def is_handed(conversation: str) -> bool:
    return int(conversation[1:] or 0) % _EVERY == _REST


def is_kept(intent: Intent) -> bool:
    """Whether a person is to answer a message."""
    return is_handed(intent.conversation) and HAND_OFF_AT <= intent.number < RESUME_AT


def may_stay_unanswered(intent: Intent) -> bool:
    """Whether a person is to answer a message, or may be asked before the bot has answered."""
    return is_handed(intent.conversation) and intent.number < RESUME_AT


def person_text(conversation: str) -> str:
    """What the person answers; its first word is like a message's, and marks it as a person's."""
    return f"p{conversation[1:]}/{PERSON_AT} let me see"


def asked_text(text: str, number: int) -> str:
    """What the user writes as a message of this number."""
    return f"{text} {RECALL}" if number == RESUME_AT else text


def due_recall(conversation: str) -> list[str]:
    """What the engine was to be shown when the bot resumed."""
    due = [f"{conversation}/{number}" for number in range(1, RESUME_AT + 1)]
    due.insert(PERSON_AT - 1, person_text(conversation).split()[0])
    return due


def recalled(text: str) -> list[str]:
    """What an answer to `RECALL` lists; nothing if the text is none."""
    _, *words = text.split() or [""]
    return words if len(words) > 1 and said_in(text) == words else []


def judge_recall(conversation: str, words: Sequence[str]) -> dict[str, str]:
    """Findings, by the set that they belong to."""
    due = due_recall(conversation)
    found: dict[str, str] = {}
    if missing := [word for word in due if word not in words]:
        found["messages lost"] = f"{conversation}: the bot resumed without {missing}"
    if len(set(words)) < len(words):
        found["messages doubled"] = f"{conversation}: the bot resumed with {list(words)}"
    if unknown := set(words) - set(due):
        found["phantom messages"] = f"{conversation}: the bot resumed with {sorted(unknown)}"
    if not found and list(words) != due:
        found["messages reordered"] = f"{conversation}: the bot resumed with {list(words)}"
    return found
