"""A real Postgres whose clock the test steps.

Its `clock_timestamp()` is a function of the test's own: it stands before PostgreSQL's on the search
path when the tables are made and whenever a process connects.
"""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from turnmill.infra.migrations import upgrade

Eventually = Callable[..., None]
HOUR = 3600.0

both_ways = pytest.mark.parametrize("step_s", [-HOUR, HOUR, -12.0])

_CLOCK = """
CREATE TABLE step (by interval);
INSERT INTO step VALUES ('0');
CREATE FUNCTION clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
    'SELECT pg_catalog.clock_timestamp() + by FROM public.step';
"""


def prepare(url: str) -> None:
    """Give a database that clock, and the tables."""
    with psycopg.connect(url, autocommit=True) as link:
        link.execute(_CLOCK)
    find_the_clock(url)
    upgrade(url)


def find_the_clock(url: str) -> None:
    """For those who connect from now on; a copy of the database does not know of it."""
    with psycopg.connect(url, autocommit=True) as link:
        name = link.info.dbname
        link.execute(f"ALTER DATABASE {name} SET search_path = public, pg_catalog")


def step(system: Any, by_s: float) -> None:
    system.database.run("UPDATE step SET by = by + make_interval(secs => %s)", (by_s,))
