"""Holds on psycopg and SQLAlchemy, by the rules of `workers/vendor/`.

psycopg runs each exchange with the server as a generator: it yields what it waits for and is sent
whether the socket is ready. `Link.wait` and `AsyncLink.wait` hand such generators on.
"""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from sqlalchemy.pool import Pool, PoolProxiedConnection

READ_IN = {"psycopg": "3.3.9", "sqlalchemy": "2.1.9"}
HOLDS = {
    "psycopg.connection:Connection.wait": "a3342c2de136",
    "psycopg.connection_async:AsyncConnection.wait": "90b81902a5c3",
    "psycopg.waiting:wait_poll": "52ead2b0c132",
    "psycopg.waiting:wait_async": "8236455f3a2f",
    "sqlalchemy.pool.base:Pool._invalidate": "6fea48b9dda8",
}

ResultT = TypeVar("ResultT")


def within(limit_s: float, gen: PQGen[ResultT], close: Callable[[], None]) -> PQGen[ResultT]:
    """Run an exchange with the server; close and raise after `limit_s` without a byte.

    psycopg resumes the generator ten times a second, ready or not.
    """
    ready: Any = None
    deadline = time.monotonic() + limit_s
    try:
        while True:
            ready = yield gen.send(ready)
            if ready:
                deadline = time.monotonic() + limit_s
            elif time.monotonic() > deadline:
                close()
                raise psycopg.OperationalError(f"no answer within {limit_s:g} s")
    except StopIteration as end:
        result: ResultT = end.value
        return result


def forget_all(pool: Pool, connection: PoolProxiedConnection) -> None:
    """Replace, when next used, all connections of a pool that are no younger than this one."""
    pool._invalidate(connection)
