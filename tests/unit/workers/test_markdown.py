"""Markdown is split between sentences and translated for Slack; code stays code."""

import random

import pytest

from turnmill.workers.delivery.slack.mrkdwn import to_mrkdwn
from turnmill.workers.delivery.texts.markdown import cut, open_fence, split


def test_a_short_text_is_one_part() -> None:
    assert split("Hello.\n\nWorld.", 100) == ["Hello.\n\nWorld."]
    assert split("  \n\n", 100) == []


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("One. Two. Three.", ["One. Two.", "Three."]),
        ("first para\n\nsecond", ["first para", "second"]),
        ("一二三。四五六。七八九。", ["一二三。四五六。", "七八九。"]),
        ("aaaa bbbb cccc", ["aaaa bbbb", "cccc"]),
        ("x" * 22, ["x" * 10, "x" * 10, "xx"]),
    ],
)
def test_a_text_is_cut_at_the_best_place_there_is(text: str, parts: list[str]) -> None:
    assert split(text, 10) == parts


def test_a_code_block_is_kept_whole() -> None:
    code = "```python\nprint(1)\n```"
    assert split(f"Look at this text.\n{code}\nDone.", 30) == [
        "Look at this text.",
        f"{code}\nDone.",
    ]


def test_a_code_block_longer_than_a_message_is_closed_and_opened_again() -> None:
    lines = [f"line {n}" for n in range(20)]
    parts = split("~~~sh\n" + "\n".join(lines) + "\n~~~\nThe end.", 60)
    assert len(parts) > 2
    for part in parts[:-1]:
        assert part.startswith("~~~sh\n")
        assert part.endswith("\n~~~")
    assert parts[-1].endswith("The end.")
    kept = [line for part in parts for line in part.split("\n") if line.startswith("line")]
    assert kept == lines


@pytest.mark.parametrize("seed", range(20))
def test_no_part_is_too_long_and_no_letter_is_lost(seed: int) -> None:
    rng = random.Random(seed)
    words = ["word", "longer-word", "。", "end.", "\n\n", "\n", "```\ncode & <x>\n```\n", "z" * 70]
    text = " ".join(rng.choice(words) for _ in range(200))
    parts = split(text, 64, lambda part: len(to_mrkdwn(part)))
    assert max(len(to_mrkdwn(part)) for part in parts) <= 64
    # Of a line of code that is too long, even words are cut.
    for letter in "wordzcen&":
        assert sum(part.count(letter) for part in parts) == text.count(letter)


def test_a_message_that_is_being_written_is_never_cut_before_what_is_shown() -> None:
    text = "One. Two. " * 10
    assert cut(text, 1000) == len(text)
    assert text[: cut(text, 33)] == "One. Two. " * 3
    assert cut(text, 33, at_least=32) >= 32


@pytest.mark.parametrize(
    ("text", "fence"),
    [
        ("text", None),
        ("```py\ncode", "```py"),
        ("```py\ncode\n```", None),
        ("````\n```\n", "````"),
        ("```not `a` fence", None),
    ],
)
def test_an_open_code_block_is_found(text: str, fence: str | None) -> None:
    assert open_fence(text) == fence


@pytest.mark.parametrize(
    ("markdown", "mrkdwn"),
    [
        ("**bold** and __bold__", "*bold* and *bold*"),
        ("*italic* and _italic_", "_italic_ and _italic_"),
        ("***both***", "*_both_*"),
        ("~~gone~~", "~gone~"),
        ("# A **heading** #", "*A heading*"),
        ("[text](https://example.com/a?b=1&c=2)", "<https://example.com/a?b=1&amp;c=2|text>"),
        ("![cat](https://example.com/cat.png)", "<https://example.com/cat.png|cat>"),
        ("<https://example.com>", "<https://example.com>"),
        ("- one\n  * two\n+ [x] done", "• one\n  • two\n☑ done"),
        ("1. first", "1. first"),
        ("> quoted **text**", ">quoted *text*"),
        ("a < b && c > d", "a &lt; b &amp;&amp; c &gt; d"),
        ("<!channel> <@U1>", "&lt;!channel&gt; &lt;@U1&gt;"),
        ("`a **b** <c>`", "`a **b** &lt;c&gt;`"),
        ("```python\n**x** = a[1](2) & b\n```", "```\n**x** = a[1](2) &amp; b\n```"),
        ("2 * 3 * 4", "2 * 3 * 4"),
        ("snake_case_name", "snake_case_name"),
        (r"\*not italic\*", "*not italic*"),
        ("---", "———"),
        ("| a | b |\n|---|---|\n| 1 | 2 |", "```\n| a | b |\n|---|---|\n| 1 | 2 |\n```"),
        ("שלום **עולם** 👋🏽", "שלום *עולם* 👋🏽"),
    ],
)
def test_markdown_becomes_mrkdwn(markdown: str, mrkdwn: str) -> None:
    assert to_mrkdwn(markdown) == mrkdwn
