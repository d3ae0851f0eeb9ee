"""Commands that run one process of the system each: `api`, `relay`, `worker`, `deliver`, …"""

import os
import signal
from contextlib import closing
from typing import Annotated

import typer

from turnmill.schemas.errors import SettingsError
from turnmill.schemas.observability.logs import configure_logging
from turnmill.schemas.process.surroundings import refuse_unusable_network
from turnmill.schemas.settings import Settings, load_settings
from turnmill.schemas.turns import Lane

db = typer.Typer(help="The database schema.", no_args_is_help=True)


def add_commands(app: typer.Typer) -> None:
    app.command()(api)
    app.command()(relay)
    app.command()(worker)
    app.command()(deliver)
    app.command()(socket)
    app.command()(flower)


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

    serve(_start_on_database())


def relay() -> None:
    """Run the relay, which publishes hints to the broker. Several may run."""
    from turnmill.producer.relay.process import Relay
    from turnmill.schemas.observability.telemetry import telemetry

    settings = _start_on_database()
    running = Relay(settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: running.stop())
    with telemetry(settings, "relay", running.health):
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
) -> None:
    """Run a worker: load the model, then answer turns.

    Example: turnmill worker --lane quarantine --concurrency 1

    Example of primary and standby, on two machines: turnmill worker --standby
    """
    from turnmill.workers.consumer.main import run_worker

    settings = _start_on_database()
    refuse_unusable_network(settings.engine.endpoint_urls)
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
    from turnmill.schemas.channels.sections import SlackSection
    from turnmill.schemas.observability.telemetry import telemetry

    settings = _start_on_database()
    section = find_channel(settings.config_path, name)
    if not isinstance(section, SlackSection):
        raise SettingsError(f"channels.{name} is not Slack; only Slack has socket mode.")
    with needing("slack"):
        from turnmill.producer.channels.slack.socket_mode import SocketMode
    running = SocketMode(settings, name, section)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: running.stop())
    with telemetry(settings, "socket", running.health, channel=name):
        running.run()


def flower() -> None:
    """Run Flower, which shows every hint as a task. It asks for the password you set."""
    from turnmill.workers.consumer.flower import run_flower

    run_flower(_start())


@db.command()
def upgrade() -> None:
    """Create the tables, or bring them up to date. Safe to run twice, or on many machines.

    A database that cannot carry Turnmill is refused.
    """
    from turnmill.infra.migrations import upgrade as upgrade_database
    from turnmill.producer.tenants import ensure_defaults
    from turnmill.schemas.postgres.database import Database
    from turnmill.schemas.postgres.suitability import refuse_unsuitable

    settings = _start()
    with closing(Database(settings.database)) as database:
        refuse_unsuitable(database)
        upgrade_database(settings.database.session_url.get_secret_value())
        ensure_defaults(database, settings)
