"""What producers and workers must agree on about the broker: Celery's settings and the queues.

Each setting answers a measured failure; see docs/delivery.md.
"""

from collections.abc import Iterable
from uuid import UUID

from kombu import Queue

from turnmill.schemas.errors import SettingsError
from turnmill.schemas.process.surroundings import refuse_foreign_settings
from turnmill.schemas.routes import old_queue_name, own_queue_name, queue_name
from turnmill.schemas.settings import BrokerSettings, Settings, WorkerSettings
from turnmill.schemas.turns import Lane

#: Hints are dropped from a queue after so many deliveries; the rescuer publishes them anew.
#: High, because with many turns in one process one poison turn re-delivers its neighbours.
DELIVERY_LIMIT = 100

#: A worker's own queue goes when nobody has consumed it for so long.
OWN_QUEUE_EXPIRES_S = 60


def celery_settings(broker: BrokerSettings) -> dict[str, object]:
    """Celery's configuration, as far as both sides share it. Raises `SettingsError`."""
    refuse_foreign_settings()
    shared: dict[str, object] = {
        "broker_url": broker.url.get_secret_value(),
        "broker_connection_timeout": 3,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "task_ignore_result": True,
        "task_create_missing_queues": False,
        "task_serializer": "json",
        "accept_content": ["json"],
        "enable_utc": True,
    }
    if broker.is_amqp:
        return shared | {
            "broker_failover_strategy": "round-robin",
            "broker_heartbeat": broker.heartbeat_s,
            "task_default_queue_type": "quorum",
        }
    return shared | {
        "broker_transport_options": _sentinel_options(broker)
        | {
            "visibility_timeout": broker.visibility_timeout_s,
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
            "socket_timeout": 4,
            "socket_connect_timeout": 3,
            "socket_keepalive": True,
            "health_check_interval": 4,
        }
    }


def _sentinel_options(broker: BrokerSettings) -> dict[str, object]:
    if not broker.is_sentinel:
        return {}
    options: dict[str, object] = {"master_name": broker.sentinel_primary}
    if broker.sentinel_password is not None:
        options["sentinel_kwargs"] = {"password": broker.sentinel_password.get_secret_value()}
    return options


def hint_queues(
    broker: BrokerSettings, lanes: Iterable[Lane], model: str, deployment: str
) -> list[Queue]:
    """The queues of a model's lanes."""
    return [hint_queue(broker, lane, model, deployment) for lane in lanes]


def hint_queue(broker: BrokerSettings, lane: str, model: str, deployment: str) -> Queue:
    """One queue of hints, declared alike by whoever comes first.

    That of a channel's deliveries has the channel's name as `model`.
    """
    return _quorum(broker, queue_name(lane, model, deployment))


def old_queues(broker: BrokerSettings, lanes: Iterable[Lane], model: str) -> list[Queue]:
    """The queues that relays of the previous release publish to.

    They may hold hints of other models and deployments, which no claim accepts.
    """
    return [_quorum(broker, old_queue_name(lane, model)) for lane in lanes]


def own_queues(settings: Settings, deployment: str, worker_id: UUID) -> list[Queue]:
    """The queues of one worker, which it declares; their hints are its lanes' when it is late.

    Late hints are published anew in any case: RabbitMQ knows nothing of those that it has
    delivered to a worker that is paused, and Redis has nothing of the kind.
    """
    model, lanes = settings.engine.model_name, own_lanes(settings)
    return [
        _quorum(
            settings.broker,
            own_queue_name(lane, model, deployment, worker_id),
            {
                "x-message-ttl": settings.affinity.ttl_ms,
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": queue_name(lane, model, deployment),
                "x-expires": OWN_QUEUE_EXPIRES_S * 1000,
            },
        )
        for lane in lanes
    ]


def own_lanes(settings: Settings) -> list[Lane]:
    """The lanes for which a worker has a queue of its own."""
    return [lane for lane in settings.worker.lanes if lane in settings.affinity.warm_lanes]


def _quorum(broker: BrokerSettings, name: str, more: dict[str, object] | None = None) -> Queue:
    arguments = {"x-queue-type": "quorum", "x-delivery-limit": DELIVERY_LIMIT, **(more or {})}
    return Queue(name, routing_key=name, queue_arguments=arguments if broker.is_amqp else None)


def longest_hold_s(worker: WorkerSettings) -> float:
    """How long a worker may keep a hint: the longest turn, and then the drain."""
    return worker.turn_timeout_s + worker.drain_s


def refuse_early_redelivery(settings: Settings) -> None:
    """Raises `SettingsError` if Redis would give out a turn again while it runs."""
    broker, needed_s = settings.broker, longest_hold_s(settings.worker)
    if not broker.is_amqp and broker.visibility_timeout_s <= needed_s:
        raise SettingsError(
            f"TURNMILL_BROKER__VISIBILITY_TIMEOUT_S is {broker.visibility_timeout_s} s, but the "
            f"longest turn and the drain take {needed_s:g} s (TURNMILL_WORKER__TURN_TIMEOUT_S and "
            "TURNMILL_WORKER__DRAIN_S): hints would be given out again while their turns run. "
            f"Set it to {int(needed_s) + 60} or more."
        )
