"""The system that sample bots are installed on, and its commands."""

import socket
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from turnmill.producer.cli.context import System


@pytest.fixture
def running(make_system: Callable[..., Any], database_url: str, valkey_url: str) -> Any:
    """A system; nothing is started yet."""
    return make_system(database_url, valkey_url)


@pytest.fixture
def system(running: Any) -> Iterator[System]:
    """The same, as commands have it."""
    yield System(running.settings, running.database, running.tenant_id)


@pytest.fixture
def start_api(eventually: Callable[..., None]) -> Callable[..., str]:
    """`start_api(running)`: its API, ready; its address."""

    def start(running: Any) -> str:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = int(probe.getsockname()[1])
        api = running.start("api", TURNMILL_API__PORT=str(port))
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: _answers(url) or not api.is_running, 30)
        assert api.is_running, api.log.read_text()
        return url

    return start


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False
