"""RabbitMQ: confirms, quorum queues as we declare them, time enough for the longest turn."""

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from amqp import Message
from amqp.exceptions import NotFound, PreconditionFailed
from kombu import Queue

from turnmill.producer.doctor.broker import PUBLISHING, Target
from turnmill.producer.doctor.findings import Check, Finding, broken, note, warning
from turnmill.schemas.broker import longest_hold_s
from turnmill.schemas.errors import BrokerUnavailable
from turnmill.schemas.observability.management import PORTS, Refused, manage
from turnmill.schemas.settings import BrokerSettings

#: RabbitMQ's own, since 3.8.17.
DEFAULT_CONSUMER_TIMEOUT_S = 1800

#: How long a confirm may take: milliseconds, where no alarm holds it back.
CONFIRM_S = 3
#: No queue is called so.
_PROBE = "turnmill.doctor"


def _confirms(target: Target) -> Iterator[Finding]:
    return confirms(target.connection.connection.server_properties)


def confirms(properties: Mapping[str, Any]) -> Iterator[Finding]:
    """What a broker that introduced itself so can promise about what was published."""
    if not properties.get("capabilities", {}).get("publisher_confirms"):
        product = properties.get("product", "it")
        yield broken(
            f"{product} has no publisher confirms: its death loses hints that count as published",
            "use RabbitMQ, or Redis or Valkey",
        )


def _writes(target: Target) -> Iterator[Finding]:
    """Publishes what no queue takes, which RabbitMQ confirms at once.

    On a connection of its own, and twice: during an alarm RabbitMQ takes the first message of a
    connection, and reads nothing of it from then on.
    """
    connection = target.connection.clone()
    try:
        channel = connection.channel()
        channel.confirm_select()
        for _ in range(2):
            channel.basic_publish_confirm(
                Message(""), "", _PROBE, timeout=CONFIRM_S, confirm_timeout=CONFIRM_S
            )
    except (OSError, *connection.connection_errors, *connection.channel_errors) as error:
        # Nothing would answer its end either.
        connection.collect(socket_timeout=1)
        yield broken(
            f"no hint can be published, none is confirmed: {type(error).__name__}: {error}",
            "rabbitmq-diagnostics alarms: free memory or disk there; turns are accepted and kept "
            "meanwhile",
        )
    else:
        connection.release()


def _queues(target: Target) -> Iterator[Finding]:
    for queue in target.queues.values():
        reason = _difference(target, queue)
        if reason:
            yield broken(
                f"{queue.name} is not the quorum queue that relay and workers declare: {reason}",
                f"rabbitmqctl delete_queue {queue.name} (its hints are published again)",
            )


def _difference(target: Target, queue: Queue) -> str | None:
    """Why RabbitMQ refuses our declaration of a queue that exists; declares no new one."""
    # A refusal closes its channel.
    channel = target.connection.channel()
    bound = queue(channel)
    try:
        bound.queue_declare(passive=True)
        bound.queue_declare()
    except NotFound:
        return None
    except PreconditionFailed as error:
        return str(error.reply_text or error)
    channel.close()
    return None


def _cluster(target: Target) -> Iterator[Finding]:
    nodes = _ask(target, "nodes")
    if nodes is None:
        yield note(*_unasked("replicas"))
        return
    for node in nodes:
        for alarm in ("mem_alarm", "disk_free_alarm"):
            if node.get(alarm):
                yield broken(
                    f"{node['name']} has raised its {alarm}: no hint can be published",
                    "free memory or disk there; turns are accepted and kept meanwhile",
                )
    for queue in _described(target) if len(nodes) > 1 else []:
        if len(queue.get("members", [])) < min(len(nodes), 3):
            yield warning(
                f"{queue['name']} has {len(queue.get('members', []))} replica in a cluster of "
                f"{len(nodes)}: its node takes it along",
                f"rabbitmq-queues grow <node> all --queue-pattern '{queue['name']}'",
            )


def _consumer_timeout(target: Target) -> Iterator[Finding]:
    needed_s = longest_hold_s(target.settings.worker)
    fix = (
        f"consumer_timeout = {int(needed_s + 60) * 1000} in rabbitmq.conf (milliseconds), "
        "or a shorter TURNMILL_WORKER__TURN_TIMEOUT_S"
    )
    known = [limit for queue in _described(target) for limit in _limits_s(queue)]
    if known and min(known) < needed_s:
        yield broken(
            f"{min(known):g} s, but the longest turn and the drain take {needed_s:g} s: "
            "RabbitMQ takes running turns away and gives them out again", fix,
        )  # fmt: skip
    elif not known and needed_s > DEFAULT_CONSUMER_TIMEOUT_S:
        yield warning(
            f"the longest turn and the drain take {needed_s:g} s, RabbitMQ's default is "
            f"{DEFAULT_CONSUMER_TIMEOUT_S} s; what is set cannot be asked for", fix,
        )  # fmt: skip
    elif not known:
        yield note(
            f"must exceed {needed_s:g} s; the default ({DEFAULT_CONSUMER_TIMEOUT_S} s) does, "
            "what rabbitmq.conf says cannot be asked for",
            "rabbitmqctl eval 'application:get_env(rabbit, consumer_timeout).' (milliseconds)",
        )


def _limits_s(queue: Mapping[str, Any]) -> Iterator[float]:
    argument = queue.get("arguments", {}).get("x-consumer-timeout")
    policy = (queue.get("effective_policy_definition") or {}).get("consumer-timeout")
    yield from (limit / 1000 for limit in (argument, policy) if limit)


def _described(target: Target) -> list[Mapping[str, Any]]:
    """Those of our queues that exist, as the management API describes them."""
    vhost = quote(target.connection.virtual_host, safe="")
    found = (
        _ask(target, f"queues/{vhost}/{quote(queue.name)}") for queue in target.queues.values()
    )
    return [queue for queue in found if queue is not None]


def _unasked(what: str) -> tuple[str, str]:
    return (
        f"the management API does not answer, so {what} and alarms were not looked at",
        "set TURNMILL_BROKER__MANAGEMENT_URL, or look: rabbitmqctl list_queues name type members",
    )


def _ask(target: Target, path: str) -> Any:
    """What the management API answers; None when it does not, or not to us."""
    try:
        return manage(management_url(target.settings.broker), "GET", path, timeout_s=3)
    except (BrokerUnavailable, Refused):
        return None


def management_url(broker: BrokerSettings) -> str:
    """The one that is set, or where RabbitMQ has it, with the broker's login."""
    first = urlsplit(broker.url.get_secret_value().split(";")[0])
    login, _, _ = first.netloc.rpartition("@")
    if broker.management_url:
        url = broker.management_url.get_secret_value()
        scheme, _, rest = url.partition("://")
        return url if "@" in rest else f"{scheme}://{login}@{rest}"
    scheme = "https" if first.scheme == "amqps" else "http"
    return f"{scheme}://{login}@{first.hostname}:{PORTS[first.scheme]}"


CHECKS: dict[str, Check[Target]] = {
    "publisher confirms": _confirms,
    PUBLISHING: _writes,
    "queues": _queues,
    "cluster": _cluster,
    "consumer timeout": _consumer_timeout,
}
