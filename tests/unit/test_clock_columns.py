"""Each comparison of a stored time with PostgreSQL's clock knows of steps, or is named here.

Those that know of steps are written with `is_due`, `is_over`, `outlasts` or `within`
(`schemas/postgres/clock.py`). Others compare by hand: this test finds them in the source, and wants
to know why a step of the clock stalls or rushes no turn there.
"""

import re
from importlib import import_module

from sqlalchemy import DateTime

from tests.printed import ROOT
from turnmill.schemas.store.tables import metadata

_CALENDAR = "it ends by the calendar, hours or months later"
_SHOWN = "people see it; nothing is done"
_SWEEP = "the sweep itself, which cuts what a step left in the future"
_PACE = "a pace or an estimate"
_DELETION = "a file's deletion waits, no turn does"

#: By file and column.
BY_HAND = {
    ("schemas/postgres/clock.py", "seen_at"): "the sign of a step back",
    ("schemas/store/batches/moves.py", "last_at"): _PACE,
    ("schemas/store/files/transcriptions.py", "wanted_until"): "the call renews it every 5 s",
    ("schemas/store/files/undeleted.py", "due_at"): _DELETION,
    ("schemas/store/files/undeleted.py", "expires_at"): _CALENDAR,
    ("schemas/store/knowledge/spaces.py", "superseded_at"): _CALENDAR,
    ("schemas/store/memory/orphans.py", "due_at"): _DELETION,
    ("workers/media/media.py", "created_at"): "`forward_s` is added; a step back only waits for a "
    "process that is to deliver the reply, too",
    ("workers/upkeep/files.py", "due_at"): _DELETION,
    ("workers/upkeep/files.py", "expires_at"): _CALENDAR,
    (
        "workers/upkeep/rescuer.py",
        "leased_until",
    ): "`_GUARD` waits after a step forward, `_CUT_LEASES` cuts after one back",
    ("workers/upkeep/rescuer.py", "published_at"): _SWEEP,
    ("workers/upkeep/rescuer.py", "seen_at"): _SWEEP,
    ("producer/batches/estimate.py", "seen_at"): _PACE,
    ("producer/doctor/statements.py", "at"): _SHOWN,
    ("producer/doctor/statements.py", "due_at"): _SHOWN,
    ("producer/doctor/statements.py", "settled_at"): _SHOWN,
    ("producer/memory/extraction.py", "accepted_at"): _CALENDAR,
    ("producer/memory/extraction.py", "settled_at"): "what is remembered of an idle conversation "
    "is read once more, or later",
    ("producer/operations/queue.py", "due_at"): _SHOWN,
    ("producer/relay/outbox.py", "due_at"): "`IS_DUE` stands beside it: only how long the relay "
    "sleeps, five seconds at most",
    ("producer/relay/outbox.py", "published_at"): "the broker's count decides what is lost; the "
    "rescuer cuts what lies in the future",
    ("producer/relay/outbox.py", "settled_at"): "whether a hint goes to a warm worker, which has "
    "`own_until`",
    ("producer/studies/raters.py", "expires_at"): _CALENDAR,
}

_CLOCK = r"(?:clock_timestamp\(\)|\bnow\(\)|\bnow_at\b|CURRENT_TIMESTAMP)"
_COMPARED = re.compile(
    rf"(?:\w+\.)?\b(\w+)\)*\s*(?:<=|>=|<|>|BETWEEN)\s*{_CLOCK}"
    rf"|{_CLOCK}\s*(?:<=|>=|<|>)\s*(?:\w+\.)?\b(\w+)"
)

_WHAT_TO_DO = (
    "These times are compared with PostgreSQL's clock, which can step by an hour either way. Write "
    "the comparison with a function of schemas/postgres/clock.py, and add a case to "
    "tests/integration/workers/clock/test_beside_turns.py; or say in BY_HAND why no turn is "
    "stalled or rushed."
)


def time_columns() -> set[str]:
    """The names of all columns that hold a time."""
    for path in sorted((ROOT / "schemas/store").rglob("tables.py")):
        import_module(".".join(("turnmill", *path.relative_to(ROOT).with_suffix("").parts)))
    return {
        column.name
        for table in metadata.sorted_tables
        for column in table.columns
        if isinstance(column.type, DateTime)
    }


def compared(source: str) -> set[str]:
    """The columns that SQL in a file's text compares with the clock by hand."""
    found = {left or right for left, right in _COMPARED.findall(source)}
    return found & time_columns()


def by_hand() -> set[tuple[str, str]]:
    return {
        (path.relative_to(ROOT).as_posix(), column)
        for folder in ("schemas", "producer", "workers")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for column in compared(path.read_text())
    }


def test_each_comparison_with_the_clock_knows_of_steps_or_says_why_it_need_not() -> None:
    assert by_hand() - BY_HAND.keys() == set(), _WHAT_TO_DO


def test_each_comparison_that_is_named_is_there() -> None:
    assert BY_HAND.keys() - by_hand() == set()


def test_comparisons_are_found_however_they_are_written() -> None:
    for condition in (
        "t.leased_until < clock_timestamp()",
        "due_at<=now()",
        "coalesce(t.due_at, x.fetch_at) > clock_timestamp() - interval '1 hour'",
        "clock_timestamp() >= d.progress_at",
        "own_until\n  BETWEEN clock_timestamp() AND x",
    ):
        assert compared(f'_X = """SELECT WHERE {condition}"""'), condition
    assert compared("{is_due('due_at', 3.0)} AND due_at = clock_timestamp()") == set()
