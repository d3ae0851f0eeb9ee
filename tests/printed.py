"""The commands that Turnmill's own messages print, and the state in which each is printed.

A case builds the state, takes the message from the code that prints it, and names the command as it
stands there. `test_printed_commands.py` runs it, and finds messages that no case knows.
"""

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from turnmill.producer.cli.commands import COMMANDS

ROOT = Path(__file__).parents[1]
_FOLDERS = ("schemas", "producer", "workers", "compression", "infra")
_COMMAND = re.compile(rf"turnmill ({'|'.join(COMMANDS)})\b")


@dataclass
class Place:
    """What a case has at hand."""

    #: The tests' `System`: PostgreSQL and Valkey of its own, nothing started.
    system: Any
    #: `turnmill("bots", "list")`: the exit status and all that is printed.
    turnmill: Callable[..., tuple[int, str]]
    monkeypatch: pytest.MonkeyPatch
    eventually: Callable[..., None]
    folder: Path
    #: `place.fixture("rabbitmq_vhost_url")`: another fixture of the tests.
    fixture: Callable[[str], Any]


@dataclass(frozen=True)
class Printed:
    """A message, and the command in it."""

    message: str
    #: As it stands in the message.
    command: str
    #: What a person puts in for the words in capitals.
    fill: Mapping[str, str] = field(default_factory=dict)
    #: Of a command that runs until it is stopped: what its log says once it works.
    serves: str | None = None
    #: Commands that its log names in turn, with the same words in capitals; they are run too.
    then: tuple[str, ...] = ()
    #: Holds, at last, when the command has helped.
    has_helped: Callable[[], object] = lambda: True
    #: Its exit status; of one that runs until it is stopped, that after SIGTERM.
    status: int = 0


class Site(NamedTuple):
    """A text of the source that prints commands, with {…} for what is filled in."""

    file: str
    text: str


Case = Callable[[Place], Printed]

#: The cases, with the file and a part of the text that each is for.
CASES: list[tuple[str, str, Case]] = []
#: Texts whose command another test runs in that state, by the test's name; or that recommend no
#: command, by the reason.
ELSEWHERE: dict[tuple[str, str], str] = {}


def prints(file: str, *parts: str) -> Callable[[Case], Case]:
    """Register a case for the texts of a file that contain one of these parts."""

    def register(case: Case) -> Case:
        CASES.extend((file, part, case) for part in parts)
        return case

    return register


@cache
def sites() -> tuple[Site, ...]:
    """The texts of the source that name a command; docstrings and help texts are left out."""
    return tuple(_sites())


def _sites() -> Iterator[Site]:
    for folder in _FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text())
            passed_over = _passed_over(tree)
            for node in ast.walk(tree):
                text = _text(node)
                if text and id(node) not in passed_over and _COMMAND.search(text):
                    yield Site(str(path.relative_to(ROOT)), text)


def is_known(site: Site) -> bool:
    """Whether a case, or another test, is for this text."""
    known = [*((file, part) for file, part, _ in CASES), *ELSEWHERE]
    return any(file == site.file and part in site.text for file, part in known)


def _passed_over(tree: ast.AST) -> set[int]:
    """Nodes that are no message: docstrings, help texts, parts of an f-string."""
    found: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found |= {id(line.value) for line in node.body[:1] if isinstance(line, ast.Expr)}
        elif isinstance(node, ast.JoinedStr):
            found |= {id(value) for value in node.values}
        elif isinstance(node, ast.keyword) and node.arg in ("help", "description"):
            found |= {id(inner) for inner in ast.walk(node.value)}
    return found


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(value) or "{…}" for value in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
