"""What the doctor says, and how checks are run."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeVar


class Level(Enum):
    OK = "ok"
    #: Worth knowing; works as far as it goes.
    NOTE = "note"
    #: Works today, and will hurt one day.
    WARNING = "warning"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Finding:
    level: Level
    what: str
    detail: str
    #: What to do about it.
    fix: str = ""

    def of(self, what: str) -> "Finding":
        return replace(self, what=what)


TargetT = TypeVar("TargetT")
Check = Callable[[TargetT], Iterable[Finding]]


def ok(detail: str) -> Finding:
    return Finding(Level.OK, "", detail)


def note(detail: str, fix: str = "") -> Finding:
    return Finding(Level.NOTE, "", detail, fix)


def warning(detail: str, fix: str) -> Finding:
    return Finding(Level.WARNING, "", detail, fix)


def broken(detail: str, fix: str = "") -> Finding:
    return Finding(Level.BROKEN, "", detail, fix)


def examine(checks: Mapping[str, Check[TargetT]], target: TargetT) -> Iterator[Finding]:
    """The findings of some checks.

    A check that fails itself has found something broken: what it should have told is unknown.
    The other checks still run.
    """
    for name, check in checks.items():
        try:
            yield from [finding.of(name) for finding in check(target)]
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            yield broken(f"could not be examined: {type(error).__name__}: {reason}").of(name)
