"""The tickets that come with Turnmill, and what the demo shows of them."""

import io
import re
from collections import Counter
from operator import itemgetter

import pytest
from rich.cells import cell_len
from rich.console import Console

from turnmill.producer.batches.backlog import read_backlog
from turnmill.producer.cli.backlogs.answering import SHOWN_REPLIES
from turnmill.producer.cli.stack import sample_backlog
from turnmill.producer.cli.views.batch_view import replies_table
from turnmill.schemas.batches import BacklogRow, BatchResult

CHINESE = re.compile(r"[\u4e00-\u9fff]")

#: What Chinese shops are asked about.
KINDS = ("快递", "退货", "换一个", "发票", "账号", "会员", "优惠券")


def tickets() -> list[BacklogRow]:
    """The sample's rows in the order of the file."""
    return [row for _, row in sorted(read_backlog(sample_backlog()).rows(), key=itemgetter(0))]


def prompts(rows: list[BacklogRow]) -> list[str]:
    return [row.prompt or "" for row in rows]


def chinese(rows: list[BacklogRow]) -> list[BacklogRow]:
    return [row for row in rows if CHINESE.search(row.prompt or "")]


def test_the_sample_has_chinese_tickets_of_each_kind_and_a_conversation() -> None:
    found = chinese(tickets())
    text = "\n".join(prompts(found))
    assert [kind for kind in KINDS if kind not in text] == []
    turns = Counter(row.conversation for row in found)
    assert turns.pop(None) >= 8
    assert max(turns.values()) >= 3


def test_the_demo_shows_chinese_and_english_tickets() -> None:
    shown = tickets()[:SHOWN_REPLIES]
    assert 0 < len(chinese(shown)) < len(shown)


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_columns_stay_aligned_whatever_language_a_ticket_is_in(width: int) -> None:
    results = [
        BatchResult(
            id=row.id, row=n, turn_id="turn_1", conversation_id="conv_1", seq=1,
            state="completed", attempts=1, question=row.prompt or "", reply=(row.prompt or "") * 5,
        )
        for n, row in enumerate(tickets(), start=1)
    ]  # fmt: skip
    output = io.StringIO()
    Console(file=output, width=width).print(replies_table(results))
    assert {cell_len(line) for line in output.getvalue().splitlines()} == {width}
