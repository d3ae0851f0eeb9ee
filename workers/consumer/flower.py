"""Flower, with a password for all that it serves.

Flower shows every hint as a task, with the turn's id, lane and model. It never sees a
prompt or a reply, because no hint carries one.
"""

import secrets
from contextlib import closing, suppress

from turnmill.schemas.errors import SettingsError
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import FlowerSettings, Settings
from turnmill.schemas.store.fleet.deployment import read_deployment
from turnmill.workers.consumer.app import create_app
from turnmill.workers.vendor.flower import create_web

#: Kept in Flower's memory, about 6 kB each; the tables have the rest.
MAX_TASKS = 20_000

#: How long Flower waits for the workers' answers, milliseconds.
INSPECT_TIMEOUT_MS = 2000.0


def run_flower(settings: Settings) -> None:
    """Serve Flower until SIGTERM.

    Raises:
        SettingsError: no password is set, or it cannot listen there.
        DatabaseUnavailable: PostgreSQL, which knows the queues' names, cannot be reached.
    """
    login = _login(settings.flower)
    with closing(Database(settings.database)) as database:
        app = create_app(settings, read_deployment(database))
    web = create_web(
        app,
        login,
        address=settings.flower.host,
        port=settings.flower.port,
        cookie_secret=secrets.token_hex(32),
        max_tasks=MAX_TASKS,
        inspect_timeout=INSPECT_TIMEOUT_MS,
    )
    try:
        web.start_http_server()
    except OSError as error:
        raise SettingsError(
            f"Flower cannot listen on {settings.flower.host}, port {settings.flower.port}: "
            f"{error.strerror}. Set TURNMILL_FLOWER__HOST or TURNMILL_FLOWER__PORT."
        ) from None
    with suppress(KeyboardInterrupt, SystemExit):
        web.start()


def _login(settings: FlowerSettings) -> str:
    if not settings.password:
        raise SettingsError(
            "Flower needs a password: set TURNMILL_FLOWER__PASSWORD "
            "(its user is TURNMILL_FLOWER__USER, 'turnmill' by default)."
        )
    return f"{settings.user}:{settings.password.get_secret_value()}"
