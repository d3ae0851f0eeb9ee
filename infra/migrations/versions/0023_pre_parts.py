"""Find the delivery that any of its messages belongs to

People put their reactions on whichever part of a long reply they like. Processes of the previous
release look for the first part alone, with an index that stays for their sake. The new one is built
while deliveries are read and written.
"""

import sqlalchemy as sa
from alembic import op

from turnmill.infra.migrations.indexes import build_index

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

_PARTS = sa.text("jsonb_path_query_array(progress, '$.\"parts\".*')")


def upgrade() -> None:
    build_index("ix_deliveries_parts", "deliveries", [_PARTS], postgresql_using="gin")


def downgrade() -> None:
    op.drop_index("ix_deliveries_parts", "deliveries")
