"""The outbox: one row for each `queued` turn, the hint that PostgreSQL owes the broker.

The transaction that makes a turn `queued` inserts the row; the one that ends this state deletes it.
"""

#: Owe the broker a hint for each row of the CTE `due` (turn_id, model, lane, deadline_at, due_at,
#: is_immediate): turns that the same transaction makes `queued`.
#:
#: A turn that was not queued has no hint. If there is a row all the same, a hand or a worker of an
#: older release left it behind: the new hint takes its place, for the alternative is a turn that
#: can never be queued again.
OWE_HINTS = """
INSERT INTO outbox (turn_id, model, lane, deadline_at, due_at, is_immediate)
SELECT turn_id, model, lane, deadline_at, due_at, is_immediate FROM due
ON CONFLICT (turn_id) DO UPDATE SET model = excluded.model, lane = excluded.lane,
    deadline_at = excluded.deadline_at, due_at = excluded.due_at,
    is_immediate = excluded.is_immediate, published_at = NULL, worker_id = NULL, own_until = NULL
"""
