"""The commands of a page of the documentation, for tests that run them as they stand there."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).parents[3] / "docs"
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
_COMMENT = re.compile(r"(^|\s)#\s.*$", re.M)
_RUN_S = 180


class Command(NamedTuple):
    """One command of ours, as `NAME=value turnmill word …`."""

    variables: dict[str, str]
    words: list[str]

    @classmethod
    def of(cls, line: str) -> "Command":
        words = shlex.split(line)
        number = words.index("turnmill")
        variables = dict(word.split("=", 1) for word in words[:number])
        return cls(variables, words[number + 1 :])


def blocks(page: str, heading: str, language: str) -> list[str]:
    """The blocks of a language below a heading."""
    text = (DOCS / page).read_text()
    _, is_there, below = text.partition(f"\n{heading}\n")
    assert is_there, f"{page} has no heading '{heading}'"
    prose_and_blocks = _BLOCK.split(re.split(_next_heading(heading), below, maxsplit=1)[0])
    found = zip(prose_and_blocks[1::3], prose_and_blocks[2::3], strict=True)
    return [content for written_in, content in found if written_in == language]


def _next_heading(heading: str) -> re.Pattern[str]:
    """Where the next section of the same or a higher level begins; comments in blocks are not."""
    level = len(heading.partition(" ")[0])
    return re.compile(rf"\n\n#{{1,{level}}} ")


def commands(page: str, heading: str) -> list[str]:
    """The lines of the `sh` blocks below a heading, without comments; a continued line is one."""
    text = "\n".join(blocks(page, heading, "sh")).replace("\\\n", " ")
    return [line.strip() for line in _COMMENT.sub("", text).splitlines() if line.strip()]


def run(line: str, variables: Mapping[str, str], folder: Path, *programs: Path) -> str:
    """Run a line in a shell, in a folder, and return what it prints; `programs`: go before PATH."""
    path = [*map(str, programs), str(Path(sys.executable).parent), os.environ["PATH"]]
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", line],
        env=os.environ | variables | {"PATH": ":".join(path), "COLUMNS": "200"},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_RUN_S,
    )
    assert ran.returncode == 0, f"{line}\n{ran.stdout}{ran.stderr}"
    return ran.stdout + ran.stderr
