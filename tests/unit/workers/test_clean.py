"""Text from engines: whatever comes in, only what PostgreSQL and UTF-8 can hold passes."""

import random

import pytest

from turnmill.workers.engines.base import Chunk
from turnmill.workers.turn.clean import clean, storable

SMILE = "\U0001f600"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        (f"{SMILE} 客服", f"{SMILE} 客服"),
        ("a\0b", "a\ufffdb"),
        ("cut \ud83d", "cut \ufffd"),
        ("\ude00 cut", "\ufffd cut"),
        ("\ud83dx\ude00", "\ufffdx\ufffd"),
        ("\ud83d\ud83d\ude00", f"\ufffd{SMILE}"),
    ],
)
def test_what_cannot_be_stored_is_replaced_and_the_rest_stays(text: str, expected: str) -> None:
    assert storable(text) == expected


def test_however_a_text_is_cut_into_chunks_it_reads_the_same() -> None:
    chance = random.Random(11)
    for _ in range(500):
        characters = chance.choices("ab\0\ud83d\ude00\ufffd客", k=chance.randrange(1, 12))
        cuts = [Chunk(character, 1) for character in characters]
        text = "".join(chunk.text for chunk in clean([*cuts, Chunk("", finish_reason="stop")]))
        assert text == storable("".join(characters))
        text.encode()


def test_all_but_the_text_of_a_chunk_stays_as_it_was() -> None:
    last = Chunk("\0", 3, "length", prompt_tokens=5, cached_tokens=2)
    assert list(clean([last])) == [Chunk("\ufffd", 3, "length", prompt_tokens=5, cached_tokens=2)]
