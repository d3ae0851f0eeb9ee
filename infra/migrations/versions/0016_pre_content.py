"""Replies that ask for tools, log-probabilities, and what workers' engines can do

Columns without defaults: nothing is rewritten. Older releases leave them empty, which says what
they can: text in, text out.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("replies", sa.Column("tool_calls", JSONB(), nullable=True))
    op.add_column("replies", sa.Column("logprobs", JSONB(), nullable=True))
    op.add_column("worker_liveness", sa.Column("capabilities", JSONB(), nullable=True))


def downgrade() -> None:
    op.drop_column("worker_liveness", "capabilities")
    op.drop_column("replies", "logprobs")
    op.drop_column("replies", "tool_calls")
