"""`turnmill batch run --schema`: from a file of tickets to typed columns, killed on the way."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openpyxl import load_workbook

from tests.exports import csv_rows
from tests.requirements import require_installed

require_installed("jsonschema", "dev")

SCHEMA = {
    "type": "object",
    "properties": {
        "topic": {"enum": ["delivery", "payment"]},
        "urgency": {"type": "integer", "minimum": 1, "maximum": 5},
        "summary": {"type": "string", "minLength": 30},
    },
    "required": ["topic", "urgency", "summary"],
}
ROWS = 30


def test_a_backlog_becomes_a_table_whose_own_columns_are_unchanged(
    make_system: Callable[..., Any],
    database_url: str,
    valkey_url: str,
    eventually: Callable[..., None],
    tmp_path: Path,
) -> None:
    system = make_system(database_url, valkey_url)
    backlog, schema, output = (tmp_path / name for name in ("t.csv", "s.json", "o.csv"))
    lines = [f't-{n},"Mein ""Paket"" {n}, bitte",0{n}' for n in range(ROWS)]
    backlog.write_text("\n".join(["id,prompt,Kunde", *lines]) + "\n")
    schema.write_text(json.dumps(SCHEMA))
    system.start("relay")
    slow = {"TURNMILL_ENGINE__ECHO_TOKEN_S": "0.05"}
    doomed = system.start_worker(**slow)
    run = system.start("batch", "run", str(backlog), "--schema", str(schema), "-o", str(output))
    eventually(lambda: system.count("state = 'completed'") > 3, 60)
    doomed.kill()
    system.start_worker()
    assert run.wait(90) == 0, run.log.read_text()
    head, *rows = csv_rows(output)
    own = ["\ufeffid", "prompt", "Kunde"]
    ours = ["reply.topic", "reply.urgency", "reply.summary"]
    assert head == [*own, *ours, "state", "error"]
    assert [row[:3] for row in rows] == [
        [f"t-{n}", f'Mein "Paket" {n}, bitte', f"0{n}"] for n in range(ROWS)
    ]
    assert {tuple(row[3:]) for row in rows} == {("delivery", "1", "a" * 30, "completed", "")}
    (batch,) = system.database.run("SELECT replace(id::text, '-', '') AS id FROM batches")
    sheet = tmp_path / "o.xlsx"
    later = system.start(
        "batch", "results", f"batch_{batch.id}", "--schema", str(schema), "-o", str(sheet)
    )
    assert later.wait(60) == 0, later.log.read_text()
    titles, first, *_ = load_workbook(sheet).active.iter_rows(values_only=True)
    assert dict(zip(titles, first, strict=True))["reply.urgency"] == 1
