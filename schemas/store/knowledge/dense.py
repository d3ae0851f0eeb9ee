"""The passages nearest to a question's vector: exactly, inside one space.

No approximate index: filtered by tenant it misses rows (https://github.com/pgvector/pgvector/issues/259),
and an exact scan of one collection takes less time than it saves (docs/benchmarks.md).
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from turnmill.schemas.errors import SettingsError
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.store.knowledge.spaces import Asked, Space

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

#: Vectors that a process keeps, bytes, where the server has no pgvector. A space that is larger is
#: not compared.
MAX_KEPT_BYTES = 512 * 1024 * 1024

#: The vector is read in a query of its own: as an expression, a prepared statement with a generic
#: plan reads it once a row, which takes five times as long as to compare it.
_ASKED = "(SELECT %(vector)s::real[]::halfvec)"

_NEAREST = f"""
(
    SELECT passage_id, -negative AS cosine FROM (
        SELECT passage_id, v <#> {_ASKED} AS negative FROM passage_vectors
        WHERE space_id = %(space)s ORDER BY negative LIMIT %(limit)s
    ) AS nearest
) UNION ALL (
    SELECT passage_id, -(v <#> {_ASKED}) AS cosine FROM passage_vectors
    WHERE space_id = %(space)s AND passage_id = ANY(%(passages)s::bigint[])
)
"""

_ALL = """
SELECT passage_id, array_send(v) AS v FROM passage_vectors WHERE space_id = %s ORDER BY passage_id
"""

_COUNT = "SELECT count(*) AS n FROM passage_vectors WHERE space_id = %s"


class Near(NamedTuple):
    passage_id: int
    cosine: float


class _Stored(NamedTuple):
    passage_id: int
    v: bytes


class _Count(NamedTuple):
    n: int


class _Matrix(NamedTuple):
    """All vectors of a space, in memory."""

    changes: int
    #: Sorted.
    passages: "npt.NDArray[np.int64]"
    vectors: "npt.NDArray[np.float32]"

    @property
    def size(self) -> int:
        return int(self.vectors.nbytes)


@dataclass(slots=True)
class _Place:
    """Where the vectors of a space are kept."""

    #: Held while they are read.
    reading: threading.Lock = field(default_factory=threading.Lock)
    matrix: _Matrix | None = None


def require_comparable(database: Database, space: Space) -> None:
    """Read the vectors of a space, where this process compares them.

    Raises:
        SettingsError: it cannot.
    """
    if space.has_pgvector:
        return
    if find_spec("numpy") is None:
        raise SettingsError(
            "PostgreSQL has no pgvector, and this process no NumPy, which compares vectors: "
            "pip install 'turnmill[embeddings]'."
        )
    _kept(database, space)


def nearest(
    database: Database, asked: Asked, limit: int, *, also: Sequence[int] = ()
) -> dict[int, float]:
    """The cosine of the nearest passages, and that of other passages, by passage.

    A passage without a vector is none of them.
    """
    if not asked.space.has_pgvector:
        try:
            return _compare(_kept(database, asked.space), asked, limit, also)
        except SettingsError:  # they became too many since the question was embedded
            return {}
    values = {
        "space": asked.space.id, "limit": limit, "passages": list(also),
        "vector": "{" + ",".join(f"{x:.6g}" for x in asked.vector) + "}",
    }  # fmt: skip
    # A passage may be among both.
    return {row.passage_id: row.cosine for row in database.fetch(Near, _NEAREST, values)}


def _compare(matrix: _Matrix, asked: Asked, limit: int, also: Sequence[int]) -> dict[int, float]:
    import numpy as np

    if not len(matrix.passages):
        return {}
    cosines = matrix.vectors @ np.asarray(asked.vector, dtype=np.float32)
    best = np.argpartition(-cosines, min(limit, len(cosines)) - 1)[:limit]
    wanted = np.flatnonzero(np.isin(matrix.passages, np.asarray(also, dtype=np.int64)))
    chosen = np.union1d(best, wanted)
    return dict(zip(matrix.passages[chosen].tolist(), cosines[chosen].tolist(), strict=True))


_places: OrderedDict[UUID, _Place] = OrderedDict()
_lock = threading.Lock()


def _kept(database: Database, space: Space) -> _Matrix:
    """A space's vectors, read again when there are others. Passages that were deleted since are
    among them; no passage has their number again.

    One thread reads them; the others have the former ones meanwhile, and wait where there are none.

    Raises:
        SettingsError: they are more than a process may keep.
    """
    with _lock:
        place = _places.setdefault(space.id, _Place())
        _places.move_to_end(space.id)
    former = place.matrix
    if _is_stale(former, space) and place.reading.acquire(blocking=former is None):
        try:
            if _is_stale(place.matrix, space):
                place.matrix = _read(database, space)
                _forget_oldest()
        finally:
            place.reading.release()
    matrix = place.matrix or former
    assert matrix is not None
    return matrix


def _is_stale(matrix: _Matrix | None, space: Space) -> bool:
    """Whether a space has more. A search that began earlier may know of fewer."""
    return matrix is None or matrix.changes < space.changes


def _forget_oldest() -> None:
    with _lock:
        sizes = {key: each.matrix.size for key, each in _places.items() if each.matrix}
        while len(sizes) > 1 and sum(sizes.values()) > MAX_KEPT_BYTES:
            oldest = next(iter(sizes))
            del sizes[oldest], _places[oldest]


def _read(database: Database, space: Space) -> _Matrix:
    """PostgreSQL's binary form of an array: 20 bytes of head, then length and value of each, big
    endian (array_send in src/backend/utils/adt/arrayfuncs.c).
    """
    import numpy as np

    [count] = database.fetch(_Count, _COUNT, (space.id,))
    if count.n * space.dims * np.dtype(np.float32).itemsize > MAX_KEPT_BYTES:
        raise SettingsError(
            f"{count.n} vectors of {space.dims} numbers are more than a process may keep "
            f"({MAX_KEPT_BYTES >> 20} MiB): install pgvector in PostgreSQL, and embed the "
            "collection again."
        )
    rows = database.fetch(_Stored, _ALL, (space.id,))
    item = np.dtype([("length", ">i4"), ("x", ">f4")])
    vectors = np.empty((len(rows), space.dims), dtype=np.float32)
    for at, row in enumerate(rows):
        vectors[at] = np.frombuffer(row.v, dtype=item, offset=20)["x"]
    return _Matrix(space.changes, np.array([row.passage_id for row in rows], np.int64), vectors)
