"""Lists that commands print: on 80 columns as on 200, every value can be read."""

import io
import re
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from turnmill.producer.cli.views.listing import Listing

CLI = Path(__file__).parents[4] / "producer" / "cli"

TURN = "turn_01a22adc835b7f75823de96b7269fc1a"
VALUES = (TURN, "29 s", "queued", "interactive", "0", "attempts_used_up", "smollm2-135m-instruct")


def printed(listing: Listing, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(listing)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def turns() -> Listing:
    listing = Listing("turn", "age", "state", "lane", "attempts", "error", "bot")
    listing.add_row(*VALUES)
    listing.add_row(*VALUES)
    return listing


def test_a_list_that_fits_has_a_line_for_each_row() -> None:
    lines = printed(turns(), 200)
    assert lines[0].split() == ["turn", "age", "state", "lane", "attempts", "error", "bot"]
    assert [line.split() for line in lines[1:]] == [" ".join(VALUES).split()] * 2


@pytest.mark.parametrize("width", [80, 100, 200])
def test_every_value_is_whole(width: int) -> None:
    lines = printed(turns(), width)
    assert all(cell_len(line) <= width for line in lines)
    text = " ".join(lines)
    for value in VALUES:
        assert len(re.findall(rf"(?<!\S){re.escape(value)}(?!\S)", text)) == 2


def test_ids_stay_whole_where_other_texts_are_folded() -> None:
    lines = printed(turns(), 50)
    assert [line.strip() for line in lines].count(TURN) == 2
    assert "…" not in " ".join(lines)


def test_a_long_text_is_folded_beside_the_others() -> None:
    listing = Listing("gap", "question")
    listing.add_row("gap_1", "Where is my parcel? " * 10)
    lines = printed(listing, 80)
    assert lines[1].startswith(" gap_1  Where is my parcel?")
    assert " ".join(" ".join(lines).split()).count("parcel?") == 10


def test_commands_list_with_it() -> None:
    """A plain table cuts what does not fit."""
    titled = re.compile(r'Table\(\s*"[^)]*\b(id|turn|name|bot)\b')
    sources = {path.name: path.read_text() for path in CLI.rglob("*.py")}
    assert [name for name, text in sources.items() if titled.search(text)] == []
