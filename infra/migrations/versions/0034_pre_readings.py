"""What was read of a turn's sounds and images, and sounds that calls have transcribed

New tables: processes of the previous release neither read nor write them. They leave turns with
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
    op.create_table(
        "transcriptions",
        sa.Column(
            "file_id",
            sa.Uuid(),
            sa.ForeignKey("files.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("language", sa.Text()),
        sa.Column("prompt", sa.Text()),
        sa.Column("due_at", sa.DateTime(timezone=True)),
        sa.Column(
            "wanted_until",
            sa.DateTime(timezone=True),
            nullable=False,
            server_default=sa.func.clock_timestamp(),
        ),
        sa.Column("attempt", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("tries", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("failures", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("transcript", JSONB()),
        sa.Column("error_code", sa.Text()),
        sa.Column("error_message", sa.Text()),
        sa.Column("error_param", sa.Text()),
    )
    op.create_index(
        "ix_transcriptions_due_at",
        "transcriptions",
        ["due_at"],
        postgresql_where=sa.text("due_at IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_table("transcriptions")
    op.drop_table("turn_readings")
