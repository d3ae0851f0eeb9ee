"""How far each batch is, counted when its turns change their state

A trigger counts, so processes of the previous release, which do not know the table, are counted
too. It is made under a lock that lets nobody change a turn, for milliseconds. The turns that were
there are counted afterwards, as they stood under the lock: a snapshot was taken there. Turns go on
meanwhile, and their changes are counted by the trigger.
"""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

#: Of many turns that one statement adds, one row.
_COUNT_ADDED = """
CREATE FUNCTION count_added_batch_turns() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO batch_moves (batch_id, new_state, turns)
    SELECT batch_id, state, count(*) FROM added WHERE batch_id IS NOT NULL GROUP BY batch_id, state;
    RETURN NULL;
END $$;
CREATE TRIGGER count_added_batch_turns AFTER INSERT ON turns
REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION count_added_batch_turns()
"""

#: A row for each turn, because only a trigger for rows can leave out the other turns, claims and
#: renewed leases for nothing. The reply was written by the same statement.
_COUNT_MOVED = """
CREATE FUNCTION count_moved_batch_turn() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO batch_moves (batch_id, old_state, new_state, turns, error_code, turn_id,
                             prompt_tokens, completion_tokens)
    SELECT NEW.batch_id, OLD.state, NEW.state, 1,
        CASE WHEN NEW.state IN ('failed', 'parked') THEN NEW.error_code
             WHEN OLD.state IN ('failed', 'parked') THEN OLD.error_code END,
        CASE WHEN NEW.state IN ('failed', 'parked') THEN NEW.id END,
        coalesce(r.prompt_tokens, 0), coalesce(r.completion_tokens, 0)
    FROM (SELECT) AS one LEFT JOIN replies r ON r.turn_id = NEW.id AND NEW.state = 'completed';
    RETURN NULL;
END $$;
CREATE TRIGGER count_moved_batch_turn AFTER UPDATE OF state ON turns FOR EACH ROW
WHEN (NEW.batch_id IS NOT NULL AND OLD.state <> NEW.state AND NEW.state <> 'running')
EXECUTE FUNCTION count_moved_batch_turn()
"""

#: As if each turn had been added in the state that it has; what was attempted follows.
_COUNT_THERE = """
INSERT INTO batch_moves (batch_id, new_state, turns, error_code, turn_id, prompt_tokens,
                         completion_tokens, first_at, last_at)
SELECT t.batch_id, t.state, count(*), t.code,
    (array_agg(t.id) FILTER (WHERE t.state IN ('failed', 'parked')))[1],
    coalesce(sum(r.prompt_tokens), 0), coalesce(sum(r.completion_tokens), 0),
    min(t.accepted_at), max(coalesce(t.settled_at, t.accepted_at))
FROM (SELECT *, CASE WHEN state IN ('failed', 'parked') THEN error_code END AS code FROM turns) AS t
LEFT JOIN replies r ON r.turn_id = t.id
WHERE t.batch_id IS NOT NULL GROUP BY t.batch_id, t.state, t.code
"""
_COUNT_ATTEMPTED = """
INSERT INTO batch_moves (batch_id, old_state, new_state, turns)
SELECT batch_id, 'running', 'queued', sum(attempt) - count(*) FILTER (WHERE state = 'running')
FROM turns WHERE batch_id IS NOT NULL GROUP BY batch_id
HAVING sum(attempt) > count(*) FILTER (WHERE state = 'running')
"""

#: Taken while nobody may change a turn. It reads none itself: an attempt that has to undo another
#: one keeps readers out as well.
_SNAPSHOT = sa.text("SELECT pg_current_snapshot()")


def _now(name: str) -> sa.Column[object]:
    return sa.Column(
        name,
        sa.DateTime(timezone=True),
        nullable=False,
        server_default=sa.text("clock_timestamp()"),
    )


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    _undo()
    _install()
    with op.get_bind().engine.connect() as counting:
        counting.execution_options(isolation_level="REPEATABLE READ")
        counting.execute(_SNAPSHOT)
        with op.get_context().autocommit_block():
            pass  # The lock is given back: from here on the trigger counts.
        for statement in (_COUNT_THERE, _COUNT_ATTEMPTED):
            counting.execute(sa.text(statement))
        counting.commit()


def _install() -> None:
    op.create_table(
        "batch_moves",
        sa.Column("batch_id", sa.Uuid(), nullable=False),
        sa.Column("old_state", sa.Text()),
        sa.Column("new_state", sa.Text(), nullable=False),
        sa.Column("turns", sa.Integer(), nullable=False),
        sa.Column("error_code", sa.Text()),
        sa.Column("turn_id", sa.Uuid()),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False, server_default="0"),
        _now("first_at"),
        _now("last_at"),
        sa.Column("is_merged", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    op.create_index("ix_batch_moves_batch_id", "batch_moves", ["batch_id"])
    op.create_index(
        "ix_batch_moves_unmerged",
        "batch_moves",
        ["batch_id", "last_at"],
        postgresql_where=sa.text("NOT is_merged"),
    )
    # Rows live for seconds: vacuum it by their number, not by a share of a table that grows.
    op.execute(
        "ALTER TABLE batch_moves SET "
        "(autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000)"
    )
    op.execute(_COUNT_ADDED)
    op.execute(_COUNT_MOVED)


def downgrade() -> None:
    _undo()


def _undo() -> None:
    """Also what an attempt left behind that ended before it had counted."""
    for name in ("count_added_batch_turns", "count_moved_batch_turn"):
        op.execute(f"DROP TRIGGER IF EXISTS {name} ON turns")
        op.execute(f"DROP FUNCTION IF EXISTS {name}")
    op.execute("DROP TABLE IF EXISTS batch_moves")
