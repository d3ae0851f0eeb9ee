"""What the tables promise, as queries that find nothing."""

from turnmill.schemas.postgres.database import Database


def assert_invariants(database: Database) -> None:
    """What `schemas/store/tables.py` promises; nothing waits without a turn to wait for."""
    broken = database.run("""
        SELECT 'outbox without queued turn' AS what, o.turn_id AS id
        FROM outbox o LEFT JOIN turns t ON t.id = o.turn_id AND t.state = 'queued'
        WHERE t.id IS NULL AND o.lane <> 'delivery'
        UNION ALL SELECT 'queued turn without outbox', t.id
        FROM turns t LEFT JOIN outbox o ON o.turn_id = t.id
        WHERE t.state = 'queued' AND o.turn_id IS NULL
        UNION ALL SELECT 'two due turns at once', conversation_id FROM turns
        WHERE state IN ('queued', 'running') GROUP BY conversation_id HAVING count(*) > 1
        UNION ALL SELECT 'stranded', conversation_id FROM turns GROUP BY conversation_id
        HAVING bool_or(state = 'waiting') AND NOT bool_or(state IN ('queued', 'running'))
        UNION ALL SELECT 'wrong answered_seq', c.id FROM conversations c
        WHERE c.answered_seq <> coalesce((SELECT min(seq) FROM turns t
            WHERE t.conversation_id = c.id AND t.state IN ('waiting', 'queued', 'running')),
            c.next_seq) - 1
        UNION ALL SELECT 'reply and state differ', t.id FROM turns t
        FULL JOIN replies r ON r.turn_id = t.id
        WHERE (t.state = 'completed') <> (r.turn_id IS NOT NULL) OR r.attempt <> t.attempt
        UNION ALL SELECT 'chunks of a turn that somebody settled', c.turn_id
        FROM chunks c JOIN turns t ON t.id = c.turn_id
        WHERE t.state NOT IN ('queued', 'running', 'cancelled', 'handed_off')
        UNION ALL SELECT 'attempt without end', a.turn_id
        FROM attempts a JOIN turns t ON t.id = a.turn_id
        WHERE a.ended_at IS NULL AND (t.state <> 'running' OR a.number <> t.attempt)
    """)
    assert broken == [], broken


def assert_channel_invariants(database: Database) -> None:
    """What `schemas/store/channels/tables.py` promises."""
    broken = database.run("""
        WITH held AS (
            SELECT DISTINCT ON (conversation_id) id, conversation_id, state FROM deliveries
            WHERE state IN ('queued', 'sending') ORDER BY conversation_id, ordinal
        )
        SELECT 'a hint for another than the first delivery' AS what, o.turn_id AS id
        FROM outbox o LEFT JOIN held ON held.id = o.turn_id AND held.state = 'queued'
        WHERE o.lane = 'delivery' AND held.id IS NULL
        UNION ALL SELECT 'no hint for the first delivery', held.id
        FROM held LEFT JOIN outbox o ON o.turn_id = held.id
        WHERE held.state = 'queued' AND o.turn_id IS NULL
        UNION ALL SELECT 'pending and open differ', d.id
        FROM deliveries d JOIN turns t ON t.id = d.turn_id
        WHERE (d.state = 'pending') <> (t.state IN ('waiting', 'queued', 'running'))
        UNION ALL SELECT 'a turn of another conversation than its delivery', d.id
        FROM deliveries d LEFT JOIN turns t ON t.id = d.turn_id
        WHERE d.kind = 'reply' AND t.conversation_id IS DISTINCT FROM d.conversation_id
        UNION ALL SELECT 'two deliveries of a turn', turn_id FROM deliveries
        WHERE turn_id IS NOT NULL GROUP BY turn_id HAVING count(*) > 1
        UNION ALL SELECT 'an open turn of a platform without a delivery', t.id
        FROM turns t LEFT JOIN deliveries d ON d.turn_id = t.id
        WHERE t.author IS NOT NULL AND d.id IS NULL
          AND t.state IN ('waiting', 'queued', 'running')
        UNION ALL SELECT 'a turn that is due though a person answers', t.id
        FROM turns t JOIN conversations c ON c.id = t.conversation_id
        WHERE c.handed_off_at IS NOT NULL AND t.state IN ('waiting', 'queued', 'running')
        UNION ALL SELECT 'a reply after the hand-off', t.id
        FROM turns t JOIN conversations c ON c.id = t.conversation_id
        WHERE t.state = 'completed' AND t.settled_at > c.handed_off_at
        UNION ALL SELECT 'an event of no turn', e.turn_id
        FROM channel_events e LEFT JOIN turns t ON t.id = e.turn_id
        WHERE e.turn_id IS NOT NULL AND t.id IS NULL
    """)
    assert broken == [], broken
