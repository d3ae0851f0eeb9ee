"""The database's clock: a step is told from drift, from a slow answer, and from a long pause."""

import math

import pytest

from turnmill.schemas.postgres.clock import TOLERANCE_S
from turnmill.workers.upkeep import clock as clock_module
from turnmill.workers.upkeep.clock import DatabaseClock

#: What the database's clock shows at the beginning.
START = 1_800_000_000.0


class Machine:
    """A monotonic clock that is moved by hand, and a database whose clock can be set."""

    def __init__(self) -> None:
        self.now = 50.0
        self.there = START
        self.clock = DatabaseClock(read_since=-math.inf)

    def monotonic(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds
        self.there += seconds

    def read(self, *, there_s: float = 0.0, back_s: float = 0.0) -> float:
        """Ask the database; the question and the answer take so long."""
        asked_at = self.now
        self.pass_(there_s)
        answer = self.there
        self.pass_(back_s)
        return self.clock.observe(answer, asked_at)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(clock_module.time, "monotonic", machine.monotonic)
    return machine


def test_the_first_reading_is_no_step(machine: Machine) -> None:
    assert machine.clock.latest_s == math.inf
    assert machine.read() == 0
    assert machine.clock.latest_s == START + TOLERANCE_S


@pytest.mark.parametrize("by_s", [3600.0, -3600.0, 5.0, -5.0])
def test_a_step_is_told_once(machine: Machine, by_s: float) -> None:
    machine.read()
    machine.pass_(0.5)
    machine.there += by_s
    assert machine.read(there_s=0.1) == pytest.approx(by_s, abs=0.2)
    machine.pass_(0.5)
    assert machine.read() == 0
    assert machine.clock.latest_s == pytest.approx(machine.there + TOLERANCE_S, abs=0.2)


@pytest.mark.parametrize(("there_s", "back_s"), [(0.0, 30.0), (30.0, 0.0), (15.0, 15.0)])
def test_a_slow_answer_or_a_long_pause_is_no_step(
    machine: Machine, there_s: float, back_s: float
) -> None:
    machine.read()
    machine.pass_(7200)
    assert machine.read(there_s=there_s, back_s=back_s) == 0
    assert machine.read() == 0


def test_a_step_behind_a_slow_answer_is_still_told(machine: Machine) -> None:
    machine.read()
    machine.there += 10
    assert machine.read(there_s=15, back_s=15) == 0, "the answer may have been slow"
    assert machine.read() == pytest.approx(10)


def test_drift_is_no_step(machine: Machine) -> None:
    for _ in range(10_000):
        machine.pass_(0.5)
        machine.there += 0.5 * 0.002
        assert machine.read() == 0


def test_what_was_timed_before_a_step_forward_knows_of_it(machine: Machine) -> None:
    machine.read()
    accepted_at = machine.there - 10
    machine.there += 3600
    machine.read()
    later = machine.there
    assert machine.clock.forward_between(accepted_at, machine.there) == 3600
    assert machine.clock.forward_between(later, machine.there) == 0
    machine.there += 60
    assert machine.clock.forward_between(accepted_at, machine.there) == pytest.approx(3660)
    assert machine.clock.forward_between(later, machine.there) == pytest.approx(60)
    machine.read()
    machine.there -= 3660
    machine.read()
    assert machine.clock.forward_between(accepted_at, machine.there) == pytest.approx(3660)


def test_leases_are_judged_without_a_step_forward_until_all_were_renewed(machine: Machine) -> None:
    machine.read()
    before = machine.there
    machine.there += 3600
    assert machine.clock.judging_s(30.0) == before, "nobody has observed it yet"
    machine.read()
    machine.pass_(29)
    machine.read()
    assert machine.clock.judging_s(30.0) == pytest.approx(before + 29)
    machine.pass_(2)
    machine.read()
    assert machine.clock.judging_s(30.0) == pytest.approx(machine.there)


def test_no_lease_is_judged_before_the_clock_was_read_for_as_long(machine: Machine) -> None:
    """A step forward just before the first reading is one that nobody can see."""
    machine.clock = DatabaseClock()
    assert machine.clock.judging_s(30.0) == math.inf, "nobody reads it"
    machine.pass_(100)
    for _ in range(3):
        machine.read()
        assert machine.clock.judging_s(30.0) == 0.0
        machine.pass_(9.9)
    machine.pass_(0.4)
    assert machine.clock.judging_s(30.0) == pytest.approx(machine.there)


@pytest.mark.parametrize(
    ("steps", "behind_s"),
    [((), 0), ((-3600,), 0), ((3600, -3600), 0), ((-3600, 3600), 3600), ((60, -10, 60), 110)],
)
def test_leases_of_any_clock_since_are_judged_by_the_one_furthest_behind(
    machine: Machine, steps: tuple[float, ...], behind_s: float
) -> None:
    machine.read()
    for by_s in steps:
        machine.there += by_s
        machine.read()
    assert machine.clock.judging_s(30.0) == pytest.approx(machine.there - behind_s)
    assert machine.clock.has_stepped_back(30.0) == any(by_s < 0 for by_s in steps)
    machine.pass_(31)
    assert machine.clock.judging_s(30.0) == pytest.approx(machine.there)
    assert not machine.clock.has_stepped_back(30.0)
