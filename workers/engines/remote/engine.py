"""What the engines that ask servers have in common: replicas of one model behind one pool."""

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import structlog

from turnmill.schemas.capabilities import Capabilities
from turnmill.schemas.errors import EngineUnavailable, SettingsError
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import GenerationParams
from turnmill.workers.engines.base import Chunk, Prompt
from turnmill.workers.engines.remote.replicas import Replica, ReplicaPool
from turnmill.workers.turn.abort import Abort

log = structlog.get_logger(__name__)

#: Of English, about; for balancing only.
CHARACTERS_PER_TOKEN = 4


class Server(Replica, Protocol):
    """A replica that also knows its model."""

    def context_window(self) -> int:
        """As `Engine.context_window`; raises `EngineUnavailable` like `generate`."""
        ...

    def count_tokens(self, prompt: Prompt) -> int:
        """As `Engine.count_tokens`; raises `EngineUnavailable` like `generate`."""
        ...

    def close(self) -> None:
        """Give connections back; turns that are still read end with `EngineUnavailable`."""
        ...


class RemoteEngine:
    """An engine around a function that makes a server of an endpoint's address."""

    capabilities = Capabilities(continues=True, remote=True)

    def __init__(
        self, settings: EngineSettings, connect: Callable[[str, EngineSettings], Server]
    ) -> None:
        self._settings = settings
        self._connect = connect
        self._servers: list[Server] = []
        self._pool: ReplicaPool[Server] | None = None
        self._context_window = 0

    @property
    def context_window(self) -> int:
        return self._context_window

    @property
    def held(self) -> Mapping[str, float]:
        return {"owed_tokens": self._running().owed_tokens}

    def start(self) -> None:
        settings = self._settings
        if not settings.endpoints:
            raise SettingsError(
                f"The engine '{settings.name}' asks servers. Say which: "
                """TURNMILL_ENGINE__ENDPOINTS='["http://host:port"]'."""
            )
        self._servers = [self._connect(url, settings) for url in settings.endpoint_urls]
        self._pool = ReplicaPool(
            self._servers,
            can_continue=self.capabilities.continues,
            check_every_s=settings.check_every_s,
        )
        try:
            self._pool.start()
            # Some servers say only now what they can.
            self._pool.can_continue = self.capabilities.continues
            limits = (settings.context_window, self._pool.call(lambda one: one.context_window()))
        except BaseException:
            self.close()
            raise
        self._context_window = min(limit for limit in limits if limit)
        log.info(
            "engine.started",
            engine=type(self).__name__,
            model=settings.model_at_endpoints,
            endpoints=[server.name for server in self._servers],
            context_window=self._context_window,
        )

    def check(self) -> None:
        self._running().check()

    def count_tokens(self, prompt: Prompt) -> int:
        return self._running().call(lambda server: server.count_tokens(prompt))

    def generate(self, prompt: Prompt, params: GenerationParams, abort: Abort) -> Iterator[Chunk]:
        tokens = sum(len(each.text) for each in prompt.messages) // CHARACTERS_PER_TOKEN
        return self._running().generate(prompt, params, abort, prompt_tokens=tokens)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
        for server in self._servers:
            server.close()
        self._pool, self._servers = None, []

    def _running(self) -> ReplicaPool[Server]:
        if self._pool is None:
            raise EngineUnavailable("The engine is not running.")
        return self._pool
