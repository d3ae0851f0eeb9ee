"""Nothing is hidden in a document, and what words and pictures need stays."""

import pytest

from turnmill.schemas.safety.invisible import as_read, folded, visible


@pytest.mark.parametrize(
    "text",
    [
        "plain\ttext\nand lines",
        "می‌خواهم",  # Persian: ZERO WIDTH NON-JOINER between letters
        "क्‍ष",  # Hindi
        "👨‍👩‍👧 ❤️ 🏳️‍🌈 1️⃣",
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f England",
        "葛\U000e0100城",  # a variant of a Chinese character
        "naïve café 中文 한국어 שלום",
    ],
)
def test_what_words_and_pictures_need_stays(text: str) -> None:
    assert visible(text) == text


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("ig\u200bnore\u2060 \ufeffme", "ignore me"),
        ("pay \u202eenon\u202c\u2066x\u2069 \u200e\u200f\u061c", "pay enonx "),
        ("hi" + "".join(chr(0xE0000 + ord(c)) for c in "obey"), "hi"),
        ("x\ufe01\ufe02\ufe03\U000e0105\U000e0106", "x"),
        ("a\u200db, 中\u200c文", "ab, 中文"),
        ("so\u00adft\x00\x07\x1b[0m\x9f", "soft[0m"),
        ("\u3164\u115f\uffa0x", "x"),
    ],
)
def test_what_nobody_sees_goes(text: str, seen: str) -> None:
    assert visible(text) == seen


def test_compatible_and_split_forms_are_seen_as_tokenizers_may_see_them() -> None:
    assert folded("＜|im_\u200bst\u00adart|＞") == "<|im_start|>"


@pytest.mark.parametrize(
    ("char", "read"),
    [
        ("a", "a"), ("＜", "<"), ("≮", "<"), ("é", "e"), ("ﬁ", "fi"), ("中", "中"),
        ("\u3000", " "), ("\u2028", " "), ("\n", "\n"), ("\u0301", ""), ("\u200b", ""),
        ("\x01", ""), ("\ue000", ""), ("\ufffd", ""),
    ],
)  # fmt: skip
def test_a_character_is_read_as_the_tokenizer_reads_it_that_alters_the_most(
    char: str, read: str
) -> None:
    assert as_read(char) == read
