"""Commands that run one process of the system each: `api`, `relay`, `worker`, `deliver`, …"""

import os
from typing import Annotated

import typer
from rich.console import Console

from turnmill.producer.cli.stack import ModelOption, choose_model
from turnmill.producer.cli.views.checked import check_engine
from turnmill.schemas.errors import SettingsError
from turnmill.schemas.observability.logs import configure_logging
from turnmill.schemas.process.ending import stop_on_signals
from turnmill.schemas.process.garbage import spare_loaded
from turnmill.schemas.process.network import (
    refuse_unusable_for_api,
    refuse_unusable_for_deliveries,
    refuse_unusable_for_slack,
    refuse_unusable_for_workers,
)
from turnmill.schemas.settings import Settings, load_settings
from turnmill.schemas.turns import Lane


def _start() -> Settings:
    settings = load_settings()
    configure_logging(settings.log)
    return settings


def _start_on_database() -> Settings:
    from turnmill.schemas.postgres.suitability import refuse_to_start_on_unsuitable

    settings = _start()
    refuse_to_start_on_unsuitable(settings.database)
    return settings


def api() -> None:
    """Run the HTTP API.

    Example: TURNMILL_API__PORT=8080 turnmill api
    """
    from turnmill.producer.api.app import serve

    settings = _start_on_database()
    refuse_unusable_for_api(settings)
    serve(settings)


def relay() -> None:
    """Run the relay, which publishes hints to the broker. Several may run.

    Example: TURNMILL_BROKER__URL=redis://127.0.0.1:6379/0 turnmill relay
    """
    from turnmill.producer.relay.process import Relay
    from turnmill.schemas.observability.telemetry import telemetry

    settings = _start_on_database()
    running = Relay(settings)
    stop_on_signals(running.stop)
    with telemetry(settings, "relay", running.health):
        spare_loaded()
        running.run()


def worker(
    lane: Annotated[
        list[Lane] | None,
        typer.Option(help="Consume this lane (repeatable). Default: interactive and batch."),
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(help="Turns that run at once, of each lane.")
    ] = None,
    standby: Annotated[
        bool, typer.Option("--standby", help="Consume only when no other live worker does.")
    ] = False,
    model: ModelOption = None,
) -> None:
    """Run a worker: load the model, then answer turns.

    Example: turnmill worker --lane quarantine --concurrency 1

    Example of primary and standby, on two machines: turnmill worker --standby
    """
    from turnmill.workers.consumer.main import run_worker

    choose_model(model)
    check_engine(load_settings(), Console(stderr=True))
    settings = _start_on_database()
    refuse_unusable_for_workers(settings)
    changes = {
        "lanes": tuple(lane) if lane else None,
        "concurrency": concurrency,
        "mode": "standby" if standby else None,
    }
    given = {name: value for name, value in changes.items() if value is not None}
    chosen = settings.model_copy(update={"worker": settings.worker.model_copy(update=given)})
    # Everything is closed by then; Python's own shutdown could outlast the drain's deadline.
    os._exit(run_worker(chosen))


def deliver() -> None:
    """Run a delivery worker, which brings replies to the channels of turnmill.toml.

    Example: TURNMILL_CONFIG=turnmill.toml turnmill deliver
    """
    from turnmill.workers.delivery.process import run_delivery_worker

    settings = _start_on_database()
    refuse_unusable_for_deliveries(settings)
    # As for a worker: Python's own shutdown could outlast the drain's deadline.
    os._exit(run_delivery_worker(settings))


def socket(
    name: Annotated[str, typer.Argument(help="A Slack channel of turnmill.toml.")],
) -> None:
    """Receive a Slack channel's events over a connection to Slack, without a public address.

    Example: turnmill socket acme-slack
    """
    from turnmill.producer.cli.extras import needing
    from turnmill.schemas.channels.configuration import find_channel
    from turnmill.schemas.channels.sections.slack import SlackSection
    from turnmill.schemas.observability.telemetry import telemetry

    settings = _start_on_database()
    section = find_channel(settings.config_path, name)
    if not isinstance(section, SlackSection):
        raise SettingsError(f"channels.{name} is not Slack; only Slack has socket mode.")
    refuse_unusable_for_slack(section.api_url)
    with needing("slack"):
        from turnmill.producer.channels.slack.socket_mode import SocketMode
    running = SocketMode(settings, name, section)
    stop_on_signals(running.stop)
    with telemetry(settings, "socket", running.health, channel=name):
        running.run()


def flower() -> None:
    """Run Flower, which shows each attempt at a turn as a task. It asks for the password you set.

    It only looks; TURNMILL_FLOWER__CONTROL=true lets it cancel turns.

    Example: TURNMILL_FLOWER__PASSWORD=secret turnmill flower
    """
    from turnmill.producer.cancel import cancel_anybodys
    from turnmill.workers.consumer.flower import run_flower

    run_flower(_start(), cancel_anybodys)
