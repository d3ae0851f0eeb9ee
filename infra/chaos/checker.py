"""The checker: compares what was promised with what is there, set by set.

In the spirit of Jepsen's total-queue (https://github.com/jepsen-io/jepsen, checker.clj): every
intent was recorded before it was tried, so at the end six sets must be empty. The checker
knows nothing of how the system works; it is tested with records that are wrong on purpose.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

from turnmill.infra.chaos.breaking.engine import digest
from turnmill.infra.chaos.observed import AttemptRow, Observed, TurnRow
from turnmill.infra.chaos.record import Entry, Intent, Observation, Promise
from turnmill.workers.engines.echo import MAGIC

#: Magic words after which a turn is to end parked, with an error its user can see.
_POISON = ("[[crash]]", "[[memory]]", "[[exit]]", "[[hang]]")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Sets of findings, each one a sentence; all are empty when every promise was kept."""

    #: Accepted, and not answered.
    lost: list[str] = field(default_factory=list)
    #: Innocents parked: given up though they harm nobody.
    parked: list[str] = field(default_factory=list)
    #: Accepted, generated to the end or replied to more than once.
    duplicated: list[str] = field(default_factory=list)
    #: Not in the order in which the client submitted them.
    reordered: list[str] = field(default_factory=list)
    #: Turns, replies or streamed texts that nobody asked for.
    phantom: list[str] = field(default_factory=list)
    #: Answered with another history than the conversation's, or by another model.
    mismatched: list[str] = field(default_factory=list)
    #: Sets of messages that a platform shows, where the run has one.
    messages: dict[str, list[str]] = field(default_factory=dict)

    @property
    def sets(self) -> dict[str, list[str]]:
        return {
            "lost": self.lost,
            "innocents parked": self.parked,
            "duplicated": self.duplicated,
            "reordered": self.reordered,
            "phantom": self.phantom,
            "history mismatch": self.mismatched,
            **self.messages,
        }

    def add(self, name: str, other: "Verdict") -> None:
        """Take over the findings of a neighbour."""
        for kind, found in other.sets.items():
            self.sets[kind].extend(f"{name}: {finding}" for finding in found)

    @property
    def is_clean(self) -> bool:
        return not any(self.sets.values())


def is_poison(text: str) -> bool:
    return any(word in text for word in _POISON)


def check(record: Iterable[Entry], observed: Observed, model: str = "") -> Verdict:
    """Compare a client's record with the tables; all was to be answered by one model."""
    entries = list(record)
    intents = {entry.key: entry for entry in entries if isinstance(entry, Intent)}
    promises = [entry for entry in entries if isinstance(entry, Promise)]
    turns = {turn.key: turn for turn in observed.turns if turn.key is not None}
    verdict = Verdict()
    verdict.lost.extend(_lost(intents, promises, turns))
    verdict.parked.extend(_parked(intents, observed.turns))
    verdict.duplicated.extend(_duplicated(observed))
    verdict.phantom.extend(_phantom(intents, observed.turns))
    verdict.phantom.extend(_contradicted(entries, turns))
    for _, rows in groupby(observed.turns, key=lambda turn: turn.conversation_id):
        conversation = list(rows)
        verdict.reordered.extend(_reordered(intents, conversation, observed.attempts))
        verdict.mismatched.extend(_mismatched(conversation, model))
    return verdict


def _lost(
    intents: dict[str, Intent], promises: list[Promise], turns: dict[str, TurnRow]
) -> Iterator[str]:
    for promise in promises:
        turn = turns.get(promise.key)
        if turn is None:
            yield f"{promise.key}: accepted, but there is no such turn"
        elif promise.turn_id and turn.turn_id.replace("-", "") not in promise.turn_id:
            yield f"{promise.key}: promised as {promise.turn_id}, but it is {turn.turn_id}"
        elif turn.state == "completed" and turn.reply is None:
            yield f"{promise.key}: completed without a reply"
        elif is_poison(intents[promise.key].text):
            if turn.state != "parked":
                yield f"{promise.key}: {turn.state}, and poison is to be parked"
        elif turn.state not in ("completed", "parked"):
            yield f"{promise.key}: {turn.state} ({turn.error_code})"


def _parked(intents: dict[str, Intent], turns: list[TurnRow]) -> Iterator[str]:
    for turn in turns:
        intent = intents.get(turn.key or "")
        if turn.state == "parked" and intent is not None and not is_poison(intent.text):
            yield f"{turn.key}: parked ({turn.error_code})"


def _duplicated(observed: Observed) -> Iterator[str]:
    for key, count in Counter(turn.key for turn in observed.turns).items():
        if count > 1:
            yield f"{key}: {count} turns"
    for turn in observed.turns:
        attempts = observed.attempts.get(turn.turn_id, [])
        answered = [attempt.number for attempt in attempts if attempt.outcome == "answered"]
        if len(answered) > 1:
            yield f"{turn.key}: answered by attempts {answered}"
        elif turn.reply_attempt is not None and [turn.reply_attempt] != answered:
            yield f"{turn.key}: reply of attempt {turn.reply_attempt}, answered by {answered}"


def _phantom(intents: dict[str, Intent], turns: list[TurnRow]) -> Iterator[str]:
    for turn in turns:
        intent = intents.get(turn.key or "")
        if intent is None:
            yield f"{turn.key} ({turn.turn_id}): nobody submitted it"
        elif turn.text != intent.text:
            yield f"{turn.key}: holds another text than was submitted"
        elif turn.reply is not None and turn.reply.partition(" ")[2] != spoken(intent.text):
            yield f"{turn.key}: the reply is not to what was asked"


def _contradicted(entries: list[Entry], turns: dict[str, TurnRow]) -> Iterator[str]:
    for entry in entries:
        if isinstance(entry, Observation) and (turn := turns.get(entry.key)) is not None:
            reply = turn.reply or ""
            if not (entry.text == reply if entry.is_whole else reply.startswith(entry.text)):
                yield f"{entry.key}: a reader was shown text that is not in the reply"


def _reordered(
    intents: dict[str, Intent],
    conversation: list[TurnRow],
    attempts: dict[str, list[AttemptRow]],
) -> Iterator[str]:
    settled_at = 0.0
    for turn in conversation:
        intent = intents.get(turn.key or "")
        if intent is not None and intent.number != turn.seq:
            yield f"{turn.key}: submitted as number {intent.number}, kept as {turn.seq}"
        starts = [attempt.started_at for attempt in attempts.get(turn.turn_id, [])]
        if starts and min(starts) < settled_at:
            yield f"{turn.key}: begun before the turn before it had settled"
        settled_at = turn.settled_at or settled_at


def _mismatched(conversation: list[TurnRow], model: str) -> Iterator[str]:
    said: list[tuple[str, str]] = []
    for turn in conversation:
        asked = [*said, ("user", turn.text)]
        if turn.reply is None:
            continue
        if turn.reply.partition(" ")[0] != digest(asked, model):
            yield f"{turn.key}: answered by another model, or with another history than before it"
        said = [*asked, ("assistant", turn.reply)]


def spoken(text: str) -> str:
    """What the echo makes of a text: its magic words are not spoken."""
    return MAGIC.sub("", text).strip()
