"""Text to tokens, piece by piece: the past of a conversation is tokenized once.

Tokenizers set control tokens apart before they look at anything else. So what stands between two
of them, which is a message in most templates, has the same tokens in each prompt it is part of.
"""

import re
from array import array
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain

#: Pieces that are remembered, and characters of the longest of them.
REMEMBERED_PIECES, LONGEST_PIECE = 2048, 1 << 14

#: What a tokenizer might treat in another way where a text begins or ends.
_EDGES = ("Hi", " two  words ", "\n", "\n\n3 o'clock, ", "é", "", "e\u0301 🙂", "\t'll ")

Encode = Callable[[str], Sequence[int]]


def by_pieces(encode: Encode, control_tokens: Sequence[str]) -> Callable[[str], list[int]]:
    """As `encode`, for many threads; it is called with what is not remembered.

    A tokenizer whose pieces are not what they are in a whole is always given the whole.
    `control_tokens`: where one begins like another, the longer one first.
    """

    @lru_cache(REMEMBERED_PIECES)
    def remembered(piece: str) -> Sequence[int]:
        return array("i", encode(piece))

    def encode_piece(piece: str) -> Sequence[int]:
        return encode(piece) if len(piece) > LONGEST_PIECE else remembered(piece)

    def encode_all(text: str) -> list[int]:
        return list(chain.from_iterable(map(encode_piece, split(text))))

    split, sample = _splitter(control_tokens), _sample(control_tokens)
    if encode_all(sample) != list(encode(sample)):
        split = _whole
    return encode_all


def _splitter(control_tokens: Sequence[str]) -> Callable[[str], list[str]]:
    """Splits before each of them."""
    if not control_tokens:
        return _whole
    pattern = re.compile("|".join(map(re.escape, control_tokens)))

    def split(text: str) -> list[str]:
        borders = [found.start() for found in pattern.finditer(text)]
        pairs = zip([0, *borders], [*borders, len(text)], strict=True)
        return [text[start:end] for start, end in pairs if start < end]

    return split


def _whole(text: str) -> list[str]:
    return [text]


def _sample(control_tokens: Sequence[str]) -> str:
    """Each control token after and before each kind of text's edge."""
    return "".join(edge + token for token in control_tokens for edge in _EDGES) + _EDGES[0]
