"""Checks of a reply, sentence by sentence, and of what prompts repeat."""

import time
from uuid import uuid4

import pytest

from turnmill.schemas.safety.policy import Safety
from turnmill.workers.checks.words import WordsCheck
from turnmill.workers.engines.base import Chunk
from turnmill.workers.safety.examiner import Examiner
from turnmill.workers.safety.guard import Guard
from turnmill.workers.safety.output import CheckFilter


@pytest.mark.parametrize("length", range(440, 500, 7))
def test_a_long_sentence_is_not_cut_within_what_is_masked(length: int) -> None:
    safety = Safety(checks=("words:mask",), words=("one two three four five six",))
    masking = CheckFilter(Examiner(safety, uuid4()))
    text = ("so " * 200)[:length] + " one two three four five six" + " and so on" * 60
    chunks = [*map(Chunk, text), Chunk("", finish_reason="stop")]
    shown = "".join(chunk.text for chunk in Guard([masking]).read(chunks))
    assert shown == text.replace("one two three four five six", "<word>")


def test_many_words_are_looked_for_quickly() -> None:
    words = tuple(f"w{number}" for number in range(999))
    check = WordsCheck(Safety(words=(*words, "火箭")))
    begun = time.process_time()
    assert check.examine("a letter " * 10_000) == []
    assert time.process_time() - begun < 5
    found = check.examine("W12, a火箭, w1234 aw12")
    assert [(each.start, each.end) for each in found] == [(0, 3), (6, 8)]
