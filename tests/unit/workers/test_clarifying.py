"""What a clarifying question shows, and how photos of phones are called."""

from types import SimpleNamespace
from typing import Any

import pytest

from turnmill.schemas.channels.unknown import UnknownPolicy
from turnmill.schemas.files.sniffing import sniff
from turnmill.schemas.ids import new_id
from turnmill.schemas.store.knowledge.verdicts import Verdict
from turnmill.workers.context.ladder import MAX_QUESTION_CHARS, _LastRow, last_missed, said


def test_a_title_that_is_offered_is_nothing_but_words() -> None:
    text = said(UnknownPolicy(), Verdict.CLARIFY, "Which?", ["[Win](https://a.example) @all"])
    assert "](" not in text
    assert "https://" not in text
    assert "@all" not in text


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1", b"avif"])
def test_a_photo_is_no_sound(brand: bytes) -> None:
    assert sniff(b"\0\0\0\x20ftyp" + brand + bytes(8)).startswith("image/")


def test_of_a_long_message_before_it_the_end_is_searched_for() -> None:
    row = _LastRow("completed", "x" * 400_000 + "y", "clarify", [])
    database: Any = SimpleNamespace(fetch=lambda *_: [row])
    missed = last_missed(database, new_id(), 2)
    assert missed is not None
    assert len(missed.question) == MAX_QUESTION_CHARS
    assert missed.question.endswith("y")
