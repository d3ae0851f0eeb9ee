"""An engine around another one."""

from collections.abc import Iterator, Mapping

from turnmill.schemas.capabilities import Capabilities
from turnmill.schemas.turns import GenerationParams
from turnmill.workers.engines.base import Chunk, Engine, Prompt
from turnmill.workers.turn.abort import Abort

#: Texts of one turn's prompts that are not examined again.
REMEMBERED_TEXTS = 2048


class WrappedEngine(Engine):
    """Does what the engine inside does, with another prompt."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def capabilities(self) -> Capabilities:
        return self._engine.capabilities

    @property
    def context_window(self) -> int:
        return self._engine.context_window

    @property
    def held(self) -> Mapping[str, float]:
        return self._engine.held

    def start(self) -> None:
        self._engine.start()

    def check(self) -> None:
        self._engine.check()

    def changed(self, prompt: Prompt) -> Prompt:
        """Return the prompt as the engine inside may read it."""
        return prompt

    def count_tokens(self, prompt: Prompt) -> int:
        return self._engine.count_tokens(self.changed(prompt))

    def generate(self, prompt: Prompt, params: GenerationParams, abort: Abort) -> Iterator[Chunk]:
        return self._engine.generate(self.changed(prompt), params, abort)

    def close(self) -> None:
        self._engine.close()
