"""`turnmill batch run --schema` with the real model: a table comes back as a table.

Everything is killed three times, PostgreSQL among it: what runs again is `turnmill up` and the same
command.
"""

import csv
import functools
import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.acceptance.test_corpus import UpStack
from tests.exports import TITLES, csv_rows, help_desk_row

Eventually = Callable[..., None]

pytestmark = pytest.mark.needs("triage")

#: The rows of the table; `make test-triage` sets it.
ROWS = int(os.environ.get("TRIAGE_ROWS", 0))
KILLS = 3
#: A row takes no longer on a slow machine, seconds.
ROW_S = 3.0

SAMPLES = Path(__file__).parent.parent.parent / "infra/samples"
TICKET, DESCRIPTION = TITLES.index("Ticket"), TITLES.index("Beschreibung")
SCHEMA = json.loads((SAMPLES / "triage.json").read_text())
STATES = "state", "error"


def write_table(path: Path) -> list[list[str]]:
    """Tickets of the demo in the columns of a help desk's export."""
    tickets = [
        json.loads(line)["prompt"] for line in (SAMPLES / "tickets.jsonl").read_text().splitlines()
    ]
    rows = [help_desk_row(number) for number in range(1, ROWS + 1)]
    for number, row in enumerate(rows):
        row[DESCRIPTION] = f'{tickets[number % len(tickets)]}\n"{row[TICKET]}"; thanks'
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=";").writerows([TITLES, *rows])
    return rows


def typed(cells: dict[str, str]) -> dict[str, Any]:
    """A reply as an object, from its columns: text stands as it is, a number as JSON."""
    return {
        name: json.loads(cell) if shape.get("type") == "integer" else cell
        for name, shape in SCHEMA["properties"].items()
        for cell in [cells[f"reply.{name}"]]
    }


def test_a_table_that_was_killed_three_times_is_whole_and_typed(
    make_terminal: Callable[..., Any], eventually: Eventually, tmp_path: Path
) -> None:
    terminal = make_terminal()
    table, answers = tmp_path / "tickets.csv", tmp_path / "answers.csv"
    rows = write_table(table)
    command = (
        "batch", "run", str(table), "--id", "Ticket", "--prompt", "Beschreibung",
        "--schema", str(SAMPLES / "triage.json"), "-o", str(answers),
    )  # fmt: skip
    stack = UpStack(terminal, eventually)
    for kill in range(1, KILLS + 1):
        with (tmp_path / f"run-{kill}.log").open("wb") as log:
            run = terminal.start(*command, output=log)
        wanted = ROWS * kill // (KILLS + 1)
        eventually(functools.partial(has_answered, stack, run, wanted), ROWS * ROW_S, 10.0)
        assert run.poll() is None, (tmp_path / f"run-{kill}.log").read_text()
        assert answered(stack) < ROWS
        stack.kill()
        run.wait()
        stack.start()
    said = terminal.run(*command, timeout_s=ROWS * ROW_S)
    assert said.returncode == 0, said.stdout + said.stderr

    head, *found = csv_rows(answers, ";")
    titles = [head[0].lstrip("\ufeff"), *head[1:]]
    assert titles == [*TITLES, *(f"reply.{name}" for name in SCHEMA["properties"]), *STATES]
    assert [row[: len(TITLES)] for row in found] == rows
    for row in found:
        cells = dict(zip(titles[len(TITLES) :], row[len(TITLES) :], strict=True))
        assert (cells["state"], cells["error"]) == ("completed", "")
        jsonschema.validate(typed(cells), SCHEMA)
    stack.press_ctrl_c()


def has_answered(stack: UpStack, run: "subprocess.Popen[bytes]", count: int) -> bool:
    return run.poll() is not None or answered(stack) >= count


def answered(stack: UpStack) -> int:
    """Count the rows that are answered, as an operator reads it."""
    name = re.search(r"batch_[0-9a-f]+", stack.turnmill("batch", "status"))
    if name is None:
        return 0
    found = re.search(r"([\d,]+) of [\d,]+ completed", stack.turnmill("batch", "status", name[0]))
    assert found is not None
    return int(found[1].replace(",", ""))
