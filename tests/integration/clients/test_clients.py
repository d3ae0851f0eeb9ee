"""Libraries that people build on OpenAI's API run their documented examples unchanged."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from socket import create_server
from typing import Any

import httpx
import pytest

from tests.selection import CLIENTS
from turnmill.producer.tenants import Scope, create_key

EXAMPLES = Path(__file__).parent / "examples"
pytestmark = pytest.mark.needs("clients")


def free_port() -> int:
    with create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def environment(
    make_system: Callable[..., Any],
    database_url: str,
    valkey_url: str,
    eventually: Callable[..., None],
) -> dict[str, str]:
    """What leads OpenAI's clients to a system with the echo engine."""
    system = make_system(database_url, valkey_url)
    url = f"http://127.0.0.1:{(port := free_port())}"
    system.start("relay")
    system.start("api", TURNMILL_API__PORT=str(port))
    system.start_worker()

    def is_up() -> bool:
        try:
            return httpx.get(f"{url}/healthz").is_success
        except httpx.HTTPError:
            return False

    eventually(is_up, 30)
    return {
        "OPENAI_BASE_URL": f"{url}/v1",
        "OPENAI_API_KEY": create_key(system.database, system.tenant_id, "test", Scope),
        "MODEL": system.settings.engine.model_name,
    }


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("with_*.py")), ids=lambda path: path.stem)
def test_the_examples_of_a_library_run_unchanged(
    environment: dict[str, str], example: Path
) -> None:
    done = subprocess.run(
        [CLIENTS, example],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
