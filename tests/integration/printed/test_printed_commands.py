"""Each command that a message prints works as it is printed, in the state it is printed for."""

import io
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.printed import doctor_states, error_states, hint_states
from tests.printed import CASES, Case, Place, Printed
from turnmill.infra.mocks.slack.socket_mode import SocketModeServer
from turnmill.infra.mocks.telegram.api import TelegramAPI
from turnmill.producer.cli.app import main

#: They register their cases.
STATES = (doctor_states, error_states, hint_states)

Turnmill = Callable[..., tuple[int, str]]


@pytest.fixture
def turnmill(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Turnmill:
    monkeypatch.setenv("COLUMNS", "400")

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["turnmill", *words])
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out + said.err

    return run


@pytest.fixture
def place(
    brief_doctor: None,
    make_system: Callable[..., Any],
    database_url: str,
    valkey_url: str,
    turnmill: Turnmill,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[..., None],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Place:
    system = make_system(database_url, valkey_url)
    for name, value in system.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return Place(system, turnmill, monkeypatch, eventually, tmp_path, request.getfixturevalue)


@pytest.fixture
def slack() -> Iterator[SocketModeServer]:
    with SocketModeServer(error_states.APP_TOKEN) as server:
        yield server


@pytest.fixture
def telegram() -> Iterator[TelegramAPI]:
    with TelegramAPI() as api:
        yield api


def split(printed: Printed, command: str) -> tuple[dict[str, str], list[str]]:
    """The variables that the command sets and the words after `turnmill`, as a shell has them."""
    words = shlex.split(command)
    start = words.index("turnmill")
    pairs = [word.partition("=") for word in words[:start]]
    variables = {name: printed.fill.get(value, value) for name, _, value in pairs}
    return variables, [printed.fill.get(word, word) for word in words[start + 1 :]]


def unique_cases() -> list[Case]:
    return list(dict.fromkeys(case for _, _, case in CASES))


@pytest.mark.parametrize("case", unique_cases(), ids=lambda case: case.__name__)
def test_a_printed_command_works_in_the_state_that_it_is_printed_for(
    place: Place, case: Case
) -> None:
    printed = case(place)
    assert printed.command in printed.message
    variables, words = split(printed, printed.command)
    for name, value in variables.items():
        place.monkeypatch.setenv(name, value)
    if printed.serves is None:
        status, said = place.turnmill(*words)
        assert status == printed.status, said
    else:
        changed = {name: os.environ[name] for name in os.environ if name.startswith("TURNMILL_")}
        process = place.system.start(*words, **changed)
        place.eventually(lambda: process.says(str(printed.serves)) or not process.is_running, 60)
        assert process.is_running, process.log.read_text()
        for name in variables:
            place.monkeypatch.delenv(name)
        for command in printed.then:
            assert command in process.log.read_text()
            status, said = place.turnmill(*split(printed, command)[1])
            assert status == 0, said
    place.eventually(printed.has_helped, 30)
    if printed.serves is not None:
        process.send(signal.SIGTERM)
        assert process.wait(60) == printed.status
