"""Channels on a database of the test's own."""

from collections.abc import Callable, Iterator

import pytest

from tests.conversing import Replica


@pytest.fixture
def make_replica(database_url: str) -> Iterator[Callable[[], Replica]]:
    """Make the channel as several API processes have it."""
    made: list[Replica] = []

    def make() -> Replica:
        made.append(Replica(database_url))
        return made[-1]

    yield make
    for replica in made:
        replica.database.close()


@pytest.fixture
def replica(make_replica: Callable[[], Replica]) -> Replica:
    return make_replica()
