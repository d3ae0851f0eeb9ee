"""What a relay measures of itself. The names are listed in docs/operations.md."""

from prometheus_client import Gauge

from turnmill.schemas.observability.telemetry import REGISTRY, counter, histogram

HINTS_PUBLISHED = counter(
    "hints_published",
    "Hints that the broker confirmed, or did not confirm in time.",
    "result",
    known=("confirmed", "unconfirmed"),
)
HINTS_LOST = counter("hints_lost", "Hints that the broker had lost, to be published again.")
TAKE_S = histogram("relay_take_seconds", "Time to take due hints from the outbox.")
WINDOW = Gauge(
    "turnmill_relay_window_count",
    "Hints of one lane of one model that the broker may hold.",
    registry=REGISTRY,
)
IS_FULL = Gauge(
    "turnmill_relay_window_full",
    "1 while hints are due that find no place in the window, or are held by another relay.",
    registry=REGISTRY,
)
