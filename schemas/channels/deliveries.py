"""The delivery: bringing one reply, or one notice, to the place where its user waits."""

from enum import StrEnum

#: The longest lease that can be set, seconds. One that ends later is from before a clock's step.
MAX_LEASE_S = 600.0


class DeliveryState(StrEnum):
    PENDING = "pending"  # its turn is open: progress may be shown
    QUEUED = "queued"  # due: the outbox owes the broker a hint, once those before it have ended
    SENDING = "sending"  # one attempt holds the lease
    SENT = "sent"
    FAILED = "failed"  # refused for good, or attempts used up; it can be retried by hand
    DROPPED = "dropped"  # nobody wants it any more


DELIVERY_TRANSITIONS: dict[DeliveryState, frozenset[DeliveryState]] = {
    DeliveryState.PENDING: frozenset({DeliveryState.QUEUED, DeliveryState.DROPPED}),
    DeliveryState.QUEUED: frozenset(
        {DeliveryState.SENDING, DeliveryState.DROPPED, DeliveryState.PENDING}
    ),
    DeliveryState.SENDING: frozenset(
        {
            DeliveryState.SENT,
            DeliveryState.QUEUED,
            DeliveryState.FAILED,
            DeliveryState.DROPPED,
            DeliveryState.PENDING,
        }
    ),
    # Pending again: the turn, of which its user was told that it failed, is replayed; perhaps
    # while that is being told.
    DeliveryState.SENT: frozenset({DeliveryState.PENDING}),
    DeliveryState.FAILED: frozenset(
        {DeliveryState.QUEUED, DeliveryState.DROPPED, DeliveryState.PENDING}
    ),
    DeliveryState.DROPPED: frozenset({DeliveryState.PENDING}),
}

#: States in which something is still to be sent.
OPEN_DELIVERIES = frozenset({DeliveryState.PENDING, DeliveryState.QUEUED, DeliveryState.SENDING})


class DeliveryKind(StrEnum):
    REPLY = "reply"  # of a turn: its reply, or a word about why there is none
    NOTICE = "notice"  # a text of its own: a person's answer, "a person will answer here"
