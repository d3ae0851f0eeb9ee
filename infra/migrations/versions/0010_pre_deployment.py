"""What tells this deployment's queues from those of another one on the same broker

A table that old code does not know. `has_old_queues`: relays of the previous release may still
publish to queues whose names have no deployment; a database without turns has had none.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "deployment",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("has_old_queues", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deployment")),
    )
    op.execute(
        "INSERT INTO deployment (id, has_old_queues) "
        "VALUES (left(md5(gen_random_uuid()::text), 8), EXISTS (SELECT FROM turns))"
    )


def downgrade() -> None:
    op.drop_table("deployment")
