"""What was read of a turn's sounds and images

A new table: processes of the previous release neither read nor write it. They leave turns with
images and sound to this release's workers, for they declare that they take text alone.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0034"
down_revision = "0033"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "turn_readings",
        sa.Column("turn_id", sa.Uuid(), primary_key=True),
        sa.Column("readings", JSONB(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            nullable=False,
            server_default=sa.func.clock_timestamp(),
        ),
    )


def downgrade() -> None:
    op.drop_table("turn_readings")
