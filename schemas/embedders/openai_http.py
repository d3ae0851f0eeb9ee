"""Embedders behind OpenAI's `/v1/embeddings`: vLLM, Ollama, text-embeddings-inference and others.

https://platform.openai.com/docs/api-reference/embeddings
"""

from collections.abc import Sequence
from math import isfinite, sqrt
from typing import Any

import httpx

from turnmill.schemas.embedders.base import Identity
from turnmill.schemas.errors import InvalidInput, SettingsError, TransientError
from turnmill.schemas.process.clients import http_client
from turnmill.schemas.settings.engine import EmbedderSettings
from turnmill.schemas.store.knowledge.spaces import MAX_DIMS, Vector

#: Vectors of so many passages at once are waited for longer than that of a question.
PASSAGES_TIMES = 12

#: What servers answer to a text that they do not take, as one that is too long for their model.
REFUSALS = {400, 413, 422}

#: A text that every model takes.
HARMLESS = "-"


class OpenAIEmbedder:
    is_remote = True

    def __init__(self, settings: EmbedderSettings) -> None:
        if settings.url is None or settings.model is None:
            raise SettingsError(
                "The embedder 'openai_http' needs TURNMILL_EMBEDDER__URL and "
                "TURNMILL_EMBEDDER__MODEL."
            )
        self._settings = settings
        key = settings.key.get_secret_value() if settings.key else None
        self._client = http_client(
            settings.url.get_secret_value().rstrip("/"),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=settings.timeout_s,
        )
        prefixes = (settings.question_prefix, settings.passage_prefix)
        dims = len(self.embed_question(HARMLESS))
        if dims > MAX_DIMS:
            self.close()
            raise SettingsError(
                f"The model '{settings.model}' makes vectors of {dims} numbers, and {MAX_DIMS} can "
                "be stored: choose another model, or fewer dimensions on its server."
            )
        self._identity = Identity("openai_http", settings.model, dims, *prefixes)

    @property
    def identity(self) -> Identity:
        return self._identity

    def embed_question(self, text: str) -> Vector:
        [vector] = self._ask([self._settings.question_prefix + text], self._settings.timeout_s)
        return vector

    def embed_passages(self, texts: Sequence[str]) -> list[Vector]:
        if not texts:
            return []
        prefixed = [self._settings.passage_prefix + text for text in texts]
        return self._ask(prefixed, PASSAGES_TIMES * self._settings.timeout_s)

    def close(self) -> None:
        self._client.close()

    def _ask(self, texts: list[str], timeout_s: float) -> list[Vector]:
        """Gateways answer as to a text that is too long where they lack the model, or where a
        budget is used up: then they refuse any text, and waiting may help.
        """
        try:
            return self._post(texts, timeout_s)
        except InvalidInput as refusal:
            harmless = self._settings.question_prefix + HARMLESS
            try:
                self._post([harmless], self._settings.timeout_s)
            except InvalidInput:
                raise TransientError(
                    f"{refusal.message} It refuses any text: see whether it has the model "
                    f"'{self._settings.model}', and a budget."
                ) from None
            raise

    def _post(self, texts: list[str], timeout_s: float) -> list[Vector]:
        """Neither texts nor what the server says of them are part of an error."""
        body = {"model": self._settings.model, "input": texts, "encoding_format": "float"}
        try:
            response = self._client.post("/embeddings", json=body, timeout=timeout_s)
            response.raise_for_status()
            return _vectors(response.json(), len(texts))
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            kind = InvalidInput if status in REFUSALS else TransientError
            raise kind(f"The embedder's server answered {status}.") from None
        except httpx.HTTPError as error:
            raise TransientError(
                f"The embedder's server cannot be asked ({type(error).__name__})."
            ) from None
        except (ValueError, TypeError, KeyError, ZeroDivisionError):
            raise TransientError("The embedder's server answered no vectors.") from None


def _vectors(body: Any, count: int) -> list[Vector]:
    """In the order of the texts, each of length 1.

    Raises:
        ValueError: there are others than were asked for, or one has no length.
    """
    rows = sorted(body["data"], key=lambda row: int(row["index"]))
    if [row["index"] for row in rows] != list(range(count)):
        raise ValueError
    vectors = [[float(x) for x in row["embedding"]] for row in rows]
    lengths = [sqrt(sum(x * x for x in vector)) for vector in vectors]
    if not all(map(isfinite, lengths)):
        raise ValueError
    return [[x / length for x in each] for each, length in zip(vectors, lengths, strict=True)]
