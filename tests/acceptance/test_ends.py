"""Commands that start processes leave none behind, whichever way and whenever they are ended."""

import os
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.screen import Screen

Eventually = Callable[..., None]

#: With turns that are not over before the end, and a worker that does not wait for them.
ENVIRONMENT = {
    "TURNMILL_ENGINE__NAME": "echo",
    "TURNMILL_ENGINE__ECHO_TOKEN_S": "1",
    "TURNMILL_WORKER__DRAIN_S": "0.5",
}

#: The words of each command.
COMMANDS = {
    "up": ("up",),
    "demo": ("demo",),
    "bench": ("bench", "system", "--broker", "valkey", "--saturated-s", "0"),
    "chaos": ("chaos", "--broker", "valkey", "--workers", "1", "--rate", "5"),
}

#: Of the sample that the demo answers.
TICKETS = len((Path(__file__).parents[2] / "infra/samples/tickets.jsonl").read_text().splitlines())

#: What a terminal shows of each once it runs; `bench` shows nothing before it is done.
SIGNS = {"up": "Turnmill is up", "demo": f"0/{TICKETS} done", "chaos": "turns accepted"}

#: The exit status that each way of ending leaves; a negative one is the signal that killed it.
WAYS = {"ctrl-c": 130, "SIGINT": 130, "SIGTERM": 143, "closed terminal": 129, "SIGKILL": -9}

MOMENTS = ("starting", "running")

#: Of the ways to end what runs, which takes long to come up; ENDS=all takes all of them.
RUNNING = {("up", "closed terminal"), ("demo", "SIGTERM"), ("bench", "SIGTERM"),
           ("bench", "SIGKILL"), ("chaos", "ctrl-c")}  # fmt: skip
CASES = [
    (name, way, moment)
    for name, way, moment in product(COMMANDS, WAYS, MOMENTS)
    if moment == "starting" or (name, way) in RUNNING or os.environ.get("ENDS") == "all"
]


def has_children(name: str, terminal: Any, screen: Screen) -> bool:
    return len(terminal.processes()) > 1


def runs(name: str, terminal: Any, screen: Screen) -> bool:
    if name in SIGNS:
        return screen.says(SIGNS[name])
    logs = terminal.folder.glob("turnmill-bench-*/*-worker.log")
    return any("worker.consuming" in log.read_text() for log in logs)


@pytest.fixture
def open_screen(make_terminal: Callable[..., Any]) -> Iterator[Callable[..., Screen]]:
    screens: list[Screen] = []

    def start(terminal: Any, *words: str) -> Screen:
        screens.append(Screen(terminal, *words))
        return screens[-1]

    yield start
    for screen in screens:
        screen.close()
        screen.process.kill()
        screen.process.wait()


@pytest.mark.parametrize(("name", "way", "moment"), CASES)
def test_a_command_leaves_no_process_behind(
    name: str,
    way: str,
    moment: str,
    make_terminal: Callable[..., Any],
    open_screen: Callable[..., Screen],
    eventually: Eventually,
) -> None:
    terminal = make_terminal(**ENVIRONMENT)
    # What a command puts elsewhere belongs to it, too.
    terminal.environment["TMPDIR"] = str(terminal.folder)
    screen = open_screen(terminal, *COMMANDS[name])
    is_there = has_children if moment == "starting" else runs
    eventually(lambda: is_there(name, terminal, screen) or screen.has_ended(), 120, 0.1)
    assert not screen.has_ended(), screen.shown
    screen.end(way)
    # Each process of a benchmark is given half a minute, one after the other.
    eventually(screen.has_ended, 180, 0.05)
    assert screen.process.returncode == WAYS[way], screen.shown
    if way == "SIGKILL":
        # The kernel ends the others, which may take a moment.
        eventually(lambda: not terminal.processes(), 30, 0.2)
    assert [process.cmdline() for process in terminal.processes()] == []
    assert "Traceback" not in screen.shown
    if way in ("ctrl-c", "SIGINT", "SIGTERM") and name != "demo":
        assert screen.shown.count("Stopped by") == 1, screen.shown
