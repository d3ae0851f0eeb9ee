"""A text's tokens do not depend on whether pieces of it are remembered."""

import re
from collections.abc import Callable

import pytest

from turnmill.workers.engines.text.pieces import by_pieces

CONTROL_TOKENS = ["<begin>", "<end>"]
PAST = "<begin>user: Hi <end>\n<begin>bot: Hello<end>\n"
NEXT = "<begin>user: Bye<end>\n"


def plain(text: str) -> list[int]:
    """Control tokens are one token each; of all else, each letter."""
    ids: list[int] = []
    for part in re.split("(<begin>|<end>)", text):
        ids += [-1 - CONTROL_TOKENS.index(part)] if part in CONTROL_TOKENS else map(ord, part)
    return ids


def with_a_space_before(text: str) -> list[int]:
    """As tokenizers that write every text's first word like any other."""
    return [ord(" "), *plain(text)]


def swallowing(text: str) -> list[int]:
    """Its control tokens take the space before them along."""
    return plain(re.sub(r"\s+(?=<)", "", text))


class Counted:
    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        self._encode = encode
        self.texts: list[str] = []

    def __call__(self, text: str) -> list[int]:
        self.texts.append(text)
        return self._encode(text)


def test_a_conversation_s_past_is_tokenized_once() -> None:
    tokenizer = Counted(plain)
    encode = by_pieces(tokenizer, CONTROL_TOKENS)
    encode(PAST)
    tokenizer.texts.clear()
    assert encode(PAST + NEXT) == plain(PAST + NEXT)
    assert tokenizer.texts == ["<begin>user: Bye"]


@pytest.mark.parametrize("tokenizer", [plain, with_a_space_before, swallowing])
def test_tokens_are_those_of_the_whole(tokenizer: Callable[[str], list[int]]) -> None:
    encode = by_pieces(tokenizer, CONTROL_TOKENS)
    for text in ("", " ", "Hi", PAST, PAST + NEXT, f"Hello. {PAST}", "<end><end> <begin"):
        assert encode(text) == tokenizer(text)
        assert encode(text) == tokenizer(text), "remembered"


def test_without_control_tokens_a_text_is_one_piece() -> None:
    tokenizer = Counted(plain)
    encode = by_pieces(tokenizer, [])
    tokenizer.texts.clear()
    assert encode("Ho") == encode("Ho") == [ord("H"), ord("o")]
    assert tokenizer.texts == ["Ho"]


def test_what_a_reader_does_with_the_tokens_is_its_own_business() -> None:
    encode = by_pieces(plain, CONTROL_TOKENS)
    encode(PAST).clear()
    assert encode(PAST) == plain(PAST)
