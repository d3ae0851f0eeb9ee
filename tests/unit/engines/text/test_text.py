"""Nothing that a later token may change is shown; everything else is shown at once."""

import pytest

from turnmill.workers.engines.base import Chunk
from turnmill.workers.engines.text.stops import REPLACEMENT, Detokenizer, StopFilter

SAMPLE = "Ein 😀👩‍👩‍👧 läuft: 你好世界。 naïve café\n"


def decode(tokens: list[int]) -> str:
    """The hardest tokenizer: each byte is a token."""
    return bytes(tokens).decode(errors="replace")


def decode_dropping(tokens: list[int]) -> str:
    """OpenVINO drops bytes that make no character."""
    return bytes(tokens).decode(errors="ignore")


@pytest.mark.parametrize("decoder", [decode, decode_dropping])
def test_characters_come_whole_and_in_order(decoder: object) -> None:
    detokenizer = Detokenizer(decoder)  # type: ignore[arg-type]
    pieces = [detokenizer.push(token) for token in SAMPLE.encode()]
    assert "".join(pieces) + detokenizer.flush() == SAMPLE
    assert not any(REPLACEMENT in piece for piece in pieces)


def test_bytes_that_make_no_character_do_not_hold_up_the_text() -> None:
    detokenizer = Detokenizer(decode)
    pieces = [detokenizer.push(token) for token in b"\xf0" * 12 + b"then text"]
    assert "".join(pieces).endswith("then text")


def test_half_a_character_at_the_end_is_dropped() -> None:
    detokenizer = Detokenizer(decode)
    assert [detokenizer.push(token) for token in "é".encode()[:1]] == [""]
    assert detokenizer.flush() == ""


def test_a_text_that_goes_on_keeps_its_space() -> None:
    def strips_start(tokens: list[int]) -> str:
        return "".join(" word" for _ in tokens).removeprefix(" ")

    assert Detokenizer(strips_start).push(1) == "word"
    assert Detokenizer(strips_start, context=[1]).push(1) == " word"


@pytest.mark.parametrize(
    ("stops", "text", "shown", "is_stopped"),
    [
        ((), "abc", "abc", False),
        (("b",), "abc", "a", True),
        (("END",), "the EN, the END.", "the EN, the ", True),
        (("\n\n", "User:"), "Hi\nUser: no", "Hi\n", True),
        (("aab",), "aaab", "a", True),
        (("xyz",), "half: xy", "half: xy", False),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_text_ends_before_the_first_stop_string(
    stops: tuple[str, ...], text: str, shown: str, is_stopped: bool, size: int
) -> None:
    stop_filter = StopFilter(stops)
    chunks = [stop_filter.push(text[at : at + size]) for at in range(0, len(text), size)]
    chunks.append(stop_filter.push("", 0, is_last=True))
    assert "".join(chunk.text for chunk in chunks) == shown
    assert stop_filter.is_stopped is is_stopped


@pytest.mark.parametrize(
    ("stops", "text", "shown", "is_stopped"),
    [
        (("END",), "the EN, the END.", "the EN, the ", True),
        (("\n\n", "User:"), "Hi\nUser: no", "Hi\n", True),
        (("aab",), "aaab", "a", True),
        (("xyz",), "half: xy", "half: xy", False),
        (("b", "aaaa"), "aaab", "aaa", True),
    ],
)
def test_wherever_a_text_is_cut_it_goes_on_the_same_and_no_token_counts_twice(
    stops: tuple[str, ...], text: str, shown: str, is_stopped: bool
) -> None:
    for cut in range(1, len(text)):
        before = StopFilter(stops)
        kept = [before.push(letter) for letter in text[:cut]]
        if before.is_stopped:
            break
        kept_text = "".join(chunk.text for chunk in kept)
        kept_count = sum(chunk.token_count for chunk in kept)
        after = StopFilter(stops, kept_text)
        rest = [after.push(letter) for letter in text[kept_count:]]
        rest.append(after.push("", 0, is_last=True))
        assert kept_text + "".join(chunk.text for chunk in rest) == shown
        assert after.is_stopped is is_stopped


def test_a_stop_string_that_begins_in_what_was_shown_still_ends_the_text() -> None:
    stop_filter = StopFilter(("aab",), "a")
    assert stop_filter.push("ab and more").text == ""
    assert stop_filter.is_stopped


def test_only_what_may_begin_a_stop_string_is_held_back_and_always_whole_tokens() -> None:
    stop_filter = StopFilter(("STOP",))
    assert stop_filter.push("go") == Chunk("go", 1)
    assert stop_filter.push(" ST", 2) == Chunk("", 0)
    assert stop_filter.push("AY") == Chunk(" STAY", 3)
