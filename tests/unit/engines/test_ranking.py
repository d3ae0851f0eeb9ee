"""The order in which the local engines give places to turns."""

from turnmill.schemas.turns import GenerationParams, Lane
from turnmill.workers.engines.local.ranking import RANK, Line, Ranked, may_replace
from turnmill.workers.engines.local.scheduling import Generation


def turns(line: Line[Ranked], *lanes: Lane) -> list[Ranked]:
    return [
        Ranked(Generation([1], 1, GenerationParams(), lane), line.next_order()) for lane in lanes
    ]


def test_interactive_turns_join_first_and_each_lane_in_order_of_arrival() -> None:
    line: Line[Ranked] = Line()
    batch, chat, later_batch, later_chat = turns(
        line, Lane.BATCH, Lane.INTERACTIVE, Lane.BATCH, Lane.INTERACTIVE
    )
    for turn in (later_chat, later_batch, chat, batch):
        line.add(turn)
    assert list(line) == [chat, later_chat, batch, later_batch]


def test_a_paused_turn_waits_at_its_rank_and_not_at_the_end() -> None:
    line: Line[Ranked] = Line()
    paused, newer = turns(line, Lane.BATCH, Lane.BATCH)
    line.add(newer)
    line.add(paused)
    assert line.first is paused


def test_only_an_interactive_turn_takes_a_place_and_only_of_the_batch_lane() -> None:
    chat, batch, later_chat = turns(Line(), Lane.INTERACTIVE, Lane.BATCH, Lane.INTERACTIVE)
    assert max((chat, batch, later_chat), key=RANK) is batch
    assert may_replace(chat, batch)
    assert not may_replace(later_chat, chat)
    assert not may_replace(batch, batch)
