"""The deployment: all processes that share one database, and what their queues are named after."""

from typing import NamedTuple

from turnmill.schemas.postgres.database import Database

#: The id, in a statement. Without its row (a hand) relay and workers still agree.
DEPLOYMENT_ID = "coalesce((SELECT min(id) FROM deployment), 'none')"


class Deployment(NamedTuple):
    """What a process must know to name the queues that it consumes."""

    id: str
    #: Relays of the previous release may still publish to queues without this id.
    has_old_queues: bool = False


def read_deployment(database: Database) -> Deployment:
    """Read the deployment that the database belongs to. Raises `DatabaseUnavailable`."""
    (deployment,) = database.fetch(
        Deployment,
        f"SELECT {DEPLOYMENT_ID} AS id, "
        "coalesce((SELECT bool_or(has_old_queues) FROM deployment), false) AS has_old_queues",
    )
    return deployment
