"""Give the application's database to a role that owns it and may do nothing else.

A superuser reads the server's files and runs programs; whoever gets hold of the application's
password should not. The server's superuser is for the supervisor alone.
"""

import psycopg
from psycopg.sql import SQL, Identifier, Literal

#: Made by a superuser in folders of before: all that migrations make, and what depends on them.
_TABLES = """
SELECT format('%%I.%%I', n.nspname, c.relname) AS name
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p') AND c.relowner <> %s::regrole
"""
_OWNER = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()"


def ensure_role(link: psycopg.Connection, role: str, password: str) -> None:
    """Make an ordinary role, or give it its password anew."""
    found = link.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchone()
    verb = SQL("ALTER" if found else "CREATE")
    link.execute(
        SQL(
            "{} ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION PASSWORD {}"
        ).format(verb, Identifier(role), Literal(password))
    )


def hand_over(link: psycopg.Connection, database: str, role: str) -> None:
    """Make the role the owner of the database that `link` is connected to, and of its tables.

    In one transaction, so that the database's owner tells whether it is done.
    """
    if link.execute(_OWNER).fetchone() == (role,):
        return
    owner = Identifier(role)
    with link.transaction():
        for (name,) in link.execute(_TABLES, [role]).fetchall():
            # Sequences and indexes go with their tables.
            link.execute(SQL("ALTER TABLE {} OWNER TO {}").format(SQL(name), owner))
        link.execute(SQL("ALTER DATABASE {} OWNER TO {}").format(Identifier(database), owner))
