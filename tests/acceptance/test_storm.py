"""A storm on each broker: nothing lost, nothing twice, in order, whatever is killed meanwhile.

400 turns each, or STORM_TURNS, and a short one through Slack; `make test-storm` and `make chaos`
ask more of them, and so does CI.
"""

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.conftest import require_rabbitmq
from tests.selection import storm_turns
from turnmill.infra.chaos.run import run_storms
from turnmill.infra.chaos.scenarios import Options, make_storm

pytestmark = pytest.mark.usefixtures("temporary_folders_in_memory")


@pytest.fixture(params=["rabbitmq", "valkey"])
def broker(request: pytest.FixtureRequest) -> str:
    """The kind of broker; the storm starts one of its own."""
    kind: str = request.param
    if kind == "rabbitmq":
        require_rabbitmq()
    return kind


def test_conversations_return_to_their_worker_and_survive_it(tmp_path: Path) -> None:
    # Long enough that there are turns between the faults on a machine where workers start slowly.
    storm = make_storm("affinity", "valkey", Options(seed=20261124, turns=600, conversations=30))
    # Chance alone would be a third; a machine that is busy otherwise may make many hints late.
    storm = replace(storm, least_hit_rate=0.6)
    assert run_storms([(storm, "valkey")], tmp_path, "postgres", Console(width=100))


def test_nothing_is_lost_doubled_or_reordered_in_a_storm(broker: str, tmp_path: Path) -> None:
    storm = make_storm("storm", broker, Options(seed=20261124, turns=storm_turns(400), rate=65.0))
    assert run_storms([(storm, broker)], tmp_path, "postgres", Console(width=100))


def test_no_message_is_lost_doubled_or_reordered_in_a_storm_through_slack(tmp_path: Path) -> None:
    faults = ("kill-deliverer", "kill-worker", "kill-api", "kill-relay", "platform-outage")
    options = Options(seed=20261129, turns=150, conversations=30, fault_every_s=2.0, faults=faults)
    storm = make_storm("channels", "valkey", options)
    assert run_storms([(storm, "valkey")], tmp_path, "postgres", Console(width=100))
