"""Indexes on tables that may be large, built while everybody reads and writes them."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

#: What a build that was interrupted leaves behind: it is maintained, and no query uses it.
_IS_INVALID = sa.text("""
SELECT 1 FROM pg_index WHERE indexrelid = to_regclass(:name) AND NOT indisvalid
""")


def build_index(
    name: str, table: str, columns: Sequence[str | sa.TextClause], **options: Any
) -> None:
    """Build an index with CREATE INDEX CONCURRENTLY, unless it is there; `options` are those of
    `op.create_index`.

    PostgreSQL does so outside transactions only: what the migration did before is committed first.
    So a migration calls this before anything that cannot be done twice. A build waits for the
    transactions that are open, and nobody waits for a build.
    """
    with op.get_context().autocommit_block():
        if op.get_bind().execute(_IS_INVALID, {"name": name}).first():
            op.execute(f"DROP INDEX CONCURRENTLY {name}")
        op.create_index(
            name, table, columns, if_not_exists=True, postgresql_concurrently=True, **options
        )
