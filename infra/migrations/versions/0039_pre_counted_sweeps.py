"""A statement that changes many turns of a batch counts them itself

The trigger adds a row for each turn that changes its state: half of what it cost to cancel a page
of 2,000 turns, and as many rows to merge. A transaction that sets `turnmill.counts_moves` counts
its turns in one row. Processes of the previous release do not set it, and are counted as before.
"""

from alembic import op

revision = "0039"
down_revision = "0038"
branch_labels = None
depends_on = None

_COUNT_MOVED = """
CREATE OR REPLACE TRIGGER count_moved_batch_turn AFTER UPDATE OF state ON turns FOR EACH ROW
WHEN (NEW.batch_id IS NOT NULL AND OLD.state <> NEW.state AND NEW.state <> 'running'{unless})
EXECUTE FUNCTION count_moved_batch_turn()
"""

_UNLESS = " AND current_setting('turnmill.counts_moves', true) IS DISTINCT FROM 'on'"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute(_COUNT_MOVED.format(unless=_UNLESS))


def downgrade() -> None:
    op.execute(_COUNT_MOVED.format(unless=""))
