"""An engine that is loaded by its first turn.

The quarantine worker hardly ever has one; until then it costs no memory for a model.
"""

from collections.abc import Callable, Iterator, Mapping
from threading import Lock

from turnmill.schemas.capabilities import Capabilities
from turnmill.schemas.errors import EngineAway, TurnmillError
from turnmill.schemas.turns import GenerationParams
from turnmill.workers.engines.base import Chunk, Engine, Prompt
from turnmill.workers.turn.abort import Abort


class LazyEngine:
    """Stands before the engine that `create` makes."""

    def __init__(self, create: Callable[[], Engine]) -> None:
        self._create = create
        self._engine: Engine | None = None
        self._has_failed = False
        self._lock = Lock()

    @property
    def capabilities(self) -> Capabilities:
        return self._started().capabilities

    @property
    def context_window(self) -> int:
        return self._started().context_window

    @property
    def held(self) -> Mapping[str, float]:
        return {} if self._engine is None else self._engine.held

    def start(self) -> None:
        """Nothing yet: `_started` does it."""

    def check(self) -> None:
        """Load the engine again if that failed for a turn; it stays unloaded while nobody asks."""
        if self._has_failed:
            self._started()
        if self._engine is not None:
            self._engine.check()

    def count_tokens(self, prompt: Prompt) -> int:
        return self._started().count_tokens(prompt)

    def generate(self, prompt: Prompt, params: GenerationParams, abort: Abort) -> Iterator[Chunk]:
        return self._started().generate(prompt, params, abort)

    def close(self) -> None:
        with self._lock:
            if self._engine is not None:
                self._engine.close()

    def _started(self) -> Engine:
        with self._lock:
            if self._engine is None:
                self._has_failed = True
                self._engine = self._loaded()
                self._has_failed = False
            return self._engine

    def _loaded(self) -> Engine:
        """Raise `EngineAway` for whatever prevents it: no turn is to blame."""
        try:
            engine = self._create()
            engine.start()
        except TurnmillError as error:
            raise EngineAway(error.message) from error
        return engine
