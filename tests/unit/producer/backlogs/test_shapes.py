"""Replies of a schema as typed columns."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from openpyxl import load_workbook

from tests.exports import csv_rows
from turnmill.producer.batches.backlog import Backlog, read_backlog
from turnmill.producer.batches.results import write_results
from turnmill.producer.batches.shapes import Shape, read_shape
from turnmill.producer.cli.backlogs.preview import preview
from turnmill.schemas.batches import BatchResult, ResultError
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.turns import TurnState

SAMPLES = Path(__file__).parents[4] / "infra/samples"

SCHEMA = {
    "$defs": {"Level": {"enum": [1, 2, 3]}},
    "type": "object",
    "properties": {
        "topic": {"enum": ["a", "=1+1"]},
        "level": {"$ref": "#/$defs/Level"},
        "share": {"type": ["number", "null"]},
        "is_new": {"type": "boolean"},
        "words": {"type": "array", "items": {"type": "string"}},
        "state": {"type": "string"},
    },
}
KINDS = {
    "topic": "text", "level": "integer", "share": "number", "is_new": "boolean", "words": "json",
    "state": "text",
}  # fmt: skip
WHOLE = {
    "topic": "=1+1",
    "level": 2,
    "share": 1,
    "is_new": True,
    "words": ["摘"],
    "state": "\ud83d",
}
TITLES = [f"reply.{name}" for name in KINDS]


@pytest.fixture
def shape() -> Shape:
    return Shape(json.dumps(SCHEMA))


@pytest.fixture
def backlog(tmp_path: Path) -> Backlog:
    path = tmp_path / "a.csv"
    path.write_text("prompt,reply.level\nhi,x\nho,y\nhe,z\n")
    return read_backlog(path)


def answered() -> Iterator[BatchResult]:
    """A whole reply, one that was cut, and none."""
    replies = [json.dumps(WHOLE), '{"topic": "a', None]
    for number, reply in enumerate(replies, start=1):
        yield BatchResult(
            id=str(number), row=number, turn_id="turn_1", conversation_id="conv_1", seq=1,
            state=TurnState.FAILED if reply is None else TurnState.COMPLETED, reply=reply,
            attempts=1,
            error=ResultError(code="format_not_met", message="x") if reply is None else None,
        )  # fmt: skip


def write(folder: Path, name: str, shape: Shape, backlog: Backlog | None, **options: Any) -> Path:
    path = folder / name
    assert write_results(path, answered(), backlog, shape=shape, **options) == 3
    return path


def test_a_column_is_of_its_property_s_kind(shape: Shape) -> None:
    assert dict(shape.columns) == KINDS
    assert shape.describe().startswith("reply.topic (text), reply.level (integer), ")


def test_csv_has_the_file_s_columns_the_reply_s_and_why_there_is_none(
    tmp_path: Path, shape: Shape, backlog: Backlog
) -> None:
    head, whole, cut, failed = csv_rows(write(tmp_path, "o.csv", shape, backlog))
    ours = ["reply.topic", "turnmill_reply.level", *TITLES[2:], "id", "state", "error"]
    assert sorted(head) == sorted(["\ufeffprompt", "reply.level", *ours[:-3], "state", "error"])
    row = dict(zip(head, whole, strict=True))
    assert (row["reply.level"], row["turnmill_reply.level"]) == ("x", "2")
    assert row["reply.topic"] == "'=1+1"
    assert (row["reply.share"], row["reply.is_new"]) == ("1", "true")
    assert (row["reply.words"], row["reply.state"]) == ('["摘"]', "\ufffd")
    row = dict(zip(head, cut, strict=True))
    assert (row["reply.topic"], row["state"]) == ("", "completed")
    assert row["error"].startswith("format_error: The reply was cut")
    assert dict(zip(head, failed, strict=True))["error"] == "format_not_met: x"


def test_xlsx_parquet_and_jsonl_have_real_types(
    tmp_path: Path, shape: Shape, backlog: Backlog
) -> None:
    sheet = load_workbook(write(tmp_path, "o.xlsx", shape, backlog)).active
    cells = [[cell.value for cell in row] for row in sheet.iter_rows()]
    row = dict(zip(cells[0], cells[1], strict=True))
    assert (row["turnmill_reply.level"], row["reply.is_new"]) == (2, True)
    table = pyarrow.parquet.read_table(write(tmp_path, "o.parquet", shape, None))
    types = {name: str(table.schema.field(name).type) for name in TITLES}
    assert [*types.values()] == ["string", "int64", "double", "bool", "string", "string"]
    first, cut, _ = table.to_pylist()
    assert (first["reply.level"], first["reply.share"]) == (2, 1.0)
    assert cut["reply.level"] is None and cut["error"]["code"] == "format_error"
    assert cut["reply"] == '{"topic": "a'
    lines = write(tmp_path, "o.jsonl", shape, backlog).read_text().splitlines()
    assert json.loads(lines[0])["reply.words"] == ["摘"]


def test_the_preview_says_which_columns_there_will_be(shape: Shape, backlog: Backlog) -> None:
    shown = "\n".join(text.plain for text in preview(backlog, 1, shape))
    assert "reply.is_new (boolean)" in shown
    assert "1 of 3 rows shown, nothing submitted" in shown


def test_the_sample_is_a_schema_with_five_columns() -> None:
    columns = read_shape(SAMPLES / "triage.json").columns
    assert [*columns] == ["language", "topic", "urgency", "sentiment", "summary"]
    assert columns["urgency"] == "integer"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is not JSON"),
        ('{"type": "array"}', "no object with 'properties'"),
        ('{"properties": {"a": {"not": {}}}}', "'schema.properties.a.not' is not supported"),
    ],
)
def test_a_file_that_is_no_schema_of_rows_is_refused(
    tmp_path: Path, text: str, reason: str
) -> None:
    path = tmp_path / "s.json"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=reason):
        read_shape(path)
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_shape(tmp_path / "none.json")


@pytest.mark.parametrize("suffix", ["parquet", "xlsx", "csv", "jsonl"])
def test_a_number_that_no_column_holds_costs_its_row_its_cell_alone(
    tmp_path: Path, suffix: str
) -> None:
    schema = an_object_of(
        count={"type": "integer"}, share={"type": "number"}, name={"type": "string"}
    )
    replies = ['{"count": 9223372036854775808, "share": 2, "name": "a"}',
               f'{{"count": 1, "share": 1{"0" * 400}, "name": "b"}}',
               '{"count": 2e0, "share": 0.5, "name": "c"}']  # fmt: skip
    rows = [
        BatchResult(
            id=str(number), row=number, turn_id="turn_1", conversation_id="conv_1", seq=1,
            state=TurnState.COMPLETED, reply=reply, attempts=1,
        )
        for number, reply in enumerate(replies, start=1)
    ]  # fmt: skip
    path = tmp_path / f"out.{suffix}"
    assert write_results(path, iter(rows), None, shape=Shape(json.dumps(schema))) == 3
    if suffix == "parquet":
        found = pyarrow.parquet.read_table(path).to_pylist()
        assert [row["reply.count"] for row in found] == [None, 1, 2]
        assert [row["reply.share"] for row in found] == [2.0, None, 0.5]
        assert [row["reply.name"] for row in found] == ["a", "b", "c"]
    shape = Shape(json.dumps(schema))
    faults = [shape.read(row)[0].error for row in rows]
    assert [fault and fault.message for fault in faults] == [
        "A number is larger than a column can hold: reply.count.",
        "A number is larger than a column can hold: reply.share.",
        None,
    ]


def an_object_of(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties}
