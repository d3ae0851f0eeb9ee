"""A gate passes nothing that the model would not be shown."""

from datetime import UTC, datetime

import pytest

from turnmill.schemas.store.knowledge.gate import Gate, Logistic, Measured, Zone


def test_a_result_of_which_nothing_is_shown_is_not_known() -> None:
    measured = Measured(
        answerable=1, unanswerable=1, precision=1, precision_low=1, precision_high=1, coverage=1,
        auroc=1,
    )  # fmt: skip
    gate = Gate(
        logistic=Logistic(names=("a",), means=(0,), scales=(1,), weights=(9, 0)),
        threshold=0.5, wanted=0.9, measured=measured, calibrated_at=datetime.now(UTC),
        passage_count=1,
    )  # fmt: skip
    judged = gate.judge({"a": 0.0}, [])
    assert judged.zone is Zone.UNKNOWN
    assert judged.probability == pytest.approx(1, abs=0.01)
