"""Evidence: what a lost attempt says about its turn, as SQL for the rescuer.

An attempt is lost when its worker dies, falls silent or abandons it. Either it counts in full
(outcome `crashed`), or something else than the turn explains it (`interrupted`), and then it
counts as the `DISCOUNT`-th part of one: a turn that takes whole machines down is found too, later.

Crashes only lead to quarantine. A turn is parked for what it did there, where it ran alone.
"""

from turnmill.schemas.turns import Lane

#: Workers that were last seen so close to each other died together, seconds.
TOGETHER_S = 2.0

#: So many interrupted attempts weigh as much as one that crashed. One death alone, and a machine
#: that reboots five times in a row, stay below `PARKED_AFTER`.
DISCOUNT = 6

#: Crashes in quarantine after which a turn is parked: one may be a machine's fault.
PARKED_AFTER = 2

#: Text was added since the last attempt that was lost.
_HAS_PROGRESSED = """
EXISTS (SELECT FROM chunks c WHERE c.turn_id = t.id AND c.text <> '' AND c.position > coalesce(
    (SELECT max(p.kept_position) FROM attempts p WHERE p.turn_id = t.id), -1))"""

#: A worker that died at the same time without ever having had the turn tells of a machine that
#: died.
_DIED_WITH_OTHERS = f"""
EXISTS (SELECT FROM worker_liveness mine JOIN worker_liveness other ON other.id <> mine.id
        AND other.seen_at BETWEEN mine.seen_at - make_interval(secs => {TOGETHER_S})
            AND mine.seen_at + make_interval(secs => {TOGETHER_S})
    WHERE mine.id = t.worker_id
      AND mine.id NOT IN (SELECT id FROM alive) AND other.id NOT IN (SELECT id FROM alive)
      AND NOT EXISTS (
          SELECT FROM attempts had WHERE had.turn_id = t.id AND had.worker_id = other.id))"""

#: The worker lives, and neither renewed the lease nor abandoned the turn: it never learnt that its
#: claim had succeeded, or PostgreSQL kept its renewals waiting.
_IS_UNKNOWN_TO_ITS_WORKER = """
t.leased_until > 'epoch' AND EXISTS (
    SELECT FROM alive w WHERE w.id = t.worker_id AND w.seen_at > t.leased_until)"""

#: A worker may take quarantine and other lanes, several turns at once.
_WAS_NOT_ALONE = f"""
a.lane = '{Lane.QUARANTINE}' AND EXISTS (
    SELECT FROM turns n WHERE n.model = t.model AND n.state = 'running'
      AND n.worker_id = t.worker_id AND n.id <> t.id)"""

#: Of the lost attempt `a` of the turn `t`, beside the CTE `alive`.
IS_INTERRUPTED = f"""
coalesce({_HAS_PROGRESSED} OR {_DIED_WITH_OTHERS} OR {_IS_UNKNOWN_TO_ITS_WORKER}
    OR {_WAS_NOT_ALONE}, false)"""

#: The CTE `weighed`: the rows of `lost` (a turn's columns, `is_interrupted`, `is_alone`) with what
#: becomes of each. A turn's `crashes` are its lost attempts since it was accepted or replayed.
WEIGHED = f"""
weighed AS (
    SELECT lost.*, lost.is_alone OR all_weight >= {DISCOUNT} * %(quarantine_after)s AS is_isolated,
        lost.is_alone AND lone_weight >= {DISCOUNT * PARKED_AFTER} AS is_spent
    FROM lost CROSS JOIN LATERAL (
        SELECT sum(weight) AS all_weight, sum(weight) FILTER (WHERE is_alone) AS lone_weight
        FROM (
            SELECT CASE WHEN lost.is_interrupted THEN 1 ELSE {DISCOUNT} END AS weight,
                lost.is_alone
            UNION ALL (
                SELECT CASE outcome WHEN 'interrupted' THEN 1 ELSE {DISCOUNT} END,
                    lane = '{Lane.QUARANTINE}'
                FROM attempts WHERE turn_id = lost.id AND outcome IN ('crashed', 'interrupted')
                ORDER BY number DESC LIMIT lost.crashes - 1)
        ) AS attempt) AS weights
)"""
