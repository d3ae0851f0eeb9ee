"""Call a function in a fresh process: memory is its own, and nothing is warm by chance."""

import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from turnmill.schemas.errors import LimitExceeded, PermanentError
from turnmill.schemas.process.dependent import dependent

Result = TypeVar("Result")

#: All that a child with limits has of its surroundings: no password, no URL.
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH")

#: The exit status of a child without memory: it may lack the memory for anything longer.
_NO_MEMORY = 88

#: What the status of a child with limits tells. Libraries in C++ abort where memory ends.
_EXCEEDED = {
    -signal.SIGXCPU: "It takes too long.",
    _NO_MEMORY: "It takes too much memory.",
    -signal.SIGABRT: "It takes too much memory.",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a child may take. Linux counts all of it; other systems may count less."""

    memory_bytes: int
    #: Of the processor.
    cpu_s: int
    #: On the clock.
    wait_s: float


def isolated(
    work: Callable[..., Result],
    *arguments: object,
    limits: Limits | None = None,
    folder: Path | None = None,
) -> Result:
    """Return what `work` returns, or raise what it raises. Both are pickled, as the arguments are.

    `folder`: where what passes between the two is written. A child with limits sees no variable of
    the environment that holds a secret. It runs as the same user: this is a fence against input
    that is too much, not against an attacker who runs code.

    Raises:
        LimitExceeded: it takes more than `limits`.
        PermanentError: the process ended without a result.
    """
    with tempfile.TemporaryDirectory(prefix="turnmill-isolated-", dir=folder) as own:
        task, outcome = Path(own, "task"), Path(own, "outcome")
        task.write_bytes(pickle.dumps((work, arguments)))
        command = [sys.executable, "-m", __name__, str(task), str(outcome)]
        options: dict[str, Any] = {}
        if limits:
            command += [str(limits.memory_bytes), str(limits.cpu_s)]
            options = {"env": _surroundings(), "cwd": own, "stderr": subprocess.DEVNULL}
        # What an interrupted call has computed, nobody wants.
        with dependent(command, stdin=subprocess.DEVNULL, grace_s=0, **options) as process:
            try:
                status = process.wait(limits.wait_s if limits else None)
            except subprocess.TimeoutExpired:
                raise LimitExceeded("It takes too long.") from None
        if limits and (exceeded := _EXCEEDED.get(status)):
            raise LimitExceeded(exceeded)
        if not outcome.exists():
            raise PermanentError(f"A process that computed a result ended with status {status}.")
        result, error = pickle.loads(outcome.read_bytes())
    if error is not None:
        raise error
    return result  # type: ignore[no-any-return]


def _surroundings() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    # OpenBLAS takes memory for each core as soon as it is imported.
    return kept | {"OPENBLAS_NUM_THREADS": "1"}


def _confine(memory_bytes: int, cpu_s: int) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    # SIGXCPU at the first, SIGKILL at the second.
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _main(task: str, outcome: str, *limits: str) -> None:
    if limits:
        # First of all: what the work imports counts as well.
        _confine(*map(int, limits))
    result, error = None, None
    work, arguments = pickle.loads(Path(task).read_bytes())
    try:
        result = work(*arguments)
    except MemoryError:
        if limits:
            os._exit(_NO_MEMORY)
        raise
    except Exception as failure:
        error = failure
    # A process that dies while it writes leaves no outcome.
    part = Path(f"{outcome}.part")
    part.write_bytes(pickle.dumps((result, error)))
    part.rename(outcome)


if __name__ == "__main__":
    _main(*sys.argv[1:])
