"""Requeue a running turn: by the worker that holds it, or by the rescuer."""

from turnmill.schemas.routes import OUTBOX_CHANNEL
from turnmill.schemas.store.changes import change
from turnmill.schemas.store.outbox import OWE_HINTS
from turnmill.schemas.turns import Lane, TurnState

_REQUEUE = change(TurnState.RUNNING, to=TurnState.QUEUED)

#: Nobody holds the turn any more.
_RELEASE = f"{_REQUEUE.setting}, worker_id = NULL, leased_until = NULL"

#: Fenced by the attempt's number and worker. A turn whose attempt has no row any more (a hand, a
#: month that was dropped) is requeued too.
REQUEUE = f"""
WITH turn AS (
    UPDATE turns SET {_RELEASE}, failures = failures + %(counts)s
    WHERE id = %(turn)s AND attempt = %(attempt)s AND worker_id = %(worker)s AND {_REQUEUE.guard}
    RETURNING id, attempt, model, lane, deadline_at
), attempt AS (
    UPDATE attempts SET ended_at = clock_timestamp(), outcome = %(outcome)s, error = %(error)s
    FROM turn WHERE turn_id = turn.id AND number = turn.attempt
    RETURNING attempts.lane
), due AS (
    SELECT id AS turn_id, model, coalesce(attempt.lane, turn.lane) AS lane, deadline_at,
        clock_timestamp() + make_interval(secs => %(delay_s)s) AS due_at,
        %(delay_s)s = 0 AS is_immediate
    FROM turn LEFT JOIN attempt ON true
), hint AS ({OWE_HINTS})
SELECT id, pg_notify('{OUTBOX_CHANNEL}', '') FROM turn
"""

#: CTEs that requeue those rows of the CTE `weighed` that are not spent. `weighed` has locked them:
#: id, attempt, model, lane, deadline_at, crashes, is_interrupted, is_isolated, is_spent.
REQUEUE_WEIGHED = f"""
requeued AS (
    UPDATE turns t SET {_RELEASE}, crashes = w.crashes
    FROM weighed w WHERE t.id = w.id AND t.{_REQUEUE.guard} AND NOT w.is_spent
    RETURNING t.id, t.attempt, t.model, t.deadline_at, w.is_interrupted,
        CASE WHEN w.is_isolated THEN '{Lane.QUARANTINE}' ELSE t.lane END AS hint_lane
), ended AS (
    UPDATE attempts a SET ended_at = clock_timestamp(),
        outcome = CASE WHEN r.is_interrupted THEN 'interrupted' ELSE 'crashed' END,
        kept_position = (SELECT max(position) FROM chunks WHERE turn_id = r.id)
    FROM requeued r WHERE a.turn_id = r.id AND a.number = r.attempt
), due AS (
    SELECT id AS turn_id, model, hint_lane AS lane, deadline_at, clock_timestamp() AS due_at,
        true AS is_immediate
    FROM requeued
), hinted AS ({OWE_HINTS})"""
