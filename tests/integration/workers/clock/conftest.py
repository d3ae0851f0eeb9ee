"""A system whose database's clock the test steps (`stepping.py`)."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import make_template, new_database
from tests.integration.workers.clock.stepping import find_the_clock, prepare


@pytest.fixture(scope="session")
def stepping_template(postgres_url: str) -> str:
    return make_template(postgres_url, "stepping_template", prepare)


@pytest.fixture
def stepping_url(postgres_url: str, stepping_template: str) -> Iterator[str]:
    yield from new_database(postgres_url, stepping_template)


@pytest.fixture
def stepping_system(make_system: Callable[..., Any], stepping_url: str, valkey_url: str) -> Any:
    find_the_clock(stepping_url)
    return make_system(stepping_url, valkey_url, hint_lost_after_s=0.5, rescue_every_s=0.3)
