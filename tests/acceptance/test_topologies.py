"""What leads is killed while dialogue runs: a RabbitMQ node, a Valkey and a PostgreSQL primary."""

from pathlib import Path

import pytest
from rich.console import Console

from tests.conftest import require_rabbitmq
from turnmill.infra.chaos.run import run_storms
from turnmill.infra.chaos.scenarios import Options, make_storm

pytestmark = pytest.mark.usefixtures("temporary_folders_in_memory")


@pytest.mark.parametrize(
    ("broker", "database"),
    [("rabbitmq-cluster", "postgres"), ("sentinel", "postgres"), ("valkey", "postgres-pair")],
)
def test_nothing_is_lost_doubled_or_reordered_when_the_leader_dies(
    broker: str, database: str, tmp_path: Path
) -> None:
    if broker.startswith("rabbitmq"):
        require_rabbitmq()
    storm = make_storm("failover", broker, Options(seed=20261124, turns=300))
    assert run_storms([(storm, broker)], tmp_path, database, Console(width=100))
