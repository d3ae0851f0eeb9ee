"""The checker of messages finds what is wrong: platforms that show it on purpose."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from turnmill.infra.chaos.channels.checker import check_messages
from turnmill.infra.chaos.record import Entry, Intent, Promise, Shown

ASKED = {"c1": 3, "c2": 2}


def intents() -> list[Intent]:
    return [
        Intent(f"{name}-{number}", name, number, f"{name}/{number} hello there", number)
        for name, count in ASKED.items()
        for number in range(1, count + 1)
    ]


def answers() -> list[Shown]:
    return [
        Shown(each.conversation, f"C/{n}", f"0123abcd {each.text}", is_whole=True)
        for n, each in enumerate(intents())
    ]


def findings(shown: list[Shown]) -> dict[str, int]:
    """The sets that are not empty."""
    record: list[Entry] = [*intents(), *(Promise(i.key, "", 1, 0, 1) for i in intents()), *shown]
    return {name: len(found) for name, found in check_messages(record).items() if found}


def test_kept_promises_leave_every_set_empty() -> None:
    assert findings(answers()) == {}


def test_several_messages_may_be_answered_together() -> None:
    first, second, third, *others = answers()
    together = replace(first, text=f"{first.text}\n{second.text.partition(' ')[2]}")
    assert findings([together, third, *others]) == {}


def swapped(shown: list[Shown]) -> list[Shown]:
    return [shown[1], shown[0], *shown[2:]]


def changed(**fields: object) -> Callable[[list[Shown]], list[Shown]]:
    return lambda shown: [replace(shown[0], **fields), *shown[1:]]  # type: ignore[arg-type]


WRONGS: dict[str, tuple[set[str], Callable[[list[Shown]], list[Shown]]]] = {
    "an answer is gone": ({"messages lost"}, lambda s: s[1:]),
    "an answer is never finished": ({"messages lost"}, changed(is_whole=False)),
    "an answer comes twice": ({"messages doubled"}, lambda s: [*s, s[0]]),
    "an answer stands beside the beginning of it": (
        {"messages doubled"},
        lambda s: [replace(s[0], text=s[0].text[:15]), *s],
    ),
    "two answers change places": ({"messages reordered"}, swapped),
    "an answer is cut": ({"messages lost", "phantom messages"}, changed(text="0123abcd c1/1 hel")),
    "an answer to nobody": (
        {"phantom messages"},
        lambda s: [*s, replace(s[0], text="0123abcd c9/1 hello there")],
    ),
    "an empty message": (
        {"phantom messages"},
        lambda s: [*s, Shown("c3", "C/9", "", is_whole=True)],
    ),
    "an excuse": ({"phantom messages"}, lambda s: [*s, replace(s[0], text="Sorry, I could not.")]),
    "an answer in another thread": ({"in the wrong thread"}, changed(conversation="c2")),
    "an answer in no thread": ({"in the wrong thread"}, changed(conversation="")),
}


@pytest.mark.parametrize("wrong", WRONGS)
def test_a_broken_promise_is_found_in_its_set(wrong: str) -> None:
    kinds, spoil = WRONGS[wrong]
    assert set(findings(spoil(answers()))) == kinds
