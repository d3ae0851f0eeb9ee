"""Deliveries come to be: in the transaction that accepts their turn, or that owes a notice."""

#: Of turns that are being accepted: their progress may be shown at once.
INSERT_PENDING = """
INSERT INTO deliveries
    (id, tenant_id, conversation_id, turn_id, channel, target, kind, state, expires_at, progress_at)
SELECT id, tenant_id, conversation_id, turn_id, channel, target, 'reply', 'pending',
    clock_timestamp() + make_interval(secs => expires_in_s), clock_timestamp()
FROM json_to_recordset(%s) AS d (id uuid, tenant_id uuid, conversation_id uuid, turn_id uuid,
    channel text, target jsonb, expires_in_s float)
ON CONFLICT DO NOTHING
"""

#: A notice; it is queued behind what the conversation still owes (`advance_deliveries`).
INSERT_NOTICE = """
INSERT INTO deliveries
    (id, tenant_id, conversation_id, channel, target, kind, content, state)
SELECT %(id)s, tenant_id, conversation_id, channel, target, 'notice', %(content)s, 'queued'
FROM channel_threads WHERE conversation_id = %(conversation)s
RETURNING id
"""
