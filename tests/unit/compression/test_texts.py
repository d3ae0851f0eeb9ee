"""How conversations are split and cut into windows."""

import copy
import itertools
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

pytest.importorskip("torch")

from tests.compression_models import make_conversations
from turnmill.compression.texts import (
    Conversation,
    Texts,
    Windows,
    longest_chats,
    make_texts,
    part_of,
)
from turnmill.schemas.errors import InvalidInput

WINDOWS = Windows(length=64, calibration=8, train=32, heldout=6, prose=6)
#: More than there is text.
LARGE = Windows(length=64, calibration=2000, train=2000, heldout=2000, prose=6)


def test_same_conversations_give_same_windows_in_any_order(
    tiny_texts: Texts, tiny_tokenizer: Any
) -> None:
    turned = list(reversed(make_conversations()))

    again = make_texts(turned, "Another prose.", tiny_tokenizer, WINDOWS)

    assert again.digest == tiny_texts.digest
    assert again.heldout.equal(tiny_texts.heldout)


def test_conversation_keeps_its_part_when_others_leave() -> None:
    before = {each.id: part_of(each.id) for each in make_conversations(60)}

    after = {each.id: part_of(each.id) for each in make_conversations(30)}

    assert after.items() <= before.items()
    assert {"heldout", "calibration", "train"} == set(before.values())


def test_copy_of_a_conversation_under_another_id_does_not_leak(tiny_tokenizer: Any) -> None:
    originals = make_conversations()
    copies = [type(each)(f"copy-{each.id}", each.messages) for each in originals]

    texts = make_texts([*originals, *copies], "Prose.", tiny_tokenizer, WINDOWS)

    taught = tiny_tokenizer.decode([*texts.train.flatten(), *texts.calibration.flatten()])
    assert texts.conversations
    assert not any(each.messages[0]["content"] in taught for each in texts.conversations)
    # Nor does it matter which of the files came first.
    turned = make_texts([*copies, *originals], "Prose.", tiny_tokenizer, WINDOWS)
    assert turned.digest == texts.digest
    assert turned.conversations == texts.conversations


def spoken(*contents: str) -> Conversation:
    """A chat that user and assistant have in turn, known by all that was said in it."""
    roles = itertools.cycle(("user", "assistant"))
    messages = tuple({"role": next(roles), "content": each} for each in contents)
    return Conversation(" ".join(contents), messages)


def taught_by(texts: Texts, tokenizer: Any) -> str:
    return str(tokenizer.decode([*texts.train.flatten(), *texts.calibration.flatten()]))


def test_a_chat_its_prompt_and_its_beginning_are_in_one_part(tiny_tokenizer: Any) -> None:
    prompts = [spoken(f"Where is parcel {number}?") for number in range(1000, 1200)]
    asked = [each.messages[0]["content"] for each in prompts]
    short = [spoken(each, "Under way.") for each in asked]
    long = [spoken(each, "Under way.", "Since when?", "Monday.") for each in asked]
    taught = [spoken(each, "A teacher says this.") for each in asked]
    given = [*long, *taught, *prompts, *short]

    texts = make_texts(given, "Prose.", tiny_tokenizer, LARGE)

    judged = {each.messages[0]["content"] for each in texts.conversations}
    # A tenth of the chats, and none that was taught under any of their names.
    assert 10 < len(judged) < 40
    learned = taught_by(texts, tiny_tokenizer)
    assert not [each for each in judged if each in learned]
    # The chat that a prompt begins goes where the prompt was without it.
    alone = make_texts(prompts, "Prose.", tiny_tokenizer, LARGE)
    assert judged == {each.messages[0]["content"] for each in alone.conversations}
    turned = make_texts(given[::-1], "Prose.", tiny_tokenizer, LARGE)
    assert (turned.digest, turned.conversations) == (texts.digest, texts.conversations)


def test_chats_that_begin_with_the_same_greeting_are_split(tiny_tokenizer: Any) -> None:
    greeted = ("Hi", "Welcome to the shop.")
    chats = [spoken(*greeted, f"Where is parcel {n}?", "Under way.") for n in range(1000, 1300)]
    # One who left before asking anything, and one whose greeting was not answered.
    left = [spoken(*greeted), spoken("Hi")]

    texts = make_texts([*left, *chats], "Prose.", tiny_tokenizer, LARGE)

    assert texts.digest == make_texts(chats, "Prose.", tiny_tokenizer, LARGE).digest
    judged = {each.messages[2]["content"] for each in texts.conversations}
    assert 15 < len(judged) < 60
    assert not [each for each in judged if each in taught_by(texts, tiny_tokenizer)]


def test_documents_are_no_beginning_of_chats(tiny_tokenizer: Any) -> None:
    documents = [Conversation(f"text-{number}", (), f"Text {number}.") for number in range(40)]

    found = longest_chats([*documents, *make_conversations()])

    assert {each.id for each in found} == {each.id for each in [*documents, *make_conversations()]}


MILL = " ".join(f"The wheel of mill {number} turns slowly in the morning." for number in range(40))


def test_documents_that_hold_the_prose_are_left_out_and_counted(tiny_tokenizer: Any) -> None:
    given = make_conversations()
    holding = [
        Conversation("whole", (), MILL),
        # Of another spacing, and within a chat.
        replace(given[0], id="part", messages=({"role": "user", "content": MILL[333:600]},)),
        Conversation("spaced", (), "Once more. " + MILL[40:900].replace(" ", "\n")),
    ]
    short = Conversation("a-sentence-in-common", (), MILL[:60])

    texts = make_texts([*holding, *given, short], MILL, tiny_tokenizer, WINDOWS)

    assert texts.digest == make_texts([*given, short], MILL, tiny_tokenizer, WINDOWS).digest
    (note,) = texts.notes
    assert note.startswith("3 of 64 conversations are left out: they share a passage")
    assert note.endswith("First: 'whole'.")


def test_data_that_is_the_prose_is_refused(tiny_tokenizer: Any) -> None:
    documents = [Conversation(str(start), (), MILL[start:]) for start in range(60)]

    with pytest.raises(InvalidInput, match="Give another --prose"):
        make_texts(documents, MILL, tiny_tokenizer, WINDOWS)


def test_windows_have_the_length_and_number_that_were_asked_for(tiny_texts: Texts) -> None:
    shapes = [tuple(each.shape) for each in (tiny_texts.calibration, tiny_texts.heldout)]

    assert shapes == [(8, 64), (6, 64)]
    assert tiny_texts.train.shape[0] <= 32
    assert all(not a.equal(b) for a, b in pairwise(tiny_texts.train))


def test_too_few_conversations_are_refused_with_the_empty_part(tiny_tokenizer: Any) -> None:
    with pytest.raises(InvalidInput, match="3 different conversations are too few"):
        make_texts(make_conversations(3) * 20, "Prose.", tiny_tokenizer, WINDOWS)


@pytest.fixture
def strict_tokenizer(tiny_tokenizer: Any) -> Any:
    """Its template wants roles to alternate, as those of Mistral and Gemma do."""
    strict = copy.deepcopy(tiny_tokenizer)
    strict.chat_template = (
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Roles must alternate') }}{% endif %}"
        "<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
    )
    return strict


def with_system(conversation: Conversation) -> Conversation:
    system = {"role": "system", "content": "Be kind."}
    return replace(conversation, messages=(system, *conversation.messages))


def test_what_a_strict_template_refuses_is_left_out_and_counted(strict_tokenizer: Any) -> None:
    given = make_conversations()
    some = [with_system(each) if index % 5 == 0 else each for index, each in enumerate(given)]
    others = [each for index, each in enumerate(given) if index % 5]

    texts = make_texts(some, "Prose.", strict_tokenizer, WINDOWS)

    assert texts.digest == make_texts(others, "Prose.", strict_tokenizer, WINDOWS).digest
    (note,) = texts.notes
    assert note.startswith("12 of 60 conversations are left out.")
    assert "refuses the conversation 'ticket-0': Roles must alternate" in note
    # Nor do replies meet one.
    assert not any(each.messages[0]["role"] == "system" for each in texts.conversations)


def test_a_template_that_refuses_all_is_told_with_the_first(strict_tokenizer: Any) -> None:
    refused = [with_system(each) for each in make_conversations()]

    with pytest.raises(InvalidInput, match="'ticket-0': Roles must alternate"):
        make_texts(refused, "Prose.", strict_tokenizer, WINDOWS)
