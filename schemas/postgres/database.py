"""The way to PostgreSQL: one pool per process, its errors translated.

Accept, claim and settle run as few plain statements on psycopg cursors (the ORM halves
the turn rate); everything else goes through SQLAlchemy Core.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import psycopg
import sqlalchemy
import sqlalchemy.event
from psycopg.abc import Params
from psycopg.pq import TransactionStatus
from psycopg.rows import RowFactory, namedtuple_row
from sqlalchemy.engine import Connection
from sqlalchemy.pool import PoolProxiedConnection

from turnmill.schemas.errors import DatabaseUnavailable
from turnmill.schemas.postgres.links import AsyncLink, Link
from turnmill.schemas.postgres.rows import RowT, rows_of
from turnmill.schemas.postgres.vendor import forget_all
from turnmill.schemas.settings import DatabaseSettings

#: What psycopg raises when the server went away or has no room on its disk, gave up a
#: transaction of ours that was paused, or stayed as a replica when another took over.
OUTAGES = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.IdleInTransactionSessionTimeout,
    psycopg.errors.ReadOnlySqlTransaction,
)


def why_away(error: BaseException) -> str:
    """Say for a log why PostgreSQL is away: that it refuses a password, has no connection left, ….

    Of an error within a statement the class alone, because the server's text may quote rows.
    """
    if isinstance(error, DatabaseUnavailable):
        return error.message
    if isinstance(error, psycopg.OperationalError) and error.sqlstate is None:
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return type(error).__name__


#: What psycopg raises when a value cannot be stored: the fault of that value, whoever shares the
#: statement with it.
DATA_ERRORS = (psycopg.DataError, UnicodeError)

#: For transactions that wait for a storage of files, which may be a server.
AWAIT_STORAGE = "SET LOCAL idle_in_transaction_session_timeout = '60s'"

#: Its own rows are not read: `rows.fetch` gives those that are, typed.
Cursor = psycopg.Cursor[object]

T = TypeVar("T")


class Database:
    """A pool of connections to one database. Threads may share it."""

    def __init__(self, settings: DatabaseSettings, *, session: str = "") -> None:
        """`session`: statements that set up each connection, where it keeps its session."""
        self._settings = settings
        self._session = session
        self._engine = sqlalchemy.create_engine(
            # Only libpq reads the URL, in `_open_pooled`: SQLAlchemy knows no list of hosts.
            "postgresql+psycopg://",
            pool_size=settings.pool_size,
            max_overflow=0,
            pool_timeout=30,
            hide_parameters=True,
        )
        sqlalchemy.event.listen(self._engine, "do_connect", self._open_pooled)

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """A SQLAlchemy connection in a transaction. Raises `DatabaseUnavailable`."""
        with self.steps() as connection, connection.begin():
            yield connection

    @contextmanager
    def steps(self) -> Iterator[Connection]:
        """A SQLAlchemy connection for several transactions. Raises `DatabaseUnavailable`."""
        try:
            with self._engine.connect() as connection:
                yield connection
        except sqlalchemy.exc.TimeoutError as error:
            raise DatabaseUnavailable("All database connections are in use.") from error
        except sqlalchemy.exc.DBAPIError as error:
            if isinstance(error.orig, OUTAGES):
                raise self._unavailable(error.orig) from error
            raise

    @contextmanager
    def cursor(self, *, pipeline: bool = False) -> Iterator[Cursor]:
        """A psycopg cursor (named tuples) in a transaction. Raises `DatabaseUnavailable`.

        With `pipeline` the statements and the commit travel together, in one round trip.
        """
        with self._driver() as driver, _TransactionCursor(driver) as cursor:
            if pipeline:
                with driver.pipeline():
                    yield cursor
                    driver.commit()
            else:
                yield cursor
                driver.commit()
            if cursor.wakes:
                _wake(cursor)

    def run(self, statement: str, params: Params | None = None) -> list[object]:
        """Run a statement in its own transaction and one round trip. Its rows, if it has any, tell
        how many there are; `fetch` gives those that are read. Raises `DatabaseUnavailable`.
        """
        return self._run(statement, params, namedtuple_row)

    def fetch(self, kind: type[RowT], statement: str, params: Params | None = None) -> list[RowT]:
        """As `run`, with the rows typed. Raises `DatabaseUnavailable`."""
        return self._run(statement, params, rows_of(kind))

    def _run(self, statement: str, params: Params | None, factory: RowFactory[T]) -> list[T]:
        with (
            self._driver() as driver,
            driver.cursor(row_factory=factory) as cursor,
            _autocommit(driver),
        ):
            cursor.execute(statement, params)
            # `cursor.description` tells it too, and takes 50 µs to make for a claim.
            return [] if cursor.rownumber is None else cursor.fetchall()

    def connect(self, *, autocommit: bool = True) -> Link:
        """A connection with a session, for LISTEN and advisory locks: past any pooler.

        Raises `DatabaseUnavailable`.
        """
        try:
            return Link.open(
                self._settings.session_url.get_secret_value(),
                answer_timeout_s=self._settings.answer_timeout_s,
                autocommit=autocommit,
                session=self._session,
                row_factory=namedtuple_row,
                connect_timeout=self._settings.connect_timeout_s,
            )
        except psycopg.OperationalError as error:
            raise self._unavailable(error) from error

    async def connect_async(self) -> psycopg.AsyncConnection[object]:
        """Like `connect`, for an event loop; in autocommit."""
        try:
            return await AsyncLink.open(
                self._settings.session_url.get_secret_value(),
                answer_timeout_s=self._settings.answer_timeout_s,
                row_factory=namedtuple_row,
                connect_timeout=self._settings.connect_timeout_s,
            )
        except psycopg.OperationalError as error:
            raise self._unavailable(error) from error

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _driver(self) -> Iterator[psycopg.Connection[object]]:
        """A pooled psycopg connection, dropped with all of the pool when it breaks."""
        proxy = self._checkout()
        driver = proxy.driver_connection
        assert driver is not None
        try:
            yield driver
        except OUTAGES as error:
            if proxy.driver_connection is None or driver.closed or isinstance(error, OUTAGES[-1]):
                # The pool's other connections are as dead as this one: replaced when next used.
                forget_all(self._engine.pool, proxy)
            raise self._unavailable(error) from error
        finally:
            if proxy.is_valid and driver.info.transaction_status is TransactionStatus.ACTIVE:
                # A signal's exception came within a statement: no ROLLBACK can follow it.
                proxy.invalidate()
            proxy.close()

    def _checkout(self) -> PoolProxiedConnection:
        try:
            return self._engine.raw_connection()
        except sqlalchemy.exc.TimeoutError as error:
            raise DatabaseUnavailable("All database connections are in use.") from error
        except sqlalchemy.exc.DBAPIError as error:
            raise self._unavailable(error.orig or error) from error
        except psycopg.OperationalError as error:
            raise self._unavailable(error) from error

    def _open_pooled(
        self, dialect: object, record: object, arguments: list[object], options: dict[str, Any]
    ) -> Link:
        return Link.open(
            self._settings.url.get_secret_value(),
            answer_timeout_s=self._settings.answer_timeout_s,
            is_pooled=self._settings.is_pooled,
            session=self._session,
            **(options | {"connect_timeout": self._settings.connect_timeout_s}),
        )

    def _unavailable(self, error: BaseException) -> DatabaseUnavailable:
        reason = str(error).strip().splitlines()
        return DatabaseUnavailable(f"PostgreSQL is unavailable: {reason[0] if reason else error!r}")


@contextmanager
def _autocommit(driver: psycopg.Connection[object]) -> Iterator[None]:
    driver.autocommit = True
    try:
        yield
    finally:
        if not driver.closed:
            driver.autocommit = False


class _TransactionCursor(psycopg.Cursor[object]):
    """Named tuples, and the channels to notify after the commit."""

    def __init__(self, driver: psycopg.Connection[object]) -> None:
        super().__init__(driver, row_factory=namedtuple_row)
        self.wakes: set[str] = set()


def _wake(cursor: _TransactionCursor) -> None:
    with suppress(*OUTAGES), _autocommit(cursor.connection):
        for channel in cursor.wakes:
            notify(cursor, channel)


def notify_after_commit(cursor: Cursor, channel: str) -> None:
    """Wake the listeners of a channel, who would also look by themselves before long.

    PostgreSQL lets one transaction that notifies commit at a time, and one that has written
    anything waits for the disk. So `Database.cursor` notifies in a transaction of its own.
    """
    if isinstance(cursor, _TransactionCursor):
        cursor.wakes.add(channel)
    else:
        notify(cursor, channel)


def notify(cursor: Cursor, channel: str, payload: str = "") -> None:
    """Wake the listeners of a channel when this transaction commits."""
    cursor.execute("SELECT pg_notify(%s, %s)", (channel, payload))
