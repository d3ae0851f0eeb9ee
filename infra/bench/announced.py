"""Servers as processes of their own, which print their address once they are ready."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from turnmill.schemas.process.dependent import dependent


@dataclass(frozen=True, slots=True)
class Announced:
    url: str
    process: subprocess.Popen[str]

    def kill(self) -> None:
        self.process.kill()


@contextmanager
def announced(*command: str) -> Iterator[Announced]:
    """The command's server; killed after the block. Its standard input ends with this process.

    Raises:
        RuntimeError: it does not come up.
    """
    with dependent(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, grace_s=0
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            raise RuntimeError(f"It does not start: {' '.join(command)}")
        yield Announced(url, process)
