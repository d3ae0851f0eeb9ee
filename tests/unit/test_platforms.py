"""The test that kills the delivery worker knows every platform, and every row of its table."""

import re
from pathlib import Path

from tests.platforms import PLATFORMS
from turnmill.workers.delivery.registry import DELIVERIES

DOCUMENT = Path(__file__).parents[2] / "docs/channels/delivery.md"


def test_a_platform_joins_the_test_that_kills_its_worker_by_an_entry() -> None:
    """What to do where this fails: tests/platforms.py, one entry for each row of the docs."""
    table = DOCUMENT.read_text().split("duplicates after one `kill -9` |")[1].split("\n\n")[0]
    rows = set(re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE))
    assert {platform.row for platform in PLATFORMS} == rows
    assert {platform.kind for platform in PLATFORMS} == set(DELIVERIES)
