"""What an embedder is."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from turnmill.schemas.errors import SettingsError
from turnmill.schemas.settings.engine import EmbedderSettings
from turnmill.schemas.store.knowledge.spaces import Space, Vector


class Identity(NamedTuple):
    """What must be equal for two vectors to be comparable."""

    embedder: str
    #: Of the model: another one makes other vectors.
    version: str
    dims: int
    question_prefix: str = ""
    passage_prefix: str = ""

    def fits(self, space: Space) -> bool:
        mine = (space.embedder, space.version, space.dims)
        return self == Identity(*mine, space.question_prefix, space.passage_prefix)


def require_fitting(space: Space, vectors: Sequence[Vector]) -> None:
    """Raise `SettingsError` unless vectors have as many numbers as those of a space: a server may
    change the model behind a name.
    """
    for vector in vectors:
        if len(vector) != space.dims:
            raise SettingsError(
                f"The vectors of {space.embedder} {space.version} have {space.dims} numbers, and "
                f"those that it makes now {len(vector)}: its server has another model. Embed the "
                "collection again, or give the server the former."
            )


class Embedder(Protocol):
    """Made with its settings; loads what it needs then. Many threads may call one.

    Its vectors have the length 1. Errors are `TransientError`s, or `PermanentError`s of ours:
    `InvalidInput` where it does not take these texts, and may take others.
    """

    #: Whether the texts leave this machine.
    is_remote: bool

    def __init__(self, settings: EmbedderSettings) -> None: ...

    @property
    def identity(self) -> Identity: ...

    def embed_question(self, text: str) -> Vector: ...

    def embed_passages(self, texts: Sequence[str]) -> list[Vector]: ...

    def close(self) -> None: ...
