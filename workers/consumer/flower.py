"""Flower, with a password for all that it serves, and attempts for tasks.

Flower shows each attempt at a turn as a task, with the turn's id, lane and model. It never sees a
prompt or a reply, because no event carries one. It looks, and changes nothing, unless it may
cancel turns.
"""

import secrets
from collections.abc import Callable
from contextlib import closing, suppress
from typing import TYPE_CHECKING
from uuid import UUID

import structlog
from tornado.ioloop import PeriodicCallback

from turnmill.schemas.errors import DatabaseUnavailable, InvalidInput, SettingsError
from turnmill.schemas.ids import Prefix, show_id
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import FlowerSettings, Settings
from turnmill.schemas.store.fleet.deployment import read_deployment
from turnmill.workers.consumer.app import create_app
from turnmill.workers.consumer.attempt_tasks import read_ended, read_recent
from turnmill.workers.consumer.task_events import parse_task
from turnmill.workers.vendor.flower import (
    create_web,
    forget_dead,
    let_revoke,
    open_tasks,
    refuse_control,
    show_task,
)

if TYPE_CHECKING:
    from flower.app import Flower

log = structlog.get_logger()

#: Kept in Flower's memory, about 6 kB each; the tables have the rest.
MAX_TASKS = 20_000

#: How long Flower waits for the workers' answers, milliseconds.
INSPECT_TIMEOUT_MS = 2000.0

#: A worker that was not heard of for so long is no longer listed, seconds.
FORGOTTEN_AFTER_S = 3600

#: How often Flower looks what became of tasks that it takes for running.
LOOK_MS = 3000

COLUMNS = "uuid,kwargs,state,received,runtime,exception,worker"

REFUSAL = (
    "Flower cannot do this: Turnmill's workers take no orders over the broker. "
    "To stop a worker: turnmill workers drain ID. To pause a lane: turnmill lanes pause LANE. "
    "To cancel a turn: turnmill turns cancel ID, or start Flower with "
    "TURNMILL_FLOWER__CONTROL=true."
)

#: Cancels a turn, whoever's it is; False: it had ended.
Cancel = Callable[[Database, UUID], bool]


def run_flower(settings: Settings, cancel: Cancel) -> None:
    """Serve Flower until SIGTERM.

    Raises:
        SettingsError: no password is set, or it cannot listen there.
        DatabaseUnavailable: PostgreSQL, which has the queues' names and the history, cannot be
            reached.
    """
    login = _login(settings.flower)
    with closing(Database(settings.database)) as database:
        web = create_web(
            create_app(settings, read_deployment(database)),
            login,
            address=settings.flower.host,
            port=settings.flower.port,
            cookie_secret=secrets.token_hex(32),
            max_tasks=MAX_TASKS,
            inspect_timeout=INSPECT_TIMEOUT_MS,
            purge_offline_workers=FORGOTTEN_AFTER_S,
            tasks_columns=COLUMNS,
        )
        refuse_control(REFUSAL)
        if settings.flower.control:
            let_revoke(lambda name: _cancel(database, cancel, name))
        for attempt in read_recent(database, settings.flower.history):
            show_task(web, **attempt.task)
        _serve(web, settings.flower, database)


def _serve(web: "Flower", settings: FlowerSettings, database: Database) -> None:
    try:
        web.start_http_server()
    except OSError as error:
        raise SettingsError(
            f"Flower cannot listen on {settings.host}, port {settings.port}: "
            f"{error.strerror}. Set TURNMILL_FLOWER__HOST or TURNMILL_FLOWER__PORT."
        ) from None
    look = PeriodicCallback(lambda: _look(web, database), LOOK_MS)
    look.start()
    with suppress(KeyboardInterrupt, SystemExit):
        web.start()


async def _look(web: "Flower", database: Database) -> None:
    """Correct what Flower has heard by what PostgreSQL knows: workers die without an event."""
    forget_dead(web)
    names = open_tasks(web)
    try:
        ended = await web.io_loop.run_in_executor(None, read_ended, database, names)
    except DatabaseUnavailable as error:
        log.warning("flower.unchecked", error=error.message)
        return
    for attempt in ended:
        show_task(web, **attempt.task)


def _cancel(database: Database, cancel: Cancel, name: str) -> str:
    attempt = parse_task(name)
    if attempt is None:
        raise InvalidInput("This task is no attempt at a turn; only turns can be cancelled.")
    turn = show_id(Prefix.TURN, attempt[0])
    if cancel(database, attempt[0]):
        return f"Cancelled {turn}."
    raise InvalidInput(f"{turn} had already ended; nothing changed.")


def _login(settings: FlowerSettings) -> str:
    if not settings.password:
        raise SettingsError(
            "Flower needs a password: set TURNMILL_FLOWER__PASSWORD "
            "(its user is TURNMILL_FLOWER__USER, 'turnmill' by default)."
        )
    return f"{settings.user}:{settings.password.get_secret_value()}"
