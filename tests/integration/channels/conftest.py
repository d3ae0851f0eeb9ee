"""Channels on a database of the test's own, and on whole systems."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.conversing import Replica
from tests.delivering import Channels, Receiver


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


@pytest.fixture
def make_receiver() -> Iterator[Callable[[], Receiver]]:
    with ExitStack() as stack:

        def make() -> Receiver:
            receiver = Receiver()
            stack.callback(receiver.close)
            return receiver

        yield make


@pytest.fixture
def channels(system: Any, tmp_path: Path) -> Channels:
    return Channels(system, tmp_path)
