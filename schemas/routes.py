"""Names on the broker: the one task, its queues, and the channels Postgres notifies on."""

import hashlib
import re
from urllib.parse import quote
from uuid import UUID

from turnmill.schemas.turns import Lane

#: The task of a turn. Its arguments are the turn's id, lane and model: a hint, never the prompt.
ANSWER_TASK = "turnmill.turn.answer"
#: The task of a delivery. Its arguments are the delivery's id and its channel's name.
SEND_TASK = "turnmill.delivery.send"

#: The lane of deliveries. Its queues are those of channels, not of models: an outbox row of a
#: delivery has the delivery's id as `turn_id`, and the channel's name as `model`.
DELIVERY_LANE = "delivery"

#: Where the hints of paused batches wait: no relay publishes from this lane.
PAUSED_LANE = "paused"

#: NOTIFY channels. Like hints, notifications only wake somebody up: whoever listens reads
#: the tables, and sweeps in case one was lost.
OUTBOX_CHANNEL = "turnmill_outbox"
TURN_CHANNEL = "turnmill_turn"
ABORT_CHANNEL = "turnmill_abort"


#: Longer encoded names of models are cut; RabbitMQ allows 255 bytes for a queue's whole name.
_MAX_MODEL_BYTES = 150


def queue_name(lane: Lane | str, model: str, deployment: str) -> str:
    """Name the queue of one lane of one model: `turns.interactive.1c9f03ab.smollm2-135m-instruct`.

    Two models never share a queue, nor do two deployments on one broker.
    """
    return f"turns.{lane}.{deployment}.{_encoded(model)}"


def own_queue_name(lane: Lane | str, model: str, deployment: str, worker_id: UUID) -> str:
    """Name the queue of what one worker takes of a lane: the lane's name and the worker's id."""
    return f"{queue_name(lane, model, deployment)}.{worker_id.hex}"


def old_queue_name(lane: Lane | str, model: str) -> str:
    """Name a lane's queue as the previous release does, whose relays may still publish to it."""
    return f"turns.{lane}.{re.sub(r'[^A-Za-z0-9._-]', '-', model)}"


def _encoded(model: str) -> str:
    """Encode a model's name without loss: other bytes than `A-Za-z0-9._~-` as `=3A`.

    A long name is cut and ends in a digest of all of it. `=s` occurs in no other name.
    """
    encoded = quote(model, safe="").replace("%", "=")
    if len(encoded) <= _MAX_MODEL_BYTES:
        return encoded
    return f"{encoded[:80]}=sha256.{hashlib.sha256(model.encode()).hexdigest()[:32]}"


def lane_of(queue: str) -> Lane:
    """The lane of a queue, be it the lane's own or a worker's."""
    return Lane(queue.split(".", 2)[1])
