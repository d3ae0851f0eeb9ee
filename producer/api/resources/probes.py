"""What the API's process answers on the port for metrics and probes, which is not the API's own."""

import asyncio
import math
import time
from collections.abc import Coroutine
from typing import TypeVar

from fastapi import FastAPI

from turnmill.producer.api.resources.metrics import APIMetrics, render_open
from turnmill.producer.api.resources.operation import READY_TIMEOUT_S, get_readiness
from turnmill.producer.api.services import Services
from turnmill.schemas.errors import TurnmillError
from turnmill.schemas.observability.telemetry import STUCK_AFTER_S, Health

T = TypeVar("T")


class ProbedAPI:
    """Asks the app, whose event loop is another thread's."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._loop: asyncio.AbstractEventLoop | None = None
        self._looped_at = math.inf
        self.health = Health(self._why_stuck, self._why_unready, self._more_metrics)

    def note_loop(self) -> None:
        """Note that the event loop comes round. In the loop only."""
        self._loop = asyncio.get_running_loop()
        self._looped_at = time.monotonic()

    def _why_stuck(self) -> str | None:
        if time.monotonic() - self._looped_at > STUCK_AFTER_S:
            return f"the event loop has not come round for {STUCK_AFTER_S:g} s"
        return None

    def _why_unready(self) -> str | None:
        if self._loop is None:
            return "starting"
        try:
            self._ask(get_readiness(self._services))
        except TurnmillError as error:
            return error.public_message
        except TimeoutError:
            return "the event loop does not answer"
        return None

    def _more_metrics(self) -> bytes:
        """Without a database, at least what this process counted itself."""
        metrics: APIMetrics = self._app.state.metrics
        own = metrics.render_own()
        if self._loop is None:
            return own
        try:
            return own + self._ask(self._services.lookout.call(render_open))
        except (TurnmillError, TimeoutError):
            return own

    @property
    def _services(self) -> Services:
        services: Services = self._app.state.services
        return services

    def _ask(self, question: Coroutine[object, object, T]) -> T:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(question, self._loop).result(READY_TIMEOUT_S + 1)
