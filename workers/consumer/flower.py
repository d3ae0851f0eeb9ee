"""Flower, with its doors closed: a password everywhere, its metrics included.

Flower shows every hint as a task, with the turn's id, lane and model. It never sees a
prompt or a reply, because no hint carries one.

Its parts are put together here and not by its command, which also obeys Celery's command line,
a flowerconfig.py in the current folder and FLOWER_* variables (read in Flower 2.0 to 2.2).
"""

import atexit
import secrets
import signal
from base64 import b64decode
from contextlib import closing, suppress
from hmac import compare_digest
from typing import Any

from flower.app import Flower
from flower.command import extract_settings, setup_logging, sigterm_handler
from flower.options import default_options as options
from flower.urls import settings as web_settings
from flower.views import BaseHandler
from flower.views.monitor import Metrics
from tornado.web import HTTPError, authenticated

from turnmill.schemas.errors import SettingsError
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import FlowerSettings, Settings
from turnmill.schemas.store.deployment import read_deployment
from turnmill.workers.consumer.app import create_app

#: Kept in Flower's memory, about 6 kB each; the tables have the rest.
MAX_TASKS = 20_000


def run_flower(settings: Settings) -> None:
    """Serve Flower until SIGTERM.

    Raises:
        SettingsError: no password is set, or it cannot listen there.
        DatabaseUnavailable: PostgreSQL, which knows the queues' names, cannot be reached.
    """
    _configure(settings.flower)
    with closing(Database(settings.database)) as database:
        app = create_app(settings, read_deployment(database))
    web = Flower(capp=app, options=options, **web_settings)
    atexit.register(web.stop)
    signal.signal(signal.SIGTERM, sigterm_handler)
    try:
        web.start_http_server()
    except OSError as error:
        raise SettingsError(
            f"Flower cannot listen on {settings.flower.host}, port {settings.flower.port}: "
            f"{error.strerror}. Set TURNMILL_FLOWER__HOST or TURNMILL_FLOWER__PORT."
        ) from None
    with suppress(KeyboardInterrupt, SystemExit):
        web.start()


def _configure(settings: FlowerSettings) -> None:
    if not settings.password:
        raise SettingsError(
            "Flower needs a password: set TURNMILL_FLOWER__PASSWORD "
            "(its user is TURNMILL_FLOWER__USER, 'turnmill' by default)."
        )
    login = f"{settings.user}:{settings.password.get_secret_value()}"
    options.address, options.port = settings.host, settings.port
    options.basic_auth = [login]
    options.cookie_secret = secrets.token_hex(32)
    options.max_tasks = MAX_TASKS
    options.inspect_timeout = 2000.0
    extract_settings()
    setup_logging()
    BaseHandler.get_current_user = lambda handler: _require(handler, login.encode())
    # Flower leaves /metrics open even with a password.
    Metrics.get = authenticated(Metrics.get)


def _require(handler: Any, login: bytes) -> bool:
    """Compare bytes: Flower compares texts, and fails at letters beyond ASCII.

    https://www.rfc-editor.org/rfc/rfc7617
    """
    scheme, _, token = handler.request.headers.get("Authorization", "").partition(" ")
    try:
        given = b64decode(token)
    except ValueError:
        given = b""
    if scheme.lower() != "basic" or not compare_digest(given, login):
        raise HTTPError(401)
    return True
