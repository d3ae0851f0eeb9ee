"""What bots know, and whether they can tell that they do not."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import NamedTuple

from turnmill.producer.doctor.database import Target
from turnmill.producer.doctor.findings import Check, Finding, note
from turnmill.producer.knowledge.lookup import list_collections
from turnmill.producer.operations.remedies import tenant_option
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
                f"'{each.name}'{whose} changed much since its gate was calibrated: how often it "
                "is right is not known any more",
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
                "installed here: workers of this installation search it by words alone",
                "pip install 'turnmill[embeddings]'",
            )
        elif not each.has_pgvector and each.size > MAX_KEPT_BYTES:
            yield note(
                f"'{each.name}' has more vectors than a worker may keep "
                f"({MAX_KEPT_BYTES >> 20} MiB): it is searched by words alone",
                f"install pgvector in PostgreSQL, then: {command}",
            )
        elif each.missing:
            yield note(
                f"{each.missing} passages of '{each.name}' have no vectors yet: they are found by "
                "their words alone",
                command,
            )


CHECKS: dict[str, Check[Target]] = {"knowledge": _gates, "vectors": _vectors}
