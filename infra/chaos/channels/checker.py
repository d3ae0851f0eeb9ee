"""The checker of messages: compares what was sent to the bots with what the platform shows.

It reads the record alone, and knows nothing of our tables. The engine echoes the user behind a
digest, so the one right answer to every event is known.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

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
        self._promised = {e.key for e in entries if isinstance(e, Promise)}
        shown: defaultdict[str, list[Shown]] = defaultdict(list)
        for entry in entries:
            if isinstance(entry, Shown):
                shown[entry.conversation].append(entry)
        self._answered: Counter[str] = Counter()
        for conversation, messages in shown.items():
            self._conversation(conversation, messages)
        self.sets["messages lost"] += self._lost()

    def _conversation(self, conversation: str, messages: list[Shown]) -> None:
        """Judge one thread, whose messages come in the order in which they were posted."""
        numbers: list[int] = []
        for message in messages:
            asked = self._asked(message)
            if not asked:
                others = (other.text for other in messages if other is not message)
                is_part = any(text.startswith(message.text) for text in others)
                kind = "messages doubled" if is_part else "phantom messages"
                self.sets[kind].append(f"{message.message}: {message.text[:80]!r}")
            elif any(intent.conversation != conversation for intent in asked):
                names = ", ".join(intent.key for intent in asked)
                self.sets["in the wrong thread"].append(f"{message.message}: answers {names}")
            elif not message.is_whole:
                self.sets["messages lost"].append(f"{message.message}: its stream never ends")
            for intent in asked:
                self._answered[intent.key] += 1
                if self._answered[intent.key] > 1:
                    self.sets["messages doubled"].append(f"{intent.key}: {message.message}")
                elif intent.conversation == conversation:
                    numbers.append(intent.number)
        if numbers != sorted(numbers):
            self.sets["messages reordered"].append(f"{conversation}: answered as {numbers}")

    def _asked(self, message: Shown) -> list[Intent]:
        """What a message answers; nothing where it is no answer to anything."""
        digest, *words = message.text.split() or [""]
        keys = _ASKED.findall(message.text)
        asked = [self._intents[key] for key in keys if key in self._intents]
        due = [word for intent in asked for word in spoken(intent.text).split()]
        return asked if _DIGEST.fullmatch(digest) and words == due else []

    def _lost(self) -> Iterator[str]:
        for intent in self._intents.values():
            if intent.key in self._promised and not self._answered[intent.key]:
                yield f"{intent.key}: {intent.text[:40]!r} was taken, and never answered"
