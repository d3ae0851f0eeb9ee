"""What a delivery worker measures of itself. The names are listed in docs/operations.md."""

from turnmill.schemas.observability.telemetry import counter, histogram

DELIVERIES_ENDED = counter(
    "delivery_attempts",
    "Attempts at deliveries ended, by outcome: sent, failed, dropped, again (later), or fenced "
    "(another worker had taken the delivery over).",
    "channel",
    "outcome",
)
ATTEMPT_S = histogram("delivery_attempt_seconds", "From claim to settle.", "channel")
DELIVERIES_LOST = counter(
    "deliveries_lost", "Deliveries of dead workers that this process's sweep requeued."
)
VOICE_REPLIES = counter(
    "voice_replies",
    "Spoken replies by result: sent, busy (another one was being made), late (not made within half "
    "a lease), limited (by the platform), not_sent, failed (the voice broke).",
    "result",
)
STEPS_SHOWN = counter(
    "delivery_progress", "Looks at turns whose progress is shown, by result.", "channel", "result"
)
