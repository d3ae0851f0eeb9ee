"""Texts made to be slow take about as long as others of their length."""

import time
from collections.abc import Callable

import pytest

from turnmill.schemas.safety.findings import Finding, apart
from turnmill.schemas.safety.personal import find_personal, mask_broadly
from turnmill.workers.engines.base import Chunk
from turnmill.workers.safety.guard import Guard
from turnmill.workers.safety.links import LinkFilter
from turnmill.workers.safety.passages import inert
from turnmill.workers.safety.targets import Targets

LENGTH = 100_000
FILTER = LinkFilter(Targets.of(["shop.example"], ["https://wiki.example/a"]), "(link removed)")


def assert_quick(change: Callable[[str], object], unit: str) -> None:
    """Within what a busy machine takes; with the square of the length it is minutes."""
    text = (unit * (LENGTH // len(unit) + 1))[:LENGTH]
    begun = time.process_time()
    change(text)
    assert time.process_time() - begun < 20


@pytest.mark.parametrize("unit", ["\n", " \n", "[1]\n", "[1] "])
def test_a_passage_is_made_inert_quickly(unit: str) -> None:
    assert_quick(inert, unit)


@pytest.mark.parametrize(
    "unit", ["a", ".", "a@", "a-", "eyJ", "www.", "a@b.c ", "中.", "a?", "?a=", "a:", "1.", "ab12 "]
)
def test_personal_data_is_looked_for_quickly(unit: str) -> None:
    assert_quick(find_personal, unit)
    assert_quick(mask_broadly, unit)


def test_addresses_that_stand_side_by_side_are_found() -> None:
    text = "a@b@c.de+d@e.fg, " + "l" * 80 + "@x.yz"
    assert mask_broadly(text) == "a@<email><email>, <email>"


def test_many_findings_are_kept_apart_quickly() -> None:
    assert_quick(lambda text: apart(Finding(at, at + 1, "x") for at in range(len(text))), "a")
    overlapping = [Finding(4, 8, "a"), Finding(7, 9, "b"), Finding(0, 5, "c"), Finding(1, 4, "d")]
    assert apart(overlapping) == [Finding(1, 4, "d"), Finding(4, 8, "a")]


@pytest.mark.parametrize(
    "unit",
    [
        "a.",
        "中.",
        "](",
        "]:",
        "]()",
        "](https://wiki.example/a)",
        ".",
        "]https://a.b",
        "https://shop.example中",
        "]:https://x",
        "a/",
        "data:",
    ],
)
def test_links_are_removed_quickly(unit: str) -> None:
    assert_quick(FILTER.rewrite, unit)
    assert_quick(FILTER.rewrite, "](" + " " * LENGTH)


@pytest.mark.parametrize("text", ["](" + " " * 2040 + "x", "]:" * 400 + " x", "]:" + " " * 2040])
def test_links_that_come_in_pieces_are_removed_quickly(text: str) -> None:
    begun = time.process_time()
    pieces = (Chunk(each, finish_reason=None) for each in text)
    assert "".join(chunk.text for chunk in Guard([FILTER]).read(pieces)) is not None
    assert time.process_time() - begun < 4


def test_an_address_of_many_labels_is_removed() -> None:
    said = FILTER.rewrite("See " + "a." * 40 + "evil.com/x and " + "a." * 40 + "evil.test/x!")
    assert "evil" not in said
