"""Drafts: which turns go for a prompt to fit, and how seldom its beginning changes."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from turnmill.schemas.content import Document, MediaPart, TextPart, ToolCall
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import Message, Role
from turnmill.workers.engines.base import Prompt
from turnmill.workers.engines.echo import EchoEngine
from turnmill.workers.turn.draft import (
    DOCUMENTS_HEADING,
    KEPT_SHARE,
    Draft,
    PastTurn,
    Summary,
)

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


class Rendering(EchoEngine):
    """Its chat template writes the values that a turn gives it."""

    def count_tokens(self, prompt: Prompt) -> int:
        given = " ".join(map(str, prompt.template_kwargs.values()))
        written = Message(role=Role.USER, content=given)
        return super().count_tokens(Prompt((*prompt.messages, written)))


def test_what_a_turn_gives_the_chat_template_takes_its_room() -> None:
    bare = replace(draft(range(1, 100)), engine=Rendering(EngineSettings()))
    given = replace(bare, template_kwargs={"notes": "word " * 40})
    assert given.fewest_to_drop() == (bare.fewest_to_drop() or 0) + 2
    passage = Document(title="a", text="word " * 30)
    room = replace(given, past=(), asked=(said(Role.USER, BUDGET - 70),))
    assert replace(room, template_kwargs={}).with_documents((passage,), 90).documents
    assert not room.with_documents((passage,), 90).documents


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


DOCUMENTS = tuple(Document(title=f"t{n}", text=f"passage{n} " + "word " * 20) for n in range(9))


def test_documents_stand_with_the_question_and_nowhere_else() -> None:
    plain = draft([1, 2])
    told = plain.with_documents(DOCUMENTS[:2], BUDGET)
    assert told.messages(0)[:-1] == plain.messages(0)[:-1]
    text = told.messages(0)[-1].text
    assert text.index(DOCUMENTS_HEADING) < text.index("[1] t0") < text.index("[2] t1")
    assert text.endswith(plain.asked[-1].text)


def test_documents_that_take_more_than_their_budget_are_left_out_from_the_end() -> None:
    told = draft([]).with_documents(DOCUMENTS, 100)
    assert 0 < len(told.documents) < 5
    assert told.documents == DOCUMENTS[: len(told.documents)]
    assert draft([]).with_documents(DOCUMENTS, 5).documents == ()


def test_the_turn_s_own_messages_go_before_documents() -> None:
    full = draft([], asked_words=BUDGET - 60).with_documents(DOCUMENTS, BUDGET)
    assert len(full.documents) == 1
    assert full.fits(0)


def test_turns_of_the_past_make_room_for_documents() -> None:
    told = draft(range(1, 40)).with_documents(DOCUMENTS, BUDGET // 2)
    fewest = told.fewest_to_drop()
    assert told.documents and fewest
    assert told.fits(fewest)


def test_documents_before_a_picture_or_a_tool_s_result() -> None:
    picture = MediaPart(type="image", url="https://a.example/1.png")
    asked = (Message(role=Role.USER, content=(picture,)),)
    seen = replace(draft([]), asked=asked).with_documents(DOCUMENTS[:1], BUDGET)
    block, *rest = seen.messages(0)[-1].content
    assert isinstance(block, TextPart) and rest == [picture]
    result = (Message(role=Role.TOOL, content="42", tool_call_id="1"),)
    told = replace(draft([]), asked=result).with_documents(DOCUMENTS[:1], BUDGET)
    assert [each.role for each in told.messages(0)[1:]] == [Role.USER, Role.TOOL]


def _person(seq: int, *said: tuple[Role, str]) -> PastTurn:
    """What was said in a turn while a person answered."""
    return PastTurn(seq, tuple(Message(role=role, content=text) for role, text in said))


def _spoken(each: Draft, dropped: int = 0) -> list[tuple[Role, str]]:
    return [(message.role, message.text) for message in each.messages(dropped)[1:]]


def test_what_one_side_says_in_turns_after_each_other_is_one_message() -> None:
    past = [
        _person(1, (Role.USER, "Hello")),
        _person(2, (Role.USER, "Hello?")),
        _person(3, (Role.ASSISTANT, "Ada here.")),
        _person(4, (Role.ASSISTANT, "How can I help?")),
        _person(5, (Role.USER, "My parcel")),
    ]
    asked = (Message(role=Role.USER, content="is late."),)
    assert _spoken(replace(draft([]), past=past, asked=asked)) == [
        (Role.USER, "Hello\nHello?"),
        (Role.ASSISTANT, "Ada here.\nHow can I help?"),
        (Role.USER, "My parcel\nis late."),
    ]


def test_a_prompt_begins_with_the_user_though_a_person_spoke_first() -> None:
    past = [
        _person(1, (Role.USER, "Hello")),
        _person(2, (Role.ASSISTANT, "Ada here.")),
        _person(3, (Role.USER, "Good day"), (Role.ASSISTANT, "Good day")),
    ]
    each = replace(draft([]), past=past)
    assert [role for role, _ in _spoken(each, 1)][:3] == [Role.USER, Role.ASSISTANT, Role.USER]
    assert _spoken(each, 2)[0] == (Role.USER, "Good day")


def test_messages_that_a_client_sent_in_one_turn_stay_as_it_sent_them() -> None:
    asked = tuple(Message(role=Role.USER, content=text) for text in ("one", "two"))
    assert _spoken(replace(draft([]), asked=asked)) == [(Role.USER, "one"), (Role.USER, "two")]


def test_messages_with_tools_are_never_joined() -> None:
    call = ToolCall(id="c", name="look", arguments="{}")
    past = [
        PastTurn(1, (Message(role=Role.ASSISTANT, content="", tool_calls=(call,)),)),
        _person(2, (Role.ASSISTANT, "Ada here.")),
    ]
    assert len(replace(draft([]), past=past).messages(0)) == 5


def test_an_image_keeps_its_bytes_where_messages_are_joined() -> None:
    shown = MediaPart.model_construct(type="image", file_id="file_1", url="data:image/png;base64,x")
    past = [PastTurn(1, (Message.model_construct(role=Role.USER, content=(shown,)),))]
    asked = (Message(role=Role.USER, content="What is this?"),)
    message = replace(draft([]), past=past, asked=asked).messages(0)[-1]
    assert message.content == (shown, TextPart(text="What is this?"))
