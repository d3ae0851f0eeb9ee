"""Look whether a PostgreSQL, and the way to it, can carry Turnmill at all.

`turnmill db upgrade` and every process that starts refuse what cannot; the doctor calls it broken.
Otherwise a system would start and look healthy, and then fail its calls or be seconds late.
"""

from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import NamedTuple
from uuid import uuid4

from turnmill.schemas.errors import DatabaseUnavailable, SettingsError
from turnmill.schemas.postgres.database import OUTAGES, Database
from turnmill.schemas.postgres.links import Stop
from turnmill.schemas.settings import DatabaseSettings

OLDEST_VERSION = 15
#: A notification takes a millisecond; so much more is no slowness. A process that starts waits
#: longer for it: the machine may be starting everything else.
_NOTIFIED_WITHIN_S, _STARTED_WITHIN_S = 3.0, 15.0


class _Server(NamedTuple):
    version: int
    encoding: str
    ctype: str
    name: str
    isolation: str


#: The isolation is what our own sessions set, or the server's default where a pooler is between.
_SERVER = """
SELECT current_setting('server_version_num')::int / 10000 AS version,
       pg_encoding_to_char(encoding) AS encoding, datctype AS ctype, datname AS name,
       current_setting('default_transaction_isolation') AS isolation
FROM pg_database WHERE datname = current_database()
"""


@dataclass(frozen=True, slots=True)
class Unsuitable:
    detail: str
    #: What to do about it.
    fix: str


def refuse_to_start_on_unsuitable(settings: DatabaseSettings) -> None:
    """Raises `SettingsError` as `refuse_unsuitable`. A server that is away may come yet."""
    with closing(Database(settings)) as database, suppress(DatabaseUnavailable, *OUTAGES):
        refuse_unsuitable(database, notified_within_s=_STARTED_WITHIN_S)


def refuse_unsuitable(database: Database, notified_within_s: float = _NOTIFIED_WITHIN_S) -> None:
    """Raises `SettingsError` with all that is wrong; `DatabaseUnavailable` if it is not there."""
    if found := list(examine_server(database, notified_within_s)):
        lines = [f"  {each.detail}: {each.fix}" for each in found]
        raise SettingsError("\n".join(["The database cannot carry Turnmill.", *lines]))


def examine_server(
    database: Database, notified_within_s: float = _NOTIFIED_WITHIN_S
) -> Iterator[Unsuitable]:
    """What keeps this database from working. Raises `DatabaseUnavailable`."""
    row = database.fetch(_Server, _SERVER)[0]
    anew = (
        f"CREATE DATABASE {row.name} TEMPLATE template0 ENCODING 'UTF8' LC_CTYPE 'C.UTF-8' "
        "LC_COLLATE 'C.UTF-8'; move the data, if there is any, with pg_dump and pg_restore"
    )
    if row.version < OLDEST_VERSION:
        yield Unsuitable(
            f"PostgreSQL {row.version} is too old", f"install {OLDEST_VERSION} or newer"
        )
    if row.encoding != "UTF8":
        yield Unsuitable(f"its encoding is {row.encoding}, which cannot hold every text", anew)
    if row.ctype in ("C", "POSIX"):
        yield Unsuitable(
            f"its LC_CTYPE is {row.ctype}, which knows no letters beyond ASCII: searches miss them",
            anew,
        )
    if row.isolation != "read committed":
        yield Unsuitable(
            f"through the pooler transactions are {row.isolation} by default, and would fail when "
            "they meet",
            f"ALTER DATABASE {row.name} SET default_transaction_isolation = 'read committed', and "
            "let the pooler reconnect",
        )
    if not _notifies(database, notified_within_s):
        yield Unsuitable(
            "a notification does not arrive: a pooler in transaction mode stands before it, or "
            "TURNMILL_DATABASE__DIRECT_URL leads elsewhere",
            "set TURNMILL_DATABASE__DIRECT_URL to the same database without its pooler",
        )


def _notifies(database: Database, within_s: float) -> bool:
    """Whether a connection with a session receives what a pooled one notifies.

    LISTEN, and advisory locks alike, need a server connection of their own, in the same database.
    """
    channel = f"turnmill_{uuid4().hex}"
    with database.connect() as link:
        link.execute(f"LISTEN {channel}")
        database.run("SELECT pg_notify(%s, 'heard')", (channel,))
        return "heard" in link.wait_for_notifications(within_s, Stop())
