"""Holds on Flower: its parts put together without its command, and with a password everywhere.

Flower's command also obeys Celery's command line, a flowerconfig.py in the current folder and
FLOWER_* variables. Flower compares passwords as text, which fails at letters beyond ASCII, and
leaves `/metrics` open. What it keeps of tasks and workers is filled here from outside, and what
its buttons do is replaced.
"""

import atexit
import signal
from base64 import b64decode
from collections.abc import Callable
from functools import cache
from hmac import compare_digest

from celery import Celery
from celery.events.state import TASK_EVENT_TO_STATE, Worker
from flower.api.control import TaskRevoke
from flower.app import Flower
from flower.command import extract_settings, setup_logging, sigterm_handler
from flower.inspector import Inspector
from flower.options import default_options as options
from flower.urls import handlers
from flower.urls import settings as web_settings
from flower.views import BaseHandler
from flower.views.monitor import Metrics
from flower.views.tasks import TaskView
from tornado.web import HTTPError, authenticated

from turnmill.schemas.errors import TurnmillError

READ_IN = {"flower": "2.2.0", "celery": "5.7.0"}
HOLDS = {
    "flower.command:flower": "50bd33359030",
    "flower.command:extract_settings": "89cbd6e9ec21",
    "flower.command:setup_logging": "87ec4492b5c4",
    "flower.command:sigterm_handler": "7befcdadbeef",
    "flower.views:BaseHandler.get_current_user": "5b34e0f7083b",
    "flower.views:BaseHandler.check_xsrf_cookie": "5a3d0d19abf5",
    "flower.views.monitor:Metrics": "896c432a8e9e",
    "flower.app:Flower.__init__": "0ca54a69bbbb",
    "flower.app:Flower.start_http_server": "8bf64701a3c2",
    "flower.events:EventsState": "c4c7a8324c81",
    "flower.inspector:Inspector.methods_to_inspect": "06f835fdfa15",
    "flower.views.tasks:TaskView": "978c5b0bfec5",
    "celery.events.state:Worker": "7beb2e936a6e",
    "celery.events.state:Task": "e67f936908bd",
}


def create_web(app: Celery, login: str, **chosen: object) -> Flower:
    """Make Flower's web application for one `user:password`, ended by SIGTERM. It only looks.

    `chosen`: Flower's options, by their names.
    """
    options.basic_auth = [login]
    options.read_only = True
    for name, value in chosen.items():
        setattr(options, name, value)
    extract_settings()
    setup_logging()
    BaseHandler.get_current_user = lambda handler: _require(handler, login.encode())
    Metrics.get = authenticated(Metrics.get)
    # Turnmill's workers refuse it, and would log that for each page.
    Inspector.inspect_methods = tuple(each for each in Inspector.inspect_methods if each != "conf")
    web = Flower(capp=app, options=options, **web_settings)
    atexit.register(web.stop)
    signal.signal(signal.SIGTERM, sigterm_handler)
    return web


def _require(handler: BaseHandler, login: bytes) -> bool:
    """Compare the login of a request as bytes. https://www.rfc-editor.org/rfc/rfc7617"""
    scheme, _, token = handler.request.headers.get("Authorization", "").partition(" ")
    try:
        given = b64decode(token)
    except ValueError:
        given = b""
    if scheme.lower() != "basic" or not compare_digest(given, login):
        raise HTTPError(401)
    return True


def refuse_control(sentence: str) -> None:
    """Let each call of Flower's API that changes something answer 403 with a sentence."""

    async def refuse(handler: BaseHandler, *_: str) -> None:
        raise HTTPError(403, "%s", sentence)

    for path, kind, *_ in (handler for handler in handlers if isinstance(handler, tuple)):
        if path.startswith("/api/") and "post" in vars(kind):
            kind.post = authenticated(refuse)


def let_revoke(revoke: Callable[[str], str]) -> None:
    """Show the buttons of a task that is not over, and let them call `revoke` with its name.

    `revoke` runs in a thread, and returns a sentence. What it raises of ours is answered with 409.
    """

    async def post(handler: BaseHandler, name: str) -> None:
        try:
            said = await handler.application.io_loop.run_in_executor(None, revoke, name)
        except TurnmillError as error:
            raise HTTPError(409, "%s", error.message) from None
        handler.write({"message": said})

    def render(view: TaskView, template: str, **values: object) -> None:
        BaseHandler.render(view, template, **values | {"read_only": False})

    TaskRevoke.post = authenticated(post)
    TaskView.render = render


def show_task(web: Flower, uuid: str, event: str, worker: str | None, **fields: object) -> None:
    """Put a task into what Flower shows, or change it there. In its loop's thread, or before.

    `event`: the last of Celery's events about it, such as `succeeded`. `fields`: of its `Task`.
    """
    state = web.events.state
    evicted = state._eviction_candidate(uuid)
    task, _ = state.get_or_create_task(uuid)
    vars(task).update(fields, state=TASK_EVENT_TO_STATE[event])
    if worker is not None:
        task.worker = _named(worker)
    state._index_task(task, evicted)


@cache
def _named(hostname: str) -> Worker:
    """A worker that tasks name. It is not among the workers that Flower has heard of."""
    return Worker(hostname)


def open_tasks(web: Flower) -> list[str]:
    """Name the tasks that have not ended, as far as Flower has heard."""
    return [task.uuid for _, task in web.events.state.itertasks() if not task.ready]


def forget_dead(web: Flower) -> None:
    """Show no task as active at workers that have not been heard of.

    Flower and its metrics keep what a worker that was killed has said last.
    """
    state = web.events.state
    for name, worker in list(state.workers.data.items()):
        is_dead = not worker.alive
        if is_dead and not getattr(worker, "is_known_dead", False):
            worker.active = 0
            state.metrics.worker_online.labels(name).set(0)
            state.metrics.worker_number_of_currently_executing_tasks.labels(name).set(0)
        worker.is_known_dead = is_dead
