"""An index of which passages of a collection have a word, and how often

An index alone, built while everybody reads and writes. PostgreSQL keeps it up to date, so
passages that processes of the previous release write are in it. They search by
`ix_passages_terms`, which a later release removes.
"""

import sqlalchemy as sa
from alembic import op

from turnmill.infra.migrations.indexes import build_index

revision = "0038"
down_revision = "0037"
branch_labels = None
depends_on = None

#: Its body is parsed here: which schemas a session searches does not matter to it. It is said to
#: cost much, because it reads words that are stored outside their rows: no plan should call it.
_POSTINGS = """
CREATE OR REPLACE FUNCTION passage_postings(collection_id uuid, terms tsvector) RETURNS tsvector
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE COST 1000
RETURN (
    SELECT array_to_tsvector(array_agg(
        to_hex(hashtextextended(lexeme, uuid_hash_extended(collection_id, n)))))
    FROM unnest(terms)
    CROSS JOIN generate_series(1, least(3, coalesce(array_length(positions, 1), 1))) AS n
)
"""


def upgrade() -> None:
    op.execute(_POSTINGS)
    build_index(
        "ix_passages_postings",
        "passages",
        [sa.text("passage_postings(collection_id, terms)")],
        postgresql_using="gin",
        # What waits in a list is searched from end to end, by each scan.
        postgresql_with={"fastupdate": "off"},
    )


def downgrade() -> None:
    op.drop_index("ix_passages_postings", "passages")
    op.execute("DROP FUNCTION passage_postings(uuid, tsvector)")
