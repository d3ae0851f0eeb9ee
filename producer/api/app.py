"""The HTTP API as an app, and the process that serves it.

`create_app` needs no database: an API that starts before Postgres answers 503 until it is
there. On SIGTERM or SIGINT open calls end at once and politely: each tells its client where
the reply will be.
"""

import asyncio
import contextlib
import errno
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from functools import partial
from types import FrameType

import structlog
import uvicorn
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from pydantic.json_schema import models_json_schema
from starlette.middleware.cors import CORSMiddleware

from turnmill.producer.api.auth import KnownKeys
from turnmill.producer.api.errors import CONVERSATION_HEADER, TURN_HEADER, add_error_handlers
from turnmill.producer.api.middleware import REQUEST_ID_HEADER, ObservedCalls
from turnmill.producer.api.rating import router as rating
from turnmill.producer.api.resources import (
    bots,
    channels,
    completions,
    conversations,
    deliveries,
    files,
    models,
    operation,
    parked,
    turns,
    users,
    vector_stores,
    welcome,
)
from turnmill.producer.api.resources.audio import transcriptions
from turnmill.producer.api.resources.metrics import APIMetrics
from turnmill.producer.api.resources.probes import ProbedAPI
from turnmill.producer.api.server.connections import Connection, Crowd
from turnmill.producer.api.server.file_limit import (
    accept_backlog,
    connection_capacity,
    deepen_backlog,
    raise_file_limit,
)
from turnmill.producer.api.server.rare_log import RareLog
from turnmill.producer.api.services import Services, running_services
from turnmill.producer.channels.bots import save_bots
from turnmill.producer.channels.registry import create_pipelines
from turnmill.schemas.channels.configuration import Configuration, load_configuration
from turnmill.schemas.errors import SettingsError, TransientError, TurnmillError
from turnmill.schemas.files.opening import open_storage
from turnmill.schemas.observability.telemetry import telemetry
from turnmill.schemas.openai import ChatCompletionRequest, ErrorBody
from turnmill.schemas.process.garbage import spare_loaded
from turnmill.schemas.settings import Settings

#: Calls that have not ended by then are cut off.
STOP_TIMEOUT_S = 4

#: Seconds between tries to save the configured bots while the database is away.
SAVE_BOTS_EVERY_S = 1.0

_OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

_DESCRIPTION = """
Turnmill answers dialogue turns through a message queue. `/v1` speaks OpenAI's protocol: point
its client here. A turn that was accepted is answered exactly once, whatever happens to the
call that brought it; look at it, or cancel it, under `/turns`.
"""

log = structlog.get_logger()


def create_app(settings: Settings) -> FastAPI:
    """The API. Its database and follower live from the app's startup to its shutdown.

    Raises:
        SettingsError: the file with bots and channels is wrong, or a secret of a channel missing,
            or the storage of files lacks a setting or its library.
    """
    configuration = load_configuration(settings.config_path)
    storage = open_storage(settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with running_services(settings, storage) as services:
            app.state.services = services
            saving = asyncio.create_task(_save_bots(services, configuration))
            yield
            saving.cancel()

    app = FastAPIOffline(
        title="Turnmill",
        description=_DESCRIPTION,
        version="1",
        lifespan=lifespan,
        redoc_url=None,
        static_url="/docs/static",
        favicon_url="data:,",
        responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}},
    )
    app.state.known_keys = KnownKeys()
    app.state.metrics = APIMetrics()
    app.state.channels = {each.name: each for each in create_pipelines(configuration)}
    app.add_middleware(ObservedCalls, metrics=app.state.metrics)
    _allow_origins(app, settings.api.cors_origins)
    add_error_handlers(app)
    for part in (
        completions,
        models,
        bots,
        turns,
        conversations,
        files,
        transcriptions,
        vector_stores,
        users,
        parked,
        channels,
        deliveries,
        operation,
        welcome,
        rating,
    ):
        app.include_router(part.router)
    _describe(app)
    return app


async def _save_bots(services: Services, configuration: Configuration) -> None:
    """Save the configured bots as soon as there is a database."""
    while configuration.bots:
        try:
            await services.call(save_bots, services.database, services.settings, configuration)
            return
        except TransientError:
            await asyncio.sleep(SAVE_BOTS_EVERY_S)
        except TurnmillError as error:
            log.error("bots.not_saved", code=error.code, reason=error.public_message)
            return


def _allow_origins(app: FastAPI, origins: Sequence[str]) -> None:
    """Let web pages of these origins call the API. Outermost, so that they can read every error."""
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["*"],
            expose_headers=[
                TURN_HEADER,
                CONVERSATION_HEADER,
                REQUEST_ID_HEADER,
                "Location",
                "Retry-After",
                "x-should-retry",
            ],
        )


def serve(settings: Settings) -> None:
    """Run the API until SIGTERM or SIGINT. Raises `SettingsError`: it cannot listen there."""
    raise_file_limit()
    server = Server(settings)
    with telemetry(settings, "api", server.health):
        spare_loaded()
        server.run()


class Server(uvicorn.Server):
    """Uvicorn, for the app of these settings."""

    def __init__(self, settings: Settings) -> None:
        self._app = create_app(settings)
        self._crowd = Crowd(settings.api, connection_capacity(settings), self._app.state.metrics)
        self._accept_failures = RareLog("api.accept_failed")
        self._probed = ProbedAPI(self._app)
        self.health = self._probed.health
        config = uvicorn.Config(
            self._app,
            host=settings.api.host,
            port=settings.api.port,
            lifespan="on",
            # Left to themselves, uvicorn's choices depend on what else is installed and on
            # variables of the environment.
            http=partial(Connection, crowd=self._crowd),  # type: ignore[arg-type]
            ws="none",
            loop="asyncio",
            workers=1,
            forwarded_allow_ips="127.0.0.1",
            backlog=accept_backlog(),
            # The command has configured logging; each call is logged by the app itself.
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=settings.api.idle_timeout_s,
            timeout_graceful_shutdown=STOP_TIMEOUT_S,
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(self._note_loop_error)
        try:
            await super().startup(sockets)
        except SystemExit:
            # uvicorn's way to say that it may not listen there; it has logged why.
            api = self.config
            raise SettingsError(
                f"The API cannot listen on {api.host}, port {api.port}. Does another process have "
                "the port? Set TURNMILL_API__HOST or TURNMILL_API__PORT."
            ) from None
        if self.started:
            for server in self.servers:
                deepen_backlog(server.sockets)
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            log.info("api.started", host=host, port=port, max_connections=self._crowd.capacity)

    async def on_tick(self, counter: int) -> bool:
        self._probed.note_loop()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        services: Services = self._app.state.services
        services.stop()
        await super().shutdown(sockets)
        log.info("api.stopped")

    def _note_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """Without files or memory asyncio reports each connection of the backlog, every second."""
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in _OUT_OF_RESOURCES:
            self._accept_failures.note(errno.errorcode[error.errno])
        else:
            loop.default_exception_handler(context)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Unlike uvicorn's, does not raise the signal again at the end: a stop is no failure."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def _describe(app: FastAPI) -> None:
    """Complete the description: the one body that the app reads itself, and no 422, which
    it never answers."""
    generate = app.openapi

    def openapi() -> dict[str, object]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        schema = generate()
        _, bodies = models_json_schema(
            [(ChatCompletionRequest, "validation")], ref_template="#/components/schemas/{model}"
        )
        schemas = schema["components"]["schemas"]
        schemas |= bodies["$defs"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        for path in schema["paths"].values():
            for operation_ in path.values():
                operation_["responses"].pop("422", None)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
