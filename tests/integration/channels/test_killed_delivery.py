"""`kill -9` of the delivery worker between its calls to platforms and its commits.

One worker serves a channel for each platform, step and moment, and dies while every one of them is
in the middle of its call. What the platforms show in the end is judged by the docs' table.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import pytest

from tests.delivering import Asked, Channels
from tests.platforms import ADDRESS, PLATFORMS, SECRET, Platform, Step

Eventually = Callable[..., None]

PHASES = ("ask", "write", "rewrite", "end")
DOCUMENT = Path(__file__).parents[3] / "docs/channels/delivery.md"
#: The worker that dies must not give up its calls before, and the other one has time.
PATIENT = {"TURNMILL_DELIVERY__TIMEOUT_S": "30", "TURNMILL_DELIVERY__LEASE_S": "60"}


def allowed() -> dict[str, int]:
    """How many messages one death may double, by the docs' rows."""
    promise = {"none": 0, "at most one part": 1}
    rows = re.findall(
        r"^\| (`[^|]+) \| [^|]+ \| (none|at most one part)\b", DOCUMENT.read_text(), re.M
    )
    return {name: promise[words] for name, words in rows}


class Victim(Asked):
    """A delivery whose worker dies at one step, `before` the platform has done it or `after`."""

    def __init__(self, channels: Channels, platform: Platform, step: Step, moment: str) -> None:
        super().__init__(channels, f"{platform.kind}-{channels.count}")
        self.platform, self.step, self.moment = platform, step, moment
        self.name = f"{platform.row} {step.phases} {step.call}+{step.after} {moment}"
        self.phases = ("ask", *step.phases.split())
        self.api = platform.make()
        self.text = _text(platform.length)
        variable = f"SECRET_{platform.kind.upper()}"
        channels.environment[variable] = platform.secret
        channels.configure(
            self.channel,
            kind=platform.kind,
            **{key: self._filled(value, variable) for key, value in platform.section.items()},
        )

    def _filled(self, value: Any, variable: str) -> Any:
        if value is SECRET:
            return {"env": variable}
        if value is ADDRESS:
            self.channels.environment[f"ADDRESS_{self.channel}"] = self.api.url
            return {"env": f"ADDRESS_{self.channel}"}
        return value.format(url=self.api.url.rstrip("/")) if isinstance(value, str) else value

    def enter(self, phase: str) -> None:
        """Do what the phase brings; in the last one the worker is stopped at the step."""
        if phase not in self.phases:
            return
        if phase == self.phases[-1]:
            for _ in range(self.step.after):
                self.api.order(self.step.call, "before").go.set()
            self.held = self.api.order(self.step.call, self.moment)
        match phase:
            case "ask":
                target = self.platform.target
                self.ask(**(target if isinstance(target, dict) else target(self.api)))
            case "write":
                self.write(_sentences(0, 2))
            case "rewrite":
                self.write(_sentences(2, 4))
            case "end":
                self.finish(self.text)
        self.attempt = self.row.attempt

    def is_through(self, phase: str) -> bool:
        if phase == self.phases[-1]:
            return bool(self.held.reached.is_set())
        if phase not in self.phases or self.phases[1:] == ("end",):
            return True
        return self.row.attempt > self.attempt and self.row.leased_until is None

    def complete(self) -> None:
        """Let the platform do what it was asked for, and end the turn."""
        self.held.go.set()
        if self.phases[-1] != "end":
            self.finish(self.text)

    @property
    def doubled(self) -> int | str:
        """How many messages must go for each sentence to stand once, in its place."""
        shown = [list(map(int, re.findall(r"number (\d+)\.", text))) for text in self.api.texts]
        whole = list(map(int, re.findall(r"number (\d+)\.", self.text)))
        for count in range(3):
            for left in combinations(shown, len(shown) - count):
                if list(chain.from_iterable(left)) == whole:
                    return count
        return f"not what was sent: {[numbers[:1] + numbers[-1:] for numbers in shown]}"


def _sentences(first: int, end: int) -> str:
    return "".join(f"This is sentence number {number}. " for number in range(first, end))


def _text(length: int) -> str:
    return _sentences(0, length // len("This is sentence number 100. "))


@pytest.fixture
def victims(channels: Any) -> Iterator[list[Victim]]:
    with ExitStack() as stack:
        victims = [
            Victim(channels, platform, step, moment)
            for platform in PLATFORMS
            for step in platform.steps
            for moment in ("before", "after")
        ]
        for victim in victims:
            stack.enter_context(victim.api)
        yield victims


@pytest.mark.parametrize("broker_url", ["valkey"], indirect=True)
def test_no_more_messages_are_doubled_than_the_docs_say_wherever_the_worker_is_killed(
    channels: Any, victims: list[Victim], eventually: Eventually
) -> None:
    places = {"TURNMILL_DELIVERY__CONCURRENCY": "1"}
    worker = channels.deliver(eventually, **places, **PATIENT)
    channels.system.start("relay")
    for phase in PHASES:
        for victim in victims:
            victim.enter(phase)
        for victim in victims:
            eventually(lambda victim=victim, phase=phase: victim.is_through(phase), 40)
    worker.kill()
    for victim in victims:
        victim.complete()
    # As if its leases had expired.
    channels.database.run("UPDATE deliveries SET leased_until = to_timestamp(0) "
                          "WHERE leased_until IS NOT NULL RETURNING id")  # fmt: skip
    channels.deliver(eventually, **places, **PATIENT)
    eventually(channels.all_sent, 120)
    doubled = {victim.name: victim.doubled for victim in victims}
    may = {victim.name: allowed()[victim.platform.row] for victim in victims}
    assert {
        name: count for name, count in doubled.items() if count not in range(may[name] + 1)
    } == {}
    assert [victim.name for victim in victims if victim.platform.is_open(victim.api)] == []
    assert max(doubled.values()) == 1, "a death in the middle of a call is not without effect"
