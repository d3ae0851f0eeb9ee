"""A reply cites what was shown, and nothing else; what only looks like a marker stays."""

import time
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from turnmill.schemas.citations.markers import (
    ALL,
    Citation,
    CitationReader,
    find_citations,
    without_markers,
)

SHOWN = range(1, 4)


def read(text: str, *, cuts: tuple[int, ...] = (), spared: tuple[int, ...] = ()) -> str:
    return given_out(text, cuts, spared)[0]


def given_out(
    text: str, cuts: tuple[int, ...] = (), spared: tuple[int, ...] = ()
) -> tuple[str, list[Citation]]:
    """What is given out of a text that comes cut at some places, and what it cites."""
    reader = CitationReader(SHOWN, spared)
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    pieces = [text[a:b] for a, b in pairwise(places)]
    return "".join(map(reader.feed, pieces)) + reader.end(), reader.citations


def cited(text: str) -> list[tuple[int, str]]:
    return [(each.number, text[each.start : each.end]) for each in find_citations(text, SHOWN)]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("Within 30 days [1].", [1]),
        ("Within 30 days[2].", [2]),
        ("Both [1, 2] and [1][3].", [1, 2, 1, 3]),
        ("All [1-3], [1–2] and [2;3].", [1, 2, 3, 1, 2, 2, 3]),
        ("三天内【1】，优惠券［２］不能叠加[1、3]。", [1, 2, 1, 3]),
        ("As said [Source 1], [passage 2] and 【来源3】.", [1, 2, 3]),
        ("**[1]** and (see [2]) 👩‍🚀 [3]", [1, 2, 3]),
        ("- [1] Returns\n- [2] Shipping", [1, 2]),
    ],
)
def test_what_was_shown_is_cited(text: str, numbers: list[int]) -> None:
    assert read(text) == text
    assert [number for number, _ in cited(text)] == numbers


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Within 30 days [9].", "Within 30 days."),
        ("Within 30 days[9].", "Within 30 days."),
        ("See [9] for more.", "See for more."),
        ("Both [1, 9] and [1][9].", "Both [1] and [1]."),
        ("All [2-9] [8] [7] of it.", "All [2, 3] of it."),
        ("三天内【9】，您的[10]邮箱。", "三天内，您的邮箱。"),
        ("Hidden [[9]8], [9 [8]] and [1[9]].", "Hidden, and [1]."),
        ("[Source 7] The end [0]", " The end"),
        ("See [returns][9].", "See [returns]."),
    ],
)
def test_what_was_not_shown_is_removed(text: str, left: str) -> None:
    assert read(text) == left


@pytest.mark.parametrize(
    "text",
    [
        "Call `f([9])` and ``a ` [9]``.",
        "```python\nx = [9]\n```",
        "~~~\n[9]\n```\n[8]\n~~~",
        "1. Do this:\n   ```\n   [9]\n   ```",
        "See [9](https://example.com) and ![8](x.png).",
        "The element a[9], my_list[7], rows_[1][9] and items[0].",
        "A number in [0, 1], a footnote[^9], the year [2024], a [ ] box, [x] and [ab 1].",
        "A [text] and [another 9 text].",
        "An end that is open [9",
    ],
)
def test_what_only_looks_like_a_marker_is_left_alone(text: str) -> None:
    assert read(text) == text
    assert cited(text) == []


def test_numbers_of_the_users_own_text_are_left_alone_and_cite_nothing() -> None:
    text = "Your note [7] says so [1], [8]."
    assert read(text, spared=(7,)) == "Your note [7] says so [1],."
    assert cited("Your note [7] says so [1].") == [(1, "[1]")]


def test_places_are_code_points_and_not_bytes_or_utf16() -> None:
    text = "🚀三天内【1】"
    assert find_citations(text, SHOWN) == [Citation(1, 4, 7)]


#: Texts that are nearly markers.
pieces = st.sampled_from(
    [*"[]【】（()`~\n\t ,-–0123459a_x。.=!^:#", "[1]", "[9]", " [2, 9]", "[[", "```", "\n```\n",
     "source ", "来源", "😀", "word", "[1](", "a[", "[0]", "  "]
)  # fmt: skip
texts = st.lists(pieces, max_size=40).map("".join) | st.text(max_size=60)
cuts = st.lists(st.integers(0, 200), max_size=12).map(tuple)


@given(texts, cuts)
def test_how_a_text_is_cut_changes_nothing(text: str, cuts: tuple[int, ...]) -> None:
    assert given_out(text, cuts) == given_out(text)


@given(texts)
def test_no_number_that_was_not_shown_survives(text: str) -> None:
    """A reader that takes every number for one that was shown finds none but those."""
    left = read(text)
    assert {each.number for each in find_citations(left, ALL)} <= set(SHOWN)
    assert read(left) == left
    assert find_citations(left, SHOWN) == given_out(text)[1]


@given(st.text(st.characters(exclude_characters="[【［")))
def test_a_text_without_brackets_is_unchanged(text: str) -> None:
    assert read(text) == text


@given(texts, st.integers(0, 200))
def test_an_attempt_that_resumes_a_reply_gives_out_what_one_attempt_would(
    text: str, cut: int
) -> None:
    """The engine resumes after what was given out, so it says again what was held."""
    cut %= len(text) + 1
    first = CitationReader(SHOWN)
    kept = first.feed(text[:cut])
    second = CitationReader(SHOWN)
    second.resume(kept)
    rest = second.feed(first.held + text[cut:]) + second.end()
    assert kept + rest == read(text)


@pytest.mark.parametrize("text", ["[" * 100_000, "[1, " * 30_000, "`" * 50_000, "[9]" * 20_000])
def test_what_a_model_repeats_without_end_is_read_in_time(text: str) -> None:
    """A hundred times what this takes on an idle machine."""
    began = time.process_time()
    find_citations(text, SHOWN)
    read(text)
    assert time.process_time() - began < 60


@example("`[1]`[1]`")
@given(texts)
def test_a_past_reply_cites_nothing_any_more(text: str) -> None:
    assert find_citations(without_markers(text), ALL) == []
