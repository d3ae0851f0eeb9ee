"""The README's picture shows what the commands print today, and nothing of who drew it."""

import html
import io
import re
import socket
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from turnmill.producer.batches.backlog import read_backlog
from turnmill.producer.cli.backlogs.answering import SHOWN_REPLIES
from turnmill.producer.cli.backlogs.picture import CELL, COMMAND, RESULTS, WIDTH
from turnmill.producer.cli.stack import sample_backlog
from turnmill.producer.cli.views.batch_view import describe_progress, replies_table, summary
from turnmill.schemas.batches import BatchProgress
from turnmill.schemas.turns import TurnState

ROOT = Path(__file__).parents[3]
PICTURE = ROOT / "docs" / "demo.svg"
START = datetime(2026, 1, 1, tzinfo=UTC)

STALE = "docs/demo.svg shows something else. Draw it anew: make picture"

_TEXT = re.compile(r'<text [^>]*x="([\d.]+)" y="([\d.]+)" textLength="([\d.]+)"[^>]*>([^<]*)<')


@cache
def lines() -> list[str]:
    """What the picture shows, line by line."""
    rows: dict[float, str] = defaultdict(str)
    for x, y, _, text in _TEXT.findall(PICTURE.read_text()):
        line = rows[float(y)]
        gap = " " * (round(float(x) / CELL) - cell_len(line))
        rows[float(y)] = line + gap + html.unescape(text).replace("\xa0", " ")
    return [line for _, line in sorted(rows.items())]


def printed(renderable: object) -> list[str]:
    output = io.StringIO()
    Console(file=output, width=WIDTH).print(renderable)
    return output.getvalue().splitlines()


def done() -> BatchProgress:
    total = read_backlog(sample_backlog()).total
    return BatchProgress(
        total=total, states={TurnState.COMPLETED: total}, attempts=total, first_accepted_at=START,
        latency_p50_s=1, latency_p95_s=2, answer_p50_s=1, answer_p95_s=2,
        last_settled_at=START + timedelta(seconds=9),
    )  # fmt: skip


def labels(summed_up: list[str]) -> list[str]:
    return [re.split(r"\s{2,}", line)[0] for line in summed_up]


def test_the_picture_is_of_the_command_and_the_sample_that_there_are() -> None:
    backlog = read_backlog(sample_backlog())
    shown = [line.strip() for line in lines()]
    assert shown[0] == f"$ {COMMAND}", STALE
    assert f"tickets.jsonl: {backlog.describe()}" in shown, STALE
    assert describe_progress(done()) in shown, STALE


def test_the_picture_has_the_columns_and_the_tickets_that_are_shown() -> None:
    first = list(read_backlog(sample_backlog()).records())[:SHOWN_REPLIES]
    cells = [re.split(r"[│┃]\s*", line) for line in lines() if line[:1] in "│┃"]
    titles = re.split(r"\s*┃\s*", printed(replies_table([]))[1])[1:-1]
    assert [cell.strip() for cell in cells[0] if cell.strip()] == titles, STALE
    names = [row[1].strip() for row in cells[1:]]
    assert [name for name in names if name] == [row["id"] for _, row in first], STALE
    for (_, row), place in zip(first, [n for n, name in enumerate(names) if name], strict=True):
        assert row["prompt"].startswith(cells[place + 1][2].strip()), STALE


def test_the_picture_has_the_figures_that_a_summary_has() -> None:
    wanted = labels(printed(summary(done(), RESULTS)))
    # Whether replies were cut depends on the run.
    shown = [label for label in labels(lines()) if label != "cut"]
    assert shown[-len(wanted) :] == wanted, STALE


def test_a_text_of_the_picture_is_as_wide_as_its_cells() -> None:
    texts = _TEXT.findall(PICTURE.read_text())
    assert [
        text for *_, width, text in texts
        if float(width) != pytest.approx(CELL * cell_len(html.unescape(text)))
    ] == []  # fmt: skip


def test_the_picture_is_small_and_names_no_machine_and_no_other_site() -> None:
    drawn = PICTURE.read_text()
    assert len(drawn) < 64_000
    assert socket.gethostname() not in drawn
    assert re.findall(r"/(?:home|root|tmp|var|usr)\b", drawn) == []
    assert set(re.findall(r"https?://[^\"')\s]+", drawn)) <= {"http://www.w3.org/2000/svg"}
