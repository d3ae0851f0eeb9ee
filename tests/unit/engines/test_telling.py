"""Log-probabilities are told by the texts of tokens, as they stand in the reply."""

import pytest

from turnmill.schemas.content import TokenLogprob, token_bytes, token_text
from turnmill.schemas.openai.replies import ChoiceLogprobs
from turnmill.schemas.turns import GenerationParams
from turnmill.workers.engines.local.batching import TextSide
from turnmill.workers.engines.local.scheduling import Generation, Token
from turnmill.workers.engines.local.telling import Telling
from turnmill.workers.engines.text.chat_template import ChatTemplate

PIECES = {1: " a", 2: " b", 3: " c", 9: "<end>"}


def decode(ids: list[int]) -> str:
    """As some tokenizers do: without the space of the first token."""
    return "".join(PIECES[id] for id in ids).removeprefix(" ")


TEXT = TextSide(ChatTemplate(""), lambda _: [], decode)


def test_tokens_and_the_likeliest_in_their_place_are_told_once() -> None:
    tokens = [
        Token(1, logprobs=((1, -0.5), (1, -0.5), (2, -1.0), (3, -3.0))),
        Token(3, logprobs=((3, -4.0), (1, -0.1), (2, -0.2), (3, -4.0))),
        Token(9, "stop", logprobs=((9, -0.1), (9, -0.1), (2, -5.0))),
    ]
    telling = Telling(tokens, TEXT, Generation([2], 10, GenerationParams(logprobs=2)))
    assert [token.id for token in telling] == [1, 3, 9]
    first, second = telling.told()
    assert (first.text, first.logprob, first.top) == (" a", -0.5, ((" a", -0.5), (" b", -1.0)))
    assert (second.text, second.logprob, second.top) == (" c", -4.0, ((" a", -0.1), (" b", -0.2)))
    assert telling.told() == ()


def test_nothing_is_told_of_what_no_turn_asks_for() -> None:
    telling = Telling([Token(1), Token(9, "stop")], TEXT, Generation([2], 10, GenerationParams()))
    assert len(list(telling)) == 2
    assert telling.told() == ()


#: As byte-level tokenizers write this: characters in two tokens, and one that begins with a space.
PARTS = [
    b"\xe5\xa5",
    b"\xbd",
    "的，".encode(),
    b"\xe9\x80",
    b"\x80",
    b" \xf0\x9f",
    b"\x98\x80",
    b" a",
]


def test_the_bytes_of_tokens_that_are_parts_of_characters_make_the_text() -> None:
    text = TextSide(
        ChatTemplate(""),
        lambda _: [],
        lambda ids: b"".join(PARTS[id] for id in ids).decode(errors="replace"),
        lambda id: PARTS[id],
    )
    tokens = [Token(id, logprobs=((id, -0.5), (id, -0.5))) for id in range(len(PARTS))]
    telling = Telling(tokens, text, Generation([7], 20, GenerationParams(logprobs=1)))
    list(telling)
    logprobs = ChoiceLogprobs.of(telling.told())
    assert logprobs is not None
    assert [bytes(each.bytes or []) for each in logprobs.content] == PARTS
    assert [bytes(each.top_logprobs[0].bytes or []) for each in logprobs.content] == PARTS
    assert (logprobs.content[0].token, logprobs.content[2].token) == ("bytes:\\xe5\\xa5", "的，")


@pytest.mark.parametrize("text", ["", "\ufffd", " \ufffd"])
def test_bytes_that_are_not_known_are_null(text: str) -> None:
    logprobs = ChoiceLogprobs.of([TokenLogprob(text=text, logprob=-0.5, top=((text, -0.5),))])
    assert logprobs is not None
    [told] = logprobs.content
    assert (told.bytes, told.top_logprobs[0].bytes) == (None, None)


@pytest.mark.parametrize("raw", [b"a", "好".encode(), b"\xff", b" \xe5", b"bytes:\\xe", b"\n"])
def test_the_text_of_a_token_tells_its_bytes(raw: bytes) -> None:
    assert token_bytes(token_text(raw)) == raw
