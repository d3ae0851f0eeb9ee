"""Fill a space: vectors of all passages of its collection that have none yet.

Each batch commits by itself, so whoever is killed, or ends, leaves the rest to the next one.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple
from uuid import UUID

from turnmill.schemas.embedders.base import Embedder, require_fitting
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.store.knowledge.spaces import (
    Space,
    Unembedded,
    Vector,
    missing,
    save_vectors,
    texts_of,
)

#: Passages that are embedded together: some seconds' work on a CPU.
BATCH = 16


class Filled(NamedTuple):
    done: int
    total: int
    #: Passages that the embedder does not take: they are found by their words alone.
    refused: int = 0


def fill(
    database: Database, space: Space, embedder: Embedder, document_id: UUID | None = None
) -> Iterator[Filled]:
    """Embed what has no vector, and yield the progress after each batch; also what is added
    meanwhile. `document_id`: of this document alone.

    Raises:
        TurnmillError: the embedder does not answer, or with vectors of another size; what was
            embedded stays.
    """
    done = 0
    refused: set[int] = set()
    while rest := [id_ for id_ in missing(database, space, document_id) if id_ not in refused]:
        total, before = done + len(rest), done
        for at in range(0, len(rest), BATCH):
            found = texts_of(database, rest[at : at + BATCH])
            vectors = _embed(embedder, found)
            require_fitting(space, list(vectors.values()))
            done += save_vectors(database, space, list(vectors), list(vectors.values()))
            refused |= {each.id for each in found} - vectors.keys()
            yield Filled(done, total, len(refused))
        if done == before:  # all of them were deleted, or somebody else fills the space
            return


def _embed(embedder: Embedder, found: Sequence[Unembedded]) -> dict[int, Vector]:
    """The vectors of those passages that the embedder takes."""
    try:
        vectors = embedder.embed_passages([each.text for each in found])
    except InvalidInput:
        if len(found) == 1:
            return {}
        # One by one: a text that is refused has others beside it.
        return {id_: vector for each in found for id_, vector in _embed(embedder, [each]).items()}
    return dict(zip([each.id for each in found], vectors, strict=True))
