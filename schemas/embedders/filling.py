"""Fill a space: vectors of all passages of its collection that have none yet.

Each batch commits by itself, so whoever is killed, or ends, leaves the rest to the next one.
"""

from collections.abc import Iterator
from typing import NamedTuple
from uuid import UUID

from turnmill.schemas.embedders.base import Embedder, require_fitting
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.store.knowledge.spaces import Space, missing, save_vectors, texts_of

#: Passages that are embedded together: some seconds' work on a CPU.
BATCH = 16


class Filled(NamedTuple):
    done: int
    total: int


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
    while rest := missing(database, space, document_id):
        total, before = done + len(rest), done
        for at in range(0, len(rest), BATCH):
            found = texts_of(database, rest[at : at + BATCH])
            vectors = embedder.embed_passages([each.text for each in found])
            require_fitting(space, vectors)
            done += save_vectors(database, space, [each.id for each in found], vectors)
            yield Filled(done, total)
        if done == before:  # all of them were deleted, or somebody else fills the space
            return
