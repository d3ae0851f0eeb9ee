"""Drafts: which turns go for a prompt to fit, and how seldom its beginning changes."""

from collections.abc import Sequence
from itertools import pairwise

from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import Message, Role
from turnmill.workers.draft import KEPT_SHARE, Draft, PastTurn, Summary
from turnmill.workers.engines.echo import EchoEngine

#: One word is one token.
ENGINE = EchoEngine(EngineSettings())
BUDGET = 400


def said(role: Role, words: int) -> Message:
    return Message(role=role, content="word " * words)


def draft(seqs: Sequence[int], asked_words: int = 10, words: int = 20) -> Draft:
    """Turns of `words` words each, before a question."""
    return Draft(
        ENGINE,
        budget=BUDGET,
        instructions=("Be kind.",),
        past=[PastTurn(seq, (said(Role.USER, words),)) for seq in seqs],
        asked=(said(Role.USER, asked_words),),
    )


def first_seq(each: Draft) -> int:
    """The first turn that stays."""
    fewest = each.fewest_to_drop()
    assert fewest is not None
    return each.past[each.steady_to_drop(fewest)].seq


def test_prompts_of_a_long_conversation_mostly_begin_like_the_one_before() -> None:
    firsts = [first_seq(draft(range(1, seq))) for seq in range(2, 400)]
    changes = sum(one != other for one, other in pairwise(firsts))
    # 19 turns fit; dropping just enough would change the beginning 379 times.
    assert 379 / 5 < changes < 379 / 2
    assert firsts == sorted(firsts)


def test_no_more_is_dropped_than_a_share_of_what_fits() -> None:
    for seq in range(30, 200):
        each = draft(range(1, seq))
        fewest = each.fewest_to_drop()
        assert fewest is not None
        dropped = each.steady_to_drop(fewest)
        assert each.fits(dropped)
        assert len(each.past) - dropped >= KEPT_SHARE * (len(each.past) - fewest)


def test_what_is_left_of_a_pruned_conversation_begins_at_the_same_turn() -> None:
    """Nor does it matter how much of the past is read."""
    for seq in range(60, 160):
        assert first_seq(draft(range(1, seq))) == first_seq(draft(range(seq - 30, seq)))


def test_a_long_question_makes_room_for_its_own_turn_only() -> None:
    usual = first_seq(draft(range(1, 101)))
    assert first_seq(draft(range(1, 101), asked_words=300)) > usual
    assert first_seq(draft(range(1, 101))) == usual


def test_one_turn_that_alone_is_too_long_goes_too() -> None:
    each = draft([1, 2], words=500)
    assert each.fewest_to_drop() == 2
    assert each.steady_to_drop(2) == 2
    assert draft([1], asked_words=500).fewest_to_drop() is None


def test_a_summary_takes_the_place_of_the_turns_that_it_tells_of() -> None:
    each = draft(range(1, 5)).after(Summary(3, "They spoke."))
    assert [turn.seq for turn in each.past] == [4]
    system, *_ = each.messages(0)
    assert system.role is Role.SYSTEM
    assert system.content.startswith("Be kind.\n\n")
    assert system.content.endswith("They spoke.")
    # There is none yet.
    assert draft(range(1, 5)).after(Summary()) == draft(range(1, 5))
