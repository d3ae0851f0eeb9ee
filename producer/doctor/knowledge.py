"""What bots know, whether they can tell that they do not, and whether they can search then."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import NamedTuple

from turnmill.producer.doctor.database import Target
from turnmill.producer.doctor.findings import Check, Finding, note, warning
from turnmill.producer.knowledge.lookup import list_collections
from turnmill.producer.operations.remedies import tenant_option
from turnmill.schemas.errors import SearchUnavailable
from turnmill.schemas.settings.engine import EMBEDDER_LIBRARIES
from turnmill.schemas.store.knowledge.dense import MAX_KEPT_BYTES
from turnmill.schemas.store.knowledge.spaces import HAS_PGVECTOR

_SPACES = f"""
SELECT c.name, t.name AS tenant, s.embedder, {HAS_PGVECTOR}, (
    SELECT 4 * s.dims * count(*) FROM passage_vectors v WHERE v.space_id = s.id
    ) AS size, (
    SELECT count(*) FROM passages p WHERE p.collection_id = c.id AND NOT EXISTS (
        SELECT FROM passage_vectors v WHERE v.space_id = s.id AND v.passage_id = p.id)
    ) AS missing
FROM collections c JOIN spaces s ON s.id = c.space_id JOIN tenants t ON t.id = c.tenant_id
ORDER BY t.name, c.name
"""


#: Bots that search the web where their collection does not answer, or would if they had one.
_SEARCHING = """
SELECT name FROM bots
WHERE deleted_at IS NULL AND (policies ->> 'knowledge' IS NOT NULL) = %s
  AND policies -> 'unknown' -> 'steps' @> '"search"'
ORDER BY name LIMIT 5
"""


class _Bot(NamedTuple):
    name: str


class _Space(NamedTuple):
    """A collection with vectors."""

    name: str
    tenant: str
    embedder: str
    has_pgvector: bool
    #: Bytes, where a process compares them.
    size: int
    missing: int


def _gates(target: Target) -> Iterator[Finding]:
    for each in list_collections(target.database, None):
        if each.is_stale:
            option = tenant_option(each.tenant, target.settings.tenant)
            whose = f" of tenant {each.tenant}" if option else ""
            yield note(
                f"'{each.name}'{whose} changed much since its gate was calibrated, or another "
                "release calibrated it: how often it is right is not known any more",
                f"turnmill knowledge calibrate {each.name}{option}",
            )


def _vectors(target: Target) -> Iterator[Finding]:
    for each in target.database.fetch(_Space, _SPACES):
        option = tenant_option(each.tenant, target.settings.tenant)
        command = f"turnmill knowledge embed {each.name} --embedder {each.embedder}{option}"
        library = EMBEDDER_LIBRARIES.get(each.embedder, each.embedder)
        if find_spec(library) is None:
            yield note(
                f"'{each.name}' has vectors of {each.embedder}, which is not installed here: "
                "workers and the API of this installation search it by words alone",
                "pip install 'turnmill[embeddings]'",
            )
        elif not each.has_pgvector and find_spec("numpy") is None:
            yield note(
                f"'{each.name}' has vectors, but PostgreSQL has no pgvector and NumPy is not "
                "installed here: this installation searches it by words alone",
                "pip install 'turnmill[embeddings]'",
            )
        elif not each.has_pgvector and each.size > MAX_KEPT_BYTES:
            yield note(
                f"'{each.name}' has more vectors than a process may keep "
                f"({MAX_KEPT_BYTES >> 20} MiB): it is searched by words alone",
                f"install pgvector in PostgreSQL, then: {command}",
            )
        elif each.missing:
            yield note(
                f"{each.missing} passages of '{each.name}' have no vectors yet: they are found by "
                "their words alone",
                command,
            )


def _search(target: Target) -> Iterator[Finding]:
    if idle := [row.name for row in target.database.fetch(_Bot, _SEARCHING, (False,))]:
        yield note(
            f"{', '.join(idle)} would search the web for what a collection does not answer, and "
            "have none: nothing is searched",
            "name a collection in their policy 'knowledge': an empty one will do",
        )
    bots = [row.name for row in target.database.fetch(_Bot, _SEARCHING, (True,))]
    if not bots:
        return
    step = f"the step 'search' of {', '.join(bots)} is passed over"
    if target.settings.search.url is None:
        yield note(
            f"workers with these settings know no search server: {step}",
            "set TURNMILL_SEARCH__URL where workers run",
        )
    elif target.search is not None:
        try:
            count = target.search(target.settings.search)
        except SearchUnavailable as error:
            yield warning(f"{error.message} Until that is mended, {step}", error.remedy)
        else:
            if not count:
                yield warning(
                    f"the search server finds nothing, even about Wikipedia: {step}",
                    "look at its page /stats: do its engines answer?",
                )


CHECKS: dict[str, Check[Target]] = {
    "knowledge": _gates,
    "vectors": _vectors,
    "search": _search,
}
