"""The record: what the client intended and what it was promised, kept outside the system.

Every line is in the file before the next step is taken, so the record is complete whatever
dies, the run itself included.
"""

import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from turnmill.schemas.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Intent:
    """A turn that the client is about to submit, or is submitting again."""

    key: str
    conversation: str
    #: Its number within the conversation, from 1, as the client counts.
    number: int
    text: str
    #: Seconds since the epoch.
    at: float


@dataclass(frozen=True, slots=True)
class Promise:
    """The system said that it accepted the turn."""

    key: str
    #: Empty where the answer names none.
    turn_id: str
    at: float
    #: Seconds that the accepting call took; the last one, if it was repeated.
    took_s: float
    #: Calls it took; all but the last one were refused or broke.
    tries: int


@dataclass(frozen=True, slots=True)
class Observation:
    """The text of a reply as a streaming reader saw it."""

    key: str
    text: str
    at: float
    #: False: the connection broke, and this is what had been shown by then.
    is_whole: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """A message that a platform shows when the run is over, in the order of posting."""

    #: Whose thread it stands in; empty: nobody's.
    conversation: str
    #: The platform's id of it.
    message: str
    text: str
    #: False: it is still being written.
    is_whole: bool


@dataclass(frozen=True, slots=True)
class Fault:
    """What was broken, from when to when."""

    name: str
    target: str
    at: float
    until: float
    #: Workers' ids that it hit.
    workers: tuple[str, ...] = ()


Entry = Intent | Promise | Observation | Shown | Fault
_KINDS: dict[str, type[Entry]] = {
    kind.__name__.lower(): kind for kind in (Intent, Promise, Observation, Shown, Fault)
}


class Record:
    """Appends entries to a file; threads may share it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._lock = threading.Lock()

    def add(self, entry: Entry) -> None:
        line = json.dumps({"kind": type(entry).__name__.lower(), **asdict(entry)})
        with self._lock:
            os.write(self._descriptor, f"{line}\n".encode())

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_record(path: Path) -> Iterator[Entry]:
    """The entries in their order. Raises `InvalidInput` where the file is not a record."""
    with path.open() as lines:
        for number, line in enumerate(lines, 1):
            try:
                fields = json.loads(line)
                kind = _KINDS[fields.pop("kind")]
                if kind is Fault:
                    fields["workers"] = tuple(fields["workers"])
                yield kind(**fields)
            except (ValueError, KeyError, TypeError) as error:
                raise InvalidInput(f"{path}:{number} is not a line of a record.") from error


def now() -> float:
    return time.time()
