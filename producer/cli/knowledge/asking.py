"""Questions of commands, as a collection is searched for them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from turnmill.producer.cli.context import System
from turnmill.schemas.embedders.embedders import Embedders
from turnmill.schemas.store.knowledge.spaces import Asked


@contextmanager
def asking(system: System, collection: str) -> Iterator[Callable[..., Asked | None]]:
    """Turn questions to a collection into vectors; None where it is searched by words alone. Takes
    what `Embedders.ask` does from the question on.
    """
    embedders = Embedders(system.settings.embedder)
    try:
        yield partial(embedders.ask, system.database, system.tenant_id, collection)
    finally:
        embedders.close()
