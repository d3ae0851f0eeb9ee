"""Flower, with its doors closed: a password everywhere, its metrics included.

Flower shows every hint as a task, with the turn's id, lane and model. It never sees a
prompt or a reply, because no hint carries one.
"""

import os
import secrets

from flower.views.monitor import Metrics
from tornado.web import authenticated

from turnmill.schemas.errors import SettingsError
from turnmill.schemas.settings import Settings
from turnmill.workers.app import create_app

#: Kept in Flower's memory, about 6 kB each; the tables have the rest.
MAX_TASKS = 20_000


def run_flower(settings: Settings) -> None:
    """Serve Flower until SIGTERM.

    Raises:
        SettingsError: no password is set.
    """
    flower = settings.flower
    if not flower.password:
        raise SettingsError(
            "Flower needs a password: set TURNMILL_FLOWER__PASSWORD "
            "(its user is TURNMILL_FLOWER__USER, 'turnmill' by default)."
        )
    # Flower leaves /metrics open even with a password.
    Metrics.get = authenticated(Metrics.get)
    # Not as arguments: those are for everybody to read in the process list.
    os.environ["FLOWER_BASIC_AUTH"] = f"{flower.user}:{flower.password}"
    os.environ["FLOWER_COOKIE_SECRET"] = secrets.token_hex(32)
    app = create_app(settings)
    app.start(
        [
            "--quiet",
            "flower",
            f"--address={flower.host}",
            f"--port={flower.port}",
            f"--max_tasks={MAX_TASKS}",
            "--inspect_timeout=2000",
        ]
    )
