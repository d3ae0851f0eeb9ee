"""How conversations are split and cut into windows."""

from itertools import pairwise
from typing import Any

import pytest

pytest.importorskip("torch")

from tests.compression_models import make_conversations
from turnmill.compression.texts import Texts, Windows, make_texts, part_of
from turnmill.schemas.errors import InvalidInput

WINDOWS = Windows(length=64, calibration=8, train=32, heldout=6, prose=6)


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

    assert {each.id for each in texts.conversations} <= {each.id for each in originals}


def test_windows_have_the_length_and_number_that_were_asked_for(tiny_texts: Texts) -> None:
    shapes = [tuple(each.shape) for each in (tiny_texts.calibration, tiny_texts.heldout)]

    assert shapes == [(8, 64), (6, 64)]
    assert tiny_texts.train.shape[0] <= 32
    assert all(not a.equal(b) for a, b in pairwise(tiny_texts.train))


def test_too_few_conversations_are_refused_with_the_empty_part(tiny_tokenizer: Any) -> None:
    with pytest.raises(InvalidInput, match="3 conversations are too few"):
        make_texts(make_conversations(3), "Prose.", tiny_tokenizer, WINDOWS)
