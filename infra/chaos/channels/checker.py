"""The checker of messages: compares what was sent to the bots with what the platform shows.

It reads the record alone, and knows nothing of our tables. The engine echoes the user behind a
digest, so the one right answer to every event is known.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from turnmill.infra.chaos.channels.handing import (
    HANDED_OFF,
    NOTICES,
    RESUME_AT,
    RESUMED,
    is_handed,
    is_kept,
    judge_recall,
    may_stay_unanswered,
    recalled,
)
from turnmill.infra.chaos.checker import spoken
from turnmill.infra.chaos.record import Entry, Intent, Promise, Shown

_ASKED = re.compile(r"\b(c\d+/\d+)\b")
_DIGEST = re.compile(r"[0-9a-f]{8}")


def check_messages(record: Iterable[Entry]) -> dict[str, list[str]]:
    """Five sets of findings, each one a sentence; all are empty when every promise was kept."""
    return _Check(list(record)).sets


class _Check:
    def __init__(self, entries: Sequence[Entry]) -> None:
        self.sets: dict[str, list[str]] = {
            name: []
            for name in (
                "messages lost",
                "messages doubled",
                "messages reordered",
                "phantom messages",
                "in the wrong thread",
            )
        }
        self._intents = {e.text.split()[0]: e for e in entries if isinstance(e, Intent)}
        promised = {e.key for e in entries if isinstance(e, Promise)}
        self._taken = [intent for intent in self._intents.values() if intent.key in promised]
        shown: defaultdict[str, list[Shown]] = defaultdict(list)
        for entry in entries:
            if isinstance(entry, Shown):
                shown[entry.conversation].append(entry)
        self._answered: Counter[str] = Counter()
        for conversation in {*shown, *(intent.conversation for intent in self._taken)}:
            self._conversation(conversation, shown[conversation])
        self.sets["messages lost"] += self._lost()

    def _conversation(self, conversation: str, messages: list[Shown]) -> None:
        """Judge one thread, whose messages come in the order in which they were posted."""
        if is_handed(conversation):
            messages = self._handed(conversation, messages)
        numbers: list[int] = []
        for message in messages:
            asked = self._asked(message)
            if not asked:
                others = (other.text for other in messages if other is not message)
                is_part = any(text.startswith(message.text) for text in others)
                kind = "messages doubled" if is_part else "phantom messages"
                self._find(kind, f"{message.message}: {message.text[:80]!r}")
            elif any(intent.conversation != conversation for intent in asked):
                names = ", ".join(intent.key for intent in asked)
                self._find("in the wrong thread", f"{message.message}: answers {names}")
            elif not message.is_whole:
                self._find("messages lost", f"{message.message}: its stream never ends")
            for intent in asked:
                self._answered[intent.key] += 1
                if self._answered[intent.key] > 1:
                    self._find("messages doubled", f"{intent.key}: {message.message}")
                elif intent.conversation == conversation:
                    numbers.append(intent.number)
        if numbers != sorted(numbers):
            self._find("messages reordered", f"{conversation}: answered as {numbers}")

    def _handed(self, conversation: str, messages: list[Shown]) -> list[Shown]:
        """Judge what is special where a person answered; return the bot's other messages."""
        answers: list[Shown] = []
        said: Counter[str] = Counter()
        for message in messages:
            if message.text in NOTICES:
                said[message.text] += 1
                if message.text == HANDED_OFF and answers and self._is_begun(answers[-1]):
                    # The reply that was being written ended there.
                    answers.pop()
            elif said[HANDED_OFF] and not said[RESUMED]:
                self._find("phantom messages", f"{message.message}: while a person answered")
            else:
                answers.append(message)
                if words := recalled(message.text):
                    for kind, finding in judge_recall(conversation, words).items():
                        self._find(kind, finding)
        taken = max((i.number for i in self._taken if i.conversation == conversation), default=0)
        for notice, number in NOTICES.items():
            if taken >= number and not said[notice]:
                self._find("messages lost", f"{conversation}: {notice}")
            if said[notice] > 1:
                self._find("messages doubled", f"{conversation}: {notice}")
        return answers

    def _asked(self, message: Shown) -> list[Intent]:
        """What a message answers; nothing where it is no answer to anything."""
        if is_handed(message.conversation) and recalled(message.text):
            return [self._intents[f"{message.conversation}/{RESUME_AT}"]]
        digest, words, asked, due = self._read(message)
        if any(is_kept(intent) for intent in asked):
            return []
        return asked if _DIGEST.fullmatch(digest) and words == due else []

    def _is_begun(self, message: Shown) -> bool:
        """Whether a message is the beginning of an answer, and no more will come of it."""
        digest, words, _, due = self._read(message)
        is_part = not words or (words != due and words == due[: len(words)])
        return message.is_whole and is_part and _DIGEST.fullmatch(digest) is not None

    def _read(self, message: Shown) -> tuple[str, list[str], list[Intent], list[str]]:
        """The digest and words of a message, what it names, and the words that those would have."""
        digest, *words = message.text.split() or [""]
        named = [self._intents[w] for w in _ASKED.findall(message.text) if w in self._intents]
        return digest, words, named, [w for i in named for w in spoken(i.text).split()]

    def _lost(self) -> Iterator[str]:
        for intent in self._taken:
            if not self._answered[intent.key] and not may_stay_unanswered(intent):
                yield f"{intent.key}: {intent.text[:40]!r} was taken, and never answered"

    def _find(self, kind: str, finding: str) -> None:
        self.sets[kind].append(finding)
