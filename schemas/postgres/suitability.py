"""Look whether a PostgreSQL, and the way to it, can carry Turnmill at all.

`turnmill db upgrade` and every process that starts refuse what cannot; the doctor calls it broken.
Otherwise a system would start and look healthy, and then fail its calls or be seconds late.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import NamedTuple
from uuid import uuid4

from turnmill.schemas.errors import DatabaseUnavailable, SettingsError
from turnmill.schemas.postgres.database import OUTAGES, Database
from turnmill.schemas.postgres.links import Link, Stop
from turnmill.schemas.settings import DatabaseSettings

OLDEST_VERSION = 15
#: A notification takes a millisecond; so much more is no slowness. A process that starts waits
#: longer for it: the machine may be starting everything else.
_NOTIFIED_WITHIN_S, _STARTED_WITHIN_S = 3.0, 15.0


#: Statements of ours wait for a lock as long as this, seconds.
_SHORTEST_LIMIT_S = 5.0


class _Server(NamedTuple):
    version: int
    encoding: str
    ctype: str
    #: Of the database and of our user, as they may be written in a statement.
    name: str
    role: str
    #: Where tables are made; None: `search_path` names no schema that is there.
    schema: str | None
    search_path: str
    #: Whether our user may make the tables; or, where there are some, write them.
    may_make: bool
    may_write: bool


_SERVER = """
SELECT current_setting('server_version_num')::int / 10000 AS version,
       pg_encoding_to_char(encoding) AS encoding, datctype AS ctype,
       quote_ident(datname) AS name, quote_ident(current_user) AS role,
       current_schema()::text AS schema, current_setting('search_path') AS search_path,
       coalesce(to_regclass('turns') IS NOT NULL
           OR has_schema_privilege(current_schema(), 'CREATE'), true) AS may_make,
       coalesce(has_table_privilege(to_regclass('turns'), 'INSERT'), true) AS may_write
FROM pg_database WHERE datname = current_database()
"""


class _Schema(NamedTuple):
    schema: str | None


_SCHEMA = "SELECT current_schema()::text AS schema"


@dataclass(frozen=True, slots=True)
class _Default:
    """A setting that our sessions set themselves, except where a pooler is between."""

    #: Whether we can work with it, as `pg_settings` shows it.
    is_fit: Callable[[str], bool]
    #: What to set instead.
    value: str
    harm: str


def _is_long(limit_ms: str) -> bool:
    return limit_ms == "0" or float(limit_ms) >= _SHORTEST_LIMIT_S * 1000


_DEFAULTS = {
    "default_transaction_isolation": _Default(
        "read committed".__eq__, "'read committed'", "transactions would fail when they meet"
    ),
    "default_transaction_read_only": _Default("off".__eq__, "off", "nothing could be written"),
    "synchronous_commit": _Default(
        "off".__ne__,
        "on",
        "a crash may forget turns that were accepted and replies that were shown",
    ),
    "statement_timeout": _Default(_is_long, "0", "statements would be ended half-way"),
    "lock_timeout": _Default(_is_long, "0", "statements would be ended while they wait"),
    "transaction_timeout": _Default(_is_long, "0", "connections would be ended half-way"),
    "idle_in_transaction_session_timeout": _Default(
        _is_long, "'10s'", "connections would be ended half-way"
    ),
}


class _Setting(NamedTuple):
    """A row of `_SETTINGS`: in milliseconds, where it is a limit."""

    name: str
    setting: str


#: An older PostgreSQL does not have all of them.
_SETTINGS = "SELECT name, setting FROM pg_settings WHERE name = ANY(%s) ORDER BY name"


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
        f"CREATE DATABASE {row.name} OWNER {row.role} TEMPLATE template0 ENCODING 'UTF8' "
        "LC_CTYPE 'C.UTF-8' LC_COLLATE 'C.UTF-8'; move the data, if there is any, with pg_dump "
        "and pg_restore"
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
    if row.schema is None:
        yield Unsuitable(
            f"its search_path is {row.search_path!r}, where no schema is that this user may use",
            "make that schema (CREATE SCHEMA), or choose another one (ALTER ROLE "
            f"{row.role} IN DATABASE {row.name} SET search_path = public)",
        )
    yield from _examine_rights(row)
    yield from _examine_defaults(database, row)
    with database.connect() as link:
        yield from _examine_ways(database, link, row, notified_within_s)


def _examine_rights(row: _Server) -> Iterator[Unsuitable]:
    """From PostgreSQL 15 on, `public` is the database's owner's alone."""
    if not row.may_make:
        fix = (
            f"ALTER DATABASE {row.name} OWNER TO {row.role}"
            if row.schema == "public"
            else f"GRANT CREATE ON SCHEMA {row.schema} TO {row.role}"
        )
        yield Unsuitable(
            f"its user {row.role} may not make tables in the schema {row.schema}",
            f"{fix}, as a superuser",
        )
    if not row.may_write:
        yield Unsuitable(
            f"its tables are another user's, and {row.role} may not write them",
            f"restore it as {row.role} (docs/backup.md), or, as their owner: GRANT ALL ON ALL "
            f"TABLES IN SCHEMA {row.schema} TO {row.role}; GRANT ALL ON ALL SEQUENCES IN SCHEMA "
            f"{row.schema} TO {row.role}",
        )


def _examine_defaults(database: Database, row: _Server) -> Iterator[Unsuitable]:
    """Look at what our sessions set, for where they cannot: behind a pooler."""
    for name, setting in database.fetch(_Setting, _SETTINGS, (list(_DEFAULTS),)):
        default = _DEFAULTS[name]
        if not default.is_fit(setting):
            unit = " ms" if default.is_fit is _is_long else ""
            # Wins over what ALTER DATABASE and ALTER ROLE have set.
            yield Unsuitable(
                f"through the pooler {name} is {setting}{unit} by default: {default.harm}",
                f"ALTER ROLE {row.role} IN DATABASE {row.name} SET {name} = {default.value}, and "
                "let the pooler reconnect",
            )


def _examine_ways(
    database: Database, link: Link, row: _Server, notified_within_s: float
) -> Iterator[Unsuitable]:
    """Compare a pooled connection with one that has a session (`link`)."""
    (direct,) = link.fetch(_Schema, _SCHEMA)
    if direct.schema != row.schema:
        yield Unsuitable(
            f"tables are made in the schema {direct.schema}, and looked for in {row.schema} "
            "through the pooler, which passes no options of a URL on",
            f"ALTER ROLE {row.role} IN DATABASE {row.name} SET search_path = the schema of the "
            "tables, and let the pooler reconnect",
        )
    if not _notifies(database, link, notified_within_s):
        yield Unsuitable(
            "a notification does not arrive: a pooler in transaction mode stands before it, or "
            "TURNMILL_DATABASE__DIRECT_URL leads elsewhere",
            "set TURNMILL_DATABASE__DIRECT_URL to the same database without its pooler",
        )


def _notifies(database: Database, link: Link, within_s: float) -> bool:
    """Whether a connection with a session receives what a pooled one notifies.

    LISTEN, and advisory locks alike, need a server connection of their own, in the same database.
    """
    channel = f"turnmill_{uuid4().hex}"
    link.execute(f"LISTEN {channel}")
    database.run("SELECT pg_notify(%s, 'heard')", (channel,))
    return "heard" in link.wait_for_notifications(within_s, Stop())
