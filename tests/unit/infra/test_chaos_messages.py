"""The checker of messages finds what is wrong: platforms that show it on purpose."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from turnmill.infra.chaos.channels.checker import check_messages
from turnmill.infra.chaos.channels.handing import HANDED_OFF, RESUMED, due_recall
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


def handed() -> list[Shown]:
    """A thread whose bot was still writing its third answer when a person was asked for."""
    name = "c6"
    return [
        Shown(name, "C/1", f"0123abcd {name}/1 hello there", is_whole=True),
        Shown(name, "C/2", f"0123abcd {name}/2 hello there", is_whole=True),
        Shown(name, "C/3", f"0123abcd {name}/3 hello", is_whole=True),
        Shown(name, "C/4", HANDED_OFF, is_whole=True),
        Shown(name, "C/5", RESUMED, is_whole=True),
        Shown(name, "C/6", f"0123abcd {' '.join(due_recall(name))}", is_whole=True),
        Shown(name, "C/7", f"0123abcd {name}/8 hello there", is_whole=True),
    ]


def test_a_thread_that_a_person_answered_for_a_while_is_in_order() -> None:
    assert handed_findings(handed()) == {}
    assert handed_findings([handed()[0], *handed()[3:]]) == {}, "the person may take over sooner"


def handed_findings(shown: list[Shown]) -> dict[str, int]:
    asked = [Intent(f"c6-{n}", "c6", n, f"c6/{n} hello there", n) for n in range(1, 9)]
    record: list[Entry] = [*asked, *(Promise(i.key, "", 1, 0, 1) for i in asked), *shown]
    return {name: len(found) for name, found in check_messages(record).items() if found}


def said(shown: list[Shown], place: int, text: str) -> list[Shown]:
    return [*shown[:place], replace(shown[place], text=text), *shown[place + 1 :]]


HANDED_WRONGS: dict[str, tuple[set[str], Callable[[list[Shown]], list[Shown]]]] = {
    "the bot speaks while a person answers": (
        {"phantom messages", "messages lost"},
        lambda s: [*s[:4], s[6], *s[4:6]],
    ),
    "the bot answers what a person was to answer": (
        {"phantom messages"},
        lambda s: [*s, replace(s[6], text="0123abcd c6/5 hello there")],
    ),
    "nobody says that a person was asked": ({"messages lost"}, lambda s: [*s[:2], *s[4:]]),
    "it is said twice": ({"messages doubled"}, lambda s: [*s[:4], s[3], *s[4:]]),
    "nobody says that the bot is back": (
        {"messages lost", "phantom messages"},
        lambda s: [*s[:4], *s[5:]],
    ),
    "the bot resumes without a message": (
        {"messages lost"},
        lambda s: said(s, 5, s[5].text.replace("c6/6 ", "")),
    ),
    "the bot resumes without the person's answer": (
        {"messages lost"},
        lambda s: said(s, 5, s[5].text.replace("p6/5 ", "")),
    ),
    "the bot resumes with a message twice": (
        {"messages doubled"},
        lambda s: said(s, 5, f"{s[5].text} c6/2"),
    ),
    "the bot resumes with another order": (
        {"messages reordered"},
        lambda s: said(s, 5, s[5].text.replace("c6/1 c6/2", "c6/2 c6/1")),
    ),
    "the bot does not resume": ({"messages lost"}, lambda s: [*s[:5], s[6]]),
    "what was begun is never finished": (
        {"phantom messages"},
        lambda s: [*s[:2], replace(s[2], is_whole=False), *s[3:]],
    ),
}


@pytest.mark.parametrize("wrong", HANDED_WRONGS)
def test_a_promise_about_a_person_that_is_broken_is_found_in_its_set(wrong: str) -> None:
    kinds, spoil = HANDED_WRONGS[wrong]
    assert set(handed_findings(spoil(handed()))) == kinds
